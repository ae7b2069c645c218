"""Is it collapsing? Numbers that tell, and the verdict in words."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_std(embeddings: Tensor) -> Tensor:
    """Spread of L2-normalised embeddings (n, D): mean standard deviation over the batch, times sqrt(D).

    1 for embeddings spread over the whole sphere, 0 when all samples have the same one (Chen & He 2021, arXiv
    2011.10566, figure 2).
    """
    unit = F.normalize(embeddings.float(), dim=1)
    return unit.std(dim=0, unbiased=False).mean() * math.sqrt(unit.shape[1])


def singular_values(matrix: Tensor) -> Tensor:
    """Of (n, D), falling; all nan for a matrix that is not finite, which torch refuses to decompose."""
    finite = torch.isfinite(matrix).all()
    return torch.where(finite, torch.linalg.svdvals(torch.nan_to_num(matrix, 0.0, 0.0, 0.0)), torch.nan)


@torch.no_grad()
def rankme(embeddings: Tensor) -> Tensor:
    """Effective rank of embeddings (n, D): the exponential of the entropy of their normalised singular values.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 1). Between 1 and min(n, D); for fewer samples than dimensions
    it is bounded by the batch. nan for embeddings that are not finite.
    """
    values = singular_values(embeddings.float())
    p = values / values.sum().clamp_min(1e-12) + 1e-7
    return torch.exp(-(p * p.log()).sum())


# Embeddings of an effective rank below this one, of 16 dimensions or more, have collapsed: healthy ones have tens
RANK_OF_A_COLLAPSE = 2.5


@torch.no_grad()
def mean_entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy, in nats, of the distributions in the last dimension."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1).mean()


@dataclass(frozen=True)
class Check:
    """One sign of collapse.

    Attributes:
        name: for the log.
        failed: judges the logged values.
        verdict: one line that says so, with the number.
        advice: what the paper recommends.
    """

    name: str
    failed: Callable[[Mapping[str, float]], bool]
    verdict: Callable[[Mapping[str, float]], str]
    advice: str


class HealthMonitor:
    """Turns checks into verdicts: after ``grace`` steps, and only when a check failed ``patience`` times in a row.

    The grace spares the start, where features of a fresh network are close together anyway. A verdict is repeated
    each time the patience is used up again.
    """

    def __init__(self, checks: list[Check], grace: int = 100, patience: int = 3) -> None:
        self.checks, self.grace, self.patience = checks, grace, patience
        self._failures = dict.fromkeys((check.name for check in checks), 0)

    def update(self, step: int, values: Mapping[str, float]) -> list[str]:
        """The verdicts to be printed for the values logged at ``step``."""
        verdicts = []
        for check in self.checks:
            if not check.failed(values):
                self._failures[check.name] = 0
            elif step >= self.grace:
                self._failures[check.name] += 1
                if self._failures[check.name] % self.patience == 0:
                    verdicts.append(f"{check.verdict(values)} {check.advice}")
        return verdicts
