"""One method a file: its model and its training step."""
