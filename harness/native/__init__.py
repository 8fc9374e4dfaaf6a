"""Graphs for ComfyUI: of the pack's nodes (`pack_graphs.py`), and of ComfyUI's own that render what the trainer samples
(`graphs.py`), with the records of what ComfyUI made of these."""
