"""Puts the mini hub in place before any test imports a Hugging Face library (their cache folder freezes at import)."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # miniature tensors: a second thread only gets in the way

from lora_drift.harness.check import runner

runner.use_minihub()
