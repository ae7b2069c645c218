"""The swapped prediction loss of SwAV.

Shape suffixes: A = assigned crops, V = crops of an image, B = images, K = prototypes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def swapped_prediction_loss(
    scores_VBK: Tensor, assignments_ABK: Tensor, crops_for_assign: Sequence[int], temperature: float
) -> Tensor:
    """Cross entropy of every crop's prototype distribution with the assignments of the other crops.

    ``L = 1/|A| sum_a 1/(V-1) sum_{v != a} -mean_b sum_k q_a[b,k] log softmax(s_v[b] / temperature)[k]``
    (Caron et al. 2020, arXiv 2006.09882, eq. 2 and section 3.2). A constant network gives ln K.

    Args:
        scores_VBK: prototype scores of all crops, with gradient; computed in float32.
        assignments_ABK: the targets, rows summing to 1, without gradient.
        crops_for_assign: which crop each target was computed from.
        temperature: of the softmax.

    Returns:
        The loss, a scalar in nats.
    """
    num_crops, num_images, _ = scores_VBK.shape
    log_p_VBK = F.log_softmax(scores_VBK.float() / temperature, dim=-1)
    cross_entropy_AV = -torch.einsum("abk,vbk->av", assignments_ABK, log_p_VBK) / num_images
    is_other_AV = torch.ones_like(cross_entropy_AV)
    for slot, crop in enumerate(crops_for_assign):
        is_other_AV[slot, crop].fill_(0.0)
    return (cross_entropy_AV * is_other_AV).sum() / (len(crops_for_assign) * (num_crops - 1))
