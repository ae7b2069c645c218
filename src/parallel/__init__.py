"""Several processes: how they start, meet, and compute together."""
