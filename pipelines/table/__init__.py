"""The table of models, a module per family. `pipelines.spec.ModelSpec` says what each field means."""

from collections.abc import Mapping

from pipelines.spec import ModelSpec
from pipelines.table import flux, flux2, sd, wan, zimage

MODELS: Mapping[str, ModelSpec] = {row.id: row for family in (sd, flux, flux2, zimage, wan) for row in family.ROWS}
