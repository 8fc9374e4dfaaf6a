"""One module per model family. Each has `load` and `render`, read top to bottom in the order the data flows."""
