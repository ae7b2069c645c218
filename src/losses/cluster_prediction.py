"""Predicting cluster assignments that were made before the epoch.

Shape suffixes: V = crops of an image, B = images, K = clusters.
"""

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def cluster_prediction_loss(scores_VBK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Cross entropy of every crop's prototype distribution with its image's cluster (Caron et al. 2020, appendix D).

    Args:
        scores_VBK: prototype scores of all crops, with gradient; computed in float32.
        labels_B: the clusters, int64; images labelled -100 have none and count for nothing.
        temperature: of the softmax.

    Returns:
        The mean over crops of images with a cluster, in nats; 0 if there is no such image. A constant network gives
        ln K.
    """
    num_crops = len(scores_VBK)
    logits = scores_VBK.float().flatten(0, 1) / temperature
    labels = labels_B.repeat(num_crops)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
