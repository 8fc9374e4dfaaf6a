"""Graphs of ComfyUI's own nodes that render what the trainer samples, and the records of what ComfyUI made of them."""
