"""CW-RGP and W-MSE: whitening sub-batches of each view, with random groups of channels (Weng et al. 2022, arXiv
2210.03586; Ermolov et al. 2021, arXiv 2007.06346).

Shape suffixes: V = views of an image, n = images of this rank, d = embedding size.
"""

import itertools
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..errors import Diverged, UserError
from ..losses.whitened import covariance_penalty, normalised_mse
from ..ops.whitening import Kind, group_whitening
from ..parallel.transfer import sent
from ..settings import setting
from .joint_embedding import WHITENING_ADVICE, JointEmbedding, Parts

# How each method transforms a sub-batch; `bn` standardises, `plain` leaves it alone (and collapses)
TRANSFORMS = {"cwrgp": "zca", "wmse": "cholesky", "pca": "pca", "bn": "bn", "plain": "plain"}

LARGER_COVARIANCES = "--w_eps 1e-4, a smaller --w_size, fewer groups"


@dataclass(frozen=True)
class GroupWhiteningSettings:
    """Whitening (cwrgp, wmse, pca, bn, plain)"""

    axis: int = setting(0, "0: channel whitening, 1: batch whitening", at_least=0, at_most=1)
    w_size: int = setting(128, "number of images whitened together", at_least=1, at_most=1e6)
    w_iter: int = setting(1, "how often the images are put together anew", at_least=1, at_most=1e4)
    w_eps: float = setting(0.0, "shrinkage of the covariance towards the identity", at_least=0, at_most=1)
    group: int = setting(1, "groups of channels, each whitened by itself", at_least=1, at_most=1e6)
    minus: int = setting(1, "taken off the covariance's divisor", at_least=-1e6, at_most=1e6)
    no_norm: bool = setting(False, "mean squared errors of raw embeddings, not of unit rows", switch=True)
    no_rg: bool = setting(False, "no random permutation of the channels before grouping", switch=True)
    cov_w: float = setting(0.0, "weight of a penalty on the covariance of the embeddings", at_least=0, at_most=1e6)
    cov_stop: int = setting(50, "number of first epochs that have that penalty", at_least=0, at_most=1e9)

    def check(self, method: str, batch_size: int, width: int) -> None:
        """Refuses sub-batches that do not fit the batch of a process or cannot have full rank."""
        if batch_size % self.w_size:
            raise UserError(f"--w_size {self.w_size} does not divide the {batch_size} images of a process")
        if width % self.group:
            raise UserError(f"--group {self.group} does not divide the embedding of {width}")
        observations, variables = width // self.group, self.w_size
        if self.axis == 1:
            observations, variables = self.w_size - 1, width // self.group
        if TRANSFORMS[method] in get_args(Kind) and observations < variables and not self.w_eps:
            raise UserError(
                f"a covariance of {variables} from {observations} observations is singular: a larger --emb or fewer "
                "groups (axis 0), a larger --w_size (axis 1), or --w_eps"
            )


