"""The training loop, and what it says while it runs."""
