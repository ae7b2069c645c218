"""Self-supervised pre-training for images. Imported as `src` in the checkout and as `ssl_vision` when installed."""

import os

# Read when torch is loaded, so scripts import this package first. OpenMP's threads wait for the next piece of work by
# spinning; where another process has one of their cores, such as a loader's worker, all others spin until it gives it
# back, again and again in each step. What the user's environment says holds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
