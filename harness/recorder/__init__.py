"""Records goldens by driving a checkout of the trainer. Runs in the trainer's own environment:

python -m harness.recorder --trainer DIR --diffusers DIR --tag TAG [--model M] [--case ID]
"""
