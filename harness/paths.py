"""Where things lie: in a checkout beside this folder, in an installed wheel inside the package."""

from pathlib import Path

HARNESS = Path(__file__).resolve().parent
ROOT = HARNESS.parent
"""The checkout, with cases/, goldens/, reports/. Of an installed wheel: the package `lora_drift`, which has none."""
