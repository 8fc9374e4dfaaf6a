"""What a model takes of the network, the disk and a GPU's memory, and what this machine has."""
