"""`python -m lora_drift`: the `lora-drift` command."""

from lora_drift.harness.cli.main import main

main()
