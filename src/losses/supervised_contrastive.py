"""The supervised contrastive loss, which W2SSL uses with image numbers as labels."""

import torch
from torch import Tensor


def supervised_contrastive(
    rows_NC: Tensor, labels_N: Tensor, temperature: float = 0.3, base_temperature: float = 0.07
) -> Tensor:
    """Khosla et al. 2020 (arXiv 2004.11362, eq. 2): every row is an anchor, rows of its label are its positives.

    ``-T/T_b mean_i mean_{j != i, y_j = y_i} [s_ij - log sum_{k != i} exp(s_ik)]`` with cosines s over T.

    Args:
        rows_NC: unit rows.
        labels_N: each at least twice.
        temperature, base_temperature: T and T_b.
    """
    scores = rows_NC @ rows_NC.T / temperature
    itself = torch.eye(len(rows_NC), dtype=torch.bool, device=rows_NC.device)
    log_shares = scores - scores.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    positives = (labels_N[:, None] == labels_N[None, :]) & ~itself
    means = (log_shares * positives).sum(dim=1) / positives.sum(dim=1)
    return -(temperature / base_temperature) * means.mean()
