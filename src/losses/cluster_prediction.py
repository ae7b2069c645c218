"""Predicting cluster assignments that were made before the epoch.

Shape suffixes: V = crops of an image, B = images, K = clusters.
"""

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def cluster_prediction_loss(scores_VBK: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross entropy of every crop's prototype distribution with its image's cluster (Caron et al. 2020, appendix D).

    Args:
        scores_VBK: prototype scores of all crops, with gradient; computed in float32.
        targets: the clusters, (B,) int64, where images labelled -100 have none and count for nothing; or soft ones,
            (B, K), where such images have a row of zeros.
        temperature: of the softmax.

    Returns:
        The mean over crops of images with a cluster, in nats; 0 if there is no such image. A constant network gives
        ln K.
    """
    num_crops = len(scores_VBK)
    logits = scores_VBK.float().flatten(0, 1) / temperature
    if targets.ndim == 1:
        targets = targets.repeat(num_crops)
        count = (targets != IGNORED).sum()
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    else:
        targets = targets.repeat(num_crops, 1)
        count = targets.any(dim=1).sum()
        total = F.cross_entropy(logits, targets, reduction="sum")
    return total / count.clamp(min=1)
