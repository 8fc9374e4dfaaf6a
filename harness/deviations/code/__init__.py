"""Mutation of the code: would the cases, and then the unit tests, notice a slip of the pen in `pipelines/`?

`points.py`: where a module can be mutated, and how. `forks.py`: a process that has the libraries loaded and forks for
each mutant. `run.py`: which mutants, on which cases and tests. `scores.py`: what came out, and the committed record.
(mutmut and cosmic-ray start a process a mutant, which here would import torch and Diffusers each time.)
"""
