"""Numerical building blocks: whitening, k-means, montages."""
