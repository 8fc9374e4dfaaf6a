"""What each worker of the recorder has imported before its first case.

Importing the trainer takes ten times as long as recording a miniature. On the CPU the workers are therefore forks of a
process that imports this module; they share what is imported, and nothing that happened since.
"""

import gc
from importlib import import_module

for module in (
    "toolkit.stable_diffusion_model",
    "toolkit.job",
    "toolkit.extension",
    "jobs.process",
    "extensions_built_in.sd_trainer.SDTrainer",
    "extensions_built_in.diffusion_models",
):
    import_module(module)

# The trainer collects garbage many times a picture, each time through all that is imported: seconds of each case.
gc.freeze()