class GroupWhitening(JointEmbedding):
    """The mean distance between the whitened embeddings of all pairs of views.

    Args:
        backbone, head, zero_init_residual: see :class:`JointEmbedding`.
        transform: ``zca`` (CW-RGP), ``cholesky`` (W-MSE), ``pca``, ``bn`` or ``plain``.
        sub_batch: images that are whitened together; must divide n.
        repeats: how often the images are cut into sub-batches anew.
        groups, axis, eps, minus: of :func:`src.ops.whitening.group_whitening`.
        random_groups: a new permutation of the channels for each sub-batch and view.
        normalise: distances of unit rows; otherwise mean squared errors.
        covariance_weight, covariance_epochs: of a penalty on the covariance of the untransformed embeddings, in the
            first so many epochs and one more step.
    """

    collapse_advice = WHITENING_ADVICE

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        transform: str = "zca",
        sub_batch: int = 128,
        repeats: int = 1,
        groups: int = 1,
        axis: int = 0,
        eps: float = 0.0,
        minus: int = 1,
        random_groups: bool = True,
        normalise: bool = True,
        covariance_weight: float = 0.0,
        covariance_epochs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, **options)
        self.transform, self.sub_batch, self.repeats = transform, sub_batch, repeats
        self.whitening: dict[str, Any] = {"groups": groups, "axis": axis, "eps": eps, "minus": minus}
        self.random_groups, self.normalise = random_groups, normalise
        self.covariance_weight, self.covariance_epochs = covariance_weight, covariance_epochs
        if transform in get_args(Kind):
            self.advice = f"{self.advice}. A covariance that cannot be whitened needs {LARGER_COVARIANCES}"

    @classmethod
    def build(cls, parts: Parts, method: str, own: GroupWhiteningSettings) -> "GroupWhitening":
        """``method`` is one of TRANSFORMS."""
        own.check(method, parts.batch_size, parts.width)
        return cls(
            parts.backbone,
            parts.head,
            transform=TRANSFORMS[method],
            sub_batch=own.w_size,
            repeats=own.w_iter,
            groups=own.group,
            axis=own.axis,
            eps=own.w_eps,
            minus=own.minus,
            random_groups=not own.no_rg,
            normalise=not own.no_norm,
            covariance_weight=own.cov_w,
            covariance_epochs=own.cov_stop,
            zero_init_residual=parts.zero_init_residual,
        )

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        pairs = list(itertools.combinations(range(len(embeddings_Vnd)), 2))
        distance = normalised_mse if self.normalise else F.mse_loss
        losses = []
        for _ in range(self.repeats):
            whitened = self._whiten(torch.stack(embeddings_Vnd))
            losses += [distance(whitened[i], whitened[j]) for i, j in pairs]
        loss = torch.stack(losses).mean()
        past = clock.epoch - self.covariance_epochs
        if self.covariance_weight and (past < 0 or (past == 0 and clock.step_in_epoch == 0)):
            penalties = [covariance_penalty(one, self.whitening["axis"]) for one in embeddings_Vnd]
            loss = loss + self.covariance_weight * torch.stack(penalties).sum()
        return loss

    def _whiten(self, embeddings_Vnd: Tensor) -> Tensor:
        """(V, n, d) -> (V, n, d): each view's sub-batches, whitened with permutations of their own, at their places."""
        views, samples, features = embeddings_Vnd.shape
        if samples % self.sub_batch:
            raise UserError(f"--w_size {self.sub_batch} does not divide the {samples} images of a process")
        order, channels = torch.randperm(samples), None
        parts = samples // self.sub_batch
        if self.random_groups and self.transform in get_args(Kind):
            drawn = [torch.randperm(features) for _ in range(parts * views)]  # part by part, and view by view
            channels = sent(torch.stack(drawn).view(parts, views, features).transpose(0, 1), embeddings_Vnd.device)
        order, back = (sent(rows, embeddings_Vnd.device) for rows in (order, order.argsort()))
        cut = embeddings_Vnd.index_select(1, order).unflatten(1, (parts, self.sub_batch))
        return self._transformed(cut, channels).flatten(1, 2).index_select(1, back)

    def _transformed(self, x: Tensor, channels: Tensor | None) -> Tensor:
        """Sub-batches (V, S, w, d), with channels (V, S, d)."""
        if self.transform == "plain":
            return x
        if self.transform == "bn":
            columns = x.movedim(2, 0).flatten(1)  # a column for each channel of each sub-batch
            normalised = F.batch_norm(columns, None, None, training=True, eps=self.whitening["eps"] or 1e-12)
            return normalised.view_as(x.movedim(2, 0)).movedim(0, 2)
        try:
            # images that look alike make covariances that float32 takes for singular
            whitened = group_whitening(x.double(), self.transform, permutation=channels, **self.whitening)  # type: ignore[arg-type]
            return whitened.to(x.dtype)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if not bool(torch.isfinite(x).all()):
                raise Diverged(f"the embeddings are not finite. {self.advice}") from None
            groups, (samples, features) = self.whitening["groups"], x.shape[2:]
            rank = torch.linalg.matrix_rank(x - x.mean(dim=-1, keepdim=True)).min().item()
            raise Diverged(
                f"the covariance of {samples} samples over {features // groups} channels cannot be whitened (rank "
                f"{rank}): try {LARGER_COVARIANCES}, "
                "or a lower learning rate"
            ) from None
