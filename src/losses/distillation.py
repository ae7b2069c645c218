"""Losses that compare a student with a frozen teacher.

Embeddings are (n, C) of the same n images, the teacher's without gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_error_sum(student_nC: Tensor, teacher_nC: Tensor) -> Tensor:
    """DisCo's term for one view (Gao et al. 2021, arXiv 2104.09124): squared errors summed over images and dimensions.

    Of unit rows it is 2 (1 - cosine), summed over the images: so its weight beside a mean grows with n.
    """
    return (teacher_nC - student_nC).square().sum()


def pairwise_distances(rows_nC: Tensor) -> Tensor:
    """Euclidean distances (n, n); squares below 1e-12 count as 1e-12, and the diagonal is 0."""
    squares = rows_nC.square().sum(dim=1)
    squared = squares[:, None] + squares[None, :] - 2 * rows_nC @ rows_nC.T
    off_diagonal = 1 - torch.eye(len(rows_nC), dtype=rows_nC.dtype, device=rows_nC.device)
    return squared.clamp_min(1e-12).sqrt() * off_diagonal


def rkd_distance(student_nC: Tensor, teacher_nD: Tensor) -> Tensor:
    """RKD's distance loss (Park et al. 2019, arXiv 1904.05068, eq. 6): smooth L1 of distances over their mean.

    The mean is that of the positive distances; C and D may differ.
    """

    def relative(distances: Tensor) -> Tensor:
        return distances * (distances > 0).sum() / distances.sum()

    return F.smooth_l1_loss(relative(pairwise_distances(student_nC)), relative(pairwise_distances(teacher_nD)))


def rkd_angle(student_nC: Tensor, teacher_nD: Tensor) -> Tensor:
    """RKD's angle loss (arXiv 1904.05068, eq. 9): smooth L1 of the cosines of all angles, mean over n^3."""

    def cosines(rows: Tensor) -> Tensor:
        directions = F.normalize(rows[None, :] - rows[:, None], dim=2)  # from anchor i to j
        return directions @ directions.transpose(1, 2)

    return F.smooth_l1_loss(cosines(student_nC), cosines(teacher_nD))


def hard_dark_rank(
    student_nC: Tensor, teacher_nD: Tensor, alpha: float = 3.0, beta: float = 3.0, length: int = 4
) -> Tensor:
    """DarkRank's hard loss (Chen et al. 2017, arXiv 1707.01220): the likelihood of the teacher's ranking.

    Each image ranks the others by ``-alpha * distance ** beta``; the teacher's nearest ``length`` are to be the
    student's, in this order (Plackett-Luce, among these). Needs more than ``length`` images.
    """
    ranking = (-alpha * pairwise_distances(teacher_nD) ** beta).argsort(dim=1, descending=True)[:, 1 : length + 1]
    scores = (-alpha * pairwise_distances(student_nC) ** beta).gather(1, ranking)
    rest = torch.stack([scores[:, place:].logsumexp(dim=1) for place in range(scores.shape[1])], dim=1)
    return -(scores - rest).sum(dim=1).mean()


def attention_transfer(student_nchw: Tensor, teacher_ndhw: Tensor) -> Tensor:
    """Attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928): where, not in which channel, maps are large.

    Maps (n, c, h, w) and (n, d, h, w) become unit vectors of mean squares over the channels; the mean squared error
    over all n h w entries.
    """

    def attention(maps: Tensor) -> Tensor:
        return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)

    return F.mse_loss(attention(student_nchw), attention(teacher_ndhw))


def kd_cross_entropy(
    student_nK: Tensor, teacher_nK: Tensor, labels_n: Tensor, alpha: float = 0.5, temperature: float = 2.0
) -> Tensor:
    """Knowledge distillation with labels (Hinton et al. 2015, arXiv 1503.02531), as DisCo's release weighs it.

    ``alpha T^2 KL + (1 - alpha) CE``, where KL is a mean over all n K entries: 1/K of the textbook's.
    """
    log_p = F.log_softmax(student_nK / temperature, dim=1)
    log_q = F.log_softmax(teacher_nK / temperature, dim=1)
    divergence = (log_q.exp() * (log_q - log_p)).mean()
    return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_nK, labels_n)


def seed_loss(student_nM: Tensor, teacher_nM: Tensor, temperature: float, teacher_temperature: float) -> Tensor:
    """SEED (Fang et al. 2021, arXiv 2101.04731, eq. 5): cross entropy between similarity distributions, mean over n.

    Args:
        student_nM, teacher_nM: cosines of each image with the same M teacher embeddings.
        temperature, teacher_temperature: of the two softmaxes.
    """
    targets = F.softmax(teacher_nM / teacher_temperature, dim=1)
    return -(targets * F.log_softmax(student_nM / temperature, dim=1)).sum(dim=1).mean()
