"""Small networks on top of a backbone: projectors and prototypes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.files import describe_mismatch
from ..errors import UserError
from ..settings import setting


def projector(width: int, hidden: int, out: int, batch_norm: bool = True) -> nn.Module:
    """SwAV's projection head: :func:`mlp` of two layers, or one linear layer when ``hidden`` is 0.

    Keys are those of the published files: ``0``, ``1``, ``3`` (without batch norm, as the published ResNet-50 w5:
    ``0``, ``2``), or ``weight`` and ``bias`` for the linear head.
    """
    return mlp(width, hidden, out, layers=2, batch_norm=batch_norm) if hidden else nn.Linear(width, out)


def mlp(
    width: int, hidden: int, out: int, layers: int = 3, *, bias: bool = True, batch_norm: bool = True
) -> nn.Sequential:
    """``layers - 1`` times linear - batch norm - ReLU, then a linear layer with bias: INTL's and CW-RGP's projectors.

    ``bias`` is that of the hidden layers.
    """
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts.append(nn.Linear(width, hidden, bias=bias))
        if batch_norm:
            parts.append(nn.BatchNorm1d(hidden))
        parts.append(nn.ReLU(inplace=True))
        width = hidden
    return nn.Sequential(*parts, nn.Linear(width, out))


@dataclass(frozen=True)
class ProjectorSettings:
    """Head"""

    head_layers: int = setting(
        3, "number of linear layers in the head", flags=["--projection_layers"], at_least=1, at_most=100
    )
    head_size: int = setting(
        2048, "width of the head's hidden layers", flags=["--projection_size"], at_least=1, at_most=1e6
    )
    emb: int = setting(2048, "d, embedding size", at_least=1, at_most=1e6)
    no_add_bn: bool = setting(False, "no batch norm in the head", switch=True)
    no_head: bool = setting(False, "no head: the features are the embedding", switch=True)

    def width(self, features: int) -> int:
        """Of the embedding."""
        return features if self.no_head else self.emb

    def build(self, features: int, bias: bool) -> nn.Module:
        """The head on a backbone; ``bias`` is that of the hidden layers."""
        if self.no_head:
            return nn.Identity()
        return mlp(features, self.head_size, self.emb, self.head_layers, bias=bias, batch_norm=not self.no_add_bn)


def head_of(state: Mapping[str, Tensor]) -> nn.Module:
    """The head that a file's entries describe, with their weights: linear layers, batch norms, and ReLU in the gaps.

    Args:
        state: names as ``nn.Linear`` (``weight``, ``bias``) or ``nn.Sequential`` (``0.weight``, ...) give them.

    Raises UserError for entries that no such head has.
    """
    if set(state) <= {"weight", "bias"} and "weight" in state:
        head: nn.Module = _linear_of(state["weight"], "bias" in state)
    else:
        indices = {name.partition(".")[0] for name in state}
        if not indices or not all(index.isdigit() for index in indices):
            raise UserError(
                f"its head is not a chain of linear layers and batch norms ({', '.join(sorted(state)[:3])})"
            )
        layers: list[nn.Module] = []
        for i in range(max(map(int, indices)) + 1):
            if str(i) not in indices:
                layers.append(nn.ReLU(inplace=True))
            elif f"{i}.running_mean" in state:
                affine = f"{i}.weight" in state
                layers.append(nn.BatchNorm1d(len(state[f"{i}.running_mean"]), affine=affine))
            else:
                layers.append(_linear_of(state.get(f"{i}.weight"), f"{i}.bias" in state))
        head = nn.Sequential(*layers)
    problem = describe_mismatch(head.state_dict(), state, "its head")
    if problem:
        raise UserError(problem)
    head.load_state_dict(dict(state))
    return head


def _linear_of(weight: Tensor | None, bias: bool) -> nn.Linear:
    if weight is None or weight.ndim != 2:
        raise UserError("its head is not a chain of linear layers and batch norms")
    return nn.Linear(weight.shape[1], weight.shape[0], bias=bias)


def output_width(head: nn.Module) -> int:
    """Features that a head of linear layers gives."""
    return [module.out_features for module in head.modules() if isinstance(module, nn.Linear)][-1]


class TwistHead(nn.Module):
    """TWIST's head (arXiv 2110.07402): two hidden layers, classes, and a batch norm without weights that makes logits.

    Keys are the published ones below ``projection_heads.``.

    Args:
        width: of the features.
        hidden, classes: of the hidden layers and of the output, C.
        activation: ``relu``, or ``gelu`` (exact).
        dropout: after the first activation.
        norm: of the hidden layers: ``bn``, ``ln`` or ``none``.
        last_norm: normalise the output.
        truncated_init: linear layers start as those of transformers.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 4096,
        classes: int = 4096,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        norm: str = "bn",
        last_norm: bool = True,
        truncated_init: bool = False,
    ) -> None:
        super().__init__()
        norms: dict[str, Callable[[int], nn.Module]] = {
            "bn": nn.BatchNorm1d,
            "ln": partial(nn.LayerNorm, eps=1e-6),
            "none": nn.Identity,
        }
        activations: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
        self.projection_head = nn.Sequential(
            nn.Linear(width, hidden),
            norms[norm](hidden),
            activations[activation](),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            norms[norm](hidden),
            activations[activation](),
        )
        self.last_linear = nn.Linear(hidden, classes)
        self.norm: nn.Module = nn.BatchNorm1d(classes, affine=False) if last_norm else nn.Identity()
        if truncated_init:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, F) -> what the last norm sees, and the logits, (n, C) each."""
        output = self.last_linear(self.projection_head(features))
        return output, self.norm(output)


class Prototypes(nn.Linear):
    """K vectors that samples are compared with: (n, D) unit rows -> (n, K) cosine scores, while rows are unit."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count, bias=False)

    def heads(self) -> list["Prototypes"]:
        return [self]


class MultiPrototypes(nn.Module):
    """Several independent sets of prototypes, named ``prototypes0``, ``prototypes1``, ... as published."""

    def __init__(self, dim: int, counts: Sequence[int]) -> None:
        super().__init__()
        for i, count in enumerate(counts):
            self.add_module(f"prototypes{i}", Prototypes(dim, count))

    def heads(self) -> list[Prototypes]:
        return [head for head in self.children() if isinstance(head, Prototypes)]


@torch.no_grad()
def normalize_rows_(weight: Tensor) -> None:
    """Scales every row (a prototype) to unit L2 norm, in place."""
    weight.copy_(F.normalize(weight, dim=1))
