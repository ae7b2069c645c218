"""Sinkhorn-Knopp: soft assignments of samples to prototypes under an equipartition constraint.

Shape suffixes: A = batch of independent problems, R = samples of this rank, K = prototypes.
"""

import torch
from torch import Tensor

from ..parallel import collectives

# exp((score - 1) / epsilon) of cosine scores spans exp(-2 / epsilon) .. 1. Down to this epsilon float32 holds every
# product the iterations form; sharper assignments are computed in float64.
SMALLEST_FLOAT32_EPSILON = 0.04


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignments of all ranks' samples at once (Caron et al. 2020, arXiv 2006.09882, eq. 3 and appendix A).

    With ``M = exp(scores / epsilon)``, alternately scales every prototype to a share 1/K of the mass of all samples
    on all ranks, then every sample to mass 1. The result on W ranks equals that of one process on the concatenated
    rows. Differences to the formula that change nothing: 1 is subtracted from the scores (a factor that the first
    scaling cancels, so cosine scores cannot overflow), and the initial division by the total mass, which the same
    scaling cancels, is left out together with its collective. What remains is one all-reduce of K numbers for each
    iteration.

    Args:
        scores: (R, K) or (A, R, K) cosine similarities of samples and prototypes; R must be equal on all ranks. A
            leading dimension holds independent problems that share each collective.
        epsilon: entropy regularisation; smaller is sharper.
        iterations: at least 1.

    Returns:
        float32 of the same shape; rows sum to 1, prototypes are balanced approximately. Equal scores give 1/K.
    """
    if iterations < 1:
        raise ValueError(f"Sinkhorn needs at least one iteration, got {iterations}")
    dtype = torch.float32 if epsilon >= SMALLEST_FLOAT32_EPSILON else torch.float64
    q = (scores.to(dtype) - 1.0).div_(epsilon).exp_()
    num_samples = scores.shape[-2] * collectives.world_size()
    num_prototypes = scores.shape[-1]
    for _ in range(iterations):
        prototype_mass = collectives.all_reduce_(q.sum(dim=-2, keepdim=True))
        q /= prototype_mass * num_prototypes
        q /= q.sum(dim=-1, keepdim=True) * num_samples
    return q.mul_(num_samples).float()
