"""The table of models, a module per family. `pipelines.spec.ModelSpec` says what each field means."""

from collections.abc import Mapping

from pipelines.spec import ModelSpec
from pipelines.table import flux, qwen, sd, wan, zimage

MODELS: Mapping[str, ModelSpec] = {row.id: row for family in (sd, flux, qwen, zimage, wan) for row in family.ROWS}
