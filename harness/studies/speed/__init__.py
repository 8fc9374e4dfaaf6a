"""How long a picture takes and what memory: the trainer, ours and stock Diffusers in one run (benchmarks/gpu.py).

Each part runs in a process of its own, so that none takes memory from the next or brings it down; what a part has
measured so far is always on disk.
"""
