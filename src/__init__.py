"""Self-supervised pre-training for images. Imported as `src` in the checkout and as `ssl_vision` when installed."""

import os

# Both are read when torch is loaded, so scripts import this package first. What the user's environment says holds.
# OpenMP's threads wait for the next piece of work by spinning; where another process has one of their cores, such as a
# loader's worker, all others spin until it gives it back, again and again in each step.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Large tensors in pages of 2 MB, where Linux has them: making and giving back a gigabyte a step in small ones took 4 %
# of it (ResNet-18, two cores).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
