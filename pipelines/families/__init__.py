"""One file a family: its rows, then load, check, render (encode, prepare, denoise, decode) and its LoRA keys.

The contract is `lora_drift.pipelines.family.Family`. Importing a family imports neither torch nor Diffusers, so that
the rows can be read without them: what needs them is imported in the functions that use it. A network that Diffusers
lacks, or rounds otherwise, is a second file beside the family's.
"""
