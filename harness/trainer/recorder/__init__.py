"""Records goldens by driving a checkout of the trainer, in the trainer's own environment:

python -m lora_drift.harness.trainer.recorder env --tag TAG --trainer DIR
HOME/venv/bin/python -m lora_drift.harness.trainer.recorder --tag TAG --trainer DIR --diffusers DIR [--case ID]

The first builds that environment and prints the second.
"""
