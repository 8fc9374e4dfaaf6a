"""The table of models, a module per family. `pipelines.spec.ModelSpec` says what each field means."""

from collections.abc import Mapping

from pipelines.spec import ModelSpec
from pipelines.table import flux, ltx2, sd, wan, zimage

MODELS: Mapping[str, ModelSpec] = {row.id: row for family in (sd, flux, zimage, wan, ltx2) for row in family.ROWS}
