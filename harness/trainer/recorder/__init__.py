"""Records goldens by driving a checkout of the trainer. Runs in the trainer's own environment:

python -m lora_drift.harness.trainer.recorder --trainer DIR --diffusers DIR --tag TAG [--model M] [--case ID]
"""
