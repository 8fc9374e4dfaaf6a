"""Model classes that Diffusers does not have, built from its parts. Imported when weights load, not before."""
