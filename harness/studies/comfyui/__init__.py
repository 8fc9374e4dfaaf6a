"""Drives a ComfyUI checkout: its own graphs on the miniatures, compared with what the trainer rendered."""
