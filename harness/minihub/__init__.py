"""The mini hub: a Hugging Face cache in which every repository a model needs exists as a miniature."""
