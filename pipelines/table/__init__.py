"""The table of models, a module per family. `lora_drift.pipelines.spec.ModelSpec` says what each field means."""

from collections.abc import Mapping

from lora_drift.pipelines.spec import ModelSpec
from lora_drift.pipelines.table import flux, flux2, hidream, ltx2, lumina2, omnigen2, qwen, sd, wan, zimage

FAMILIES = (sd, flux, flux2, qwen, zimage, lumina2, omnigen2, hidream, wan, ltx2)
MODELS: Mapping[str, ModelSpec] = {row.id: row for family in FAMILIES for row in family.ROWS}
