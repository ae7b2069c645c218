"""Starting a training from weights that there are: which, how much of them, and how gently they are trained on."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.method import Method
from ..errors import UserError
from ..models.backbones import BackboneSpec
from ..models.pretrained import OWN_HEADS, Hints, Pretrained, fingerprint, load_backbone
from ..settings import setting


@dataclass(frozen=True)
class InitialSettings:
    """Starting from weights"""

    init: str = setting(
        "",
        "weights that the network starts from, and its head where the file has one of the same shape: a checkpoint of "
        "any method here, a published file or its name, timm:MODEL or torchvision:MODEL; without it they are random",
    )
    init_key: str = setting("auto", "entry of that file that holds the weights, such as teacher_backbone")
    lr_backbone_scale: float = setting(
        1.0, "factor on the backbone's learning rate; 0.1 keeps more of --init", above=0, at_most=1000
    )
    layer_decay: float = setting(
        1.0,
        "further factor on the learning rate for each block of a transformer (or network of timm) below the last one: "
        "0.75 is usual, 1 = the same rate for all",
        above=0,
        at_most=1,
    )
    freeze_backbone_epochs: int = setting(
        0,
        "number of first epochs in which only the head is trained; batch norms' statistics still follow the images",
        at_least=0,
        at_most=1e9,
    )

    def load(self, spec: BackboneSpec) -> "Initial | None":
        """The weights, if any were asked for; raises UserError for weights of another network."""
        if not self.init:
            return None
        return Initial(load_backbone(self.init, Hints(spec.arch, spec.width, spec.stem), self.init_key), self.init)


class Initial:
    """Weights that a run starts from.

    Attributes:
        sha256: a digest of all of them: a run does not go on from another start.
        said: lines about where each entry went, once they are in a method.
    """

    def __init__(self, loaded: Pretrained, origin: str) -> None:
        self.loaded, self._origin = loaded, origin
        head = {f"head.{name}": tensor for name, tensor in loaded.head.items()}
        self.sha256 = fingerprint({**loaded.backbone.state_dict(), **head})
        self.said: list[str] = []

    def fill(self, method: Method) -> None:
        """Puts them into a method and the moving averages of its networks.

        Raises UserError where the backbones differ.
        """
        loaded = self.loaded
        state, adapted = self._fitted(method.backbone)
        for network in method.backbones:
            network.load_state_dict(state)
        self.said = [f"{loaded.description}{adapted}", *self._fill_head(method)]
        if loaded.others:
            kinds = dict.fromkeys(name.split(".")[0] for name in loaded.others)
            self.said.append(f"{len(loaded.others)} other entries are not used: {', '.join(kinds)}")

    def warnings(self, mean: Sequence[float], std: Sequence[float]) -> list[str]:
        """What the user should know of: images that are normalised in another way than the weights know them."""
        said = []
        for name, here in (("mean", mean), ("std", std)):
            known = self.loaded.settings.get(name) or ()
            if len(known) == len(here) and not np.allclose(known, here, atol=0.01):
                there, now = (" ".join(f"{value:g}" for value in values) for values in (known, here))
                said.append(f"--init {self._origin} knows images with --{name} {there}, and here it is {now}")
        return said

    def _fitted(self, backbone: nn.Module) -> tuple[dict[str, Tensor], str]:
        """The backbone's entries, for as many channels as it has, and what to say of that."""
        state = dict(self.loaded.backbone.state_dict())
        own = backbone.state_dict()
        other = [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]
        if not other:
            return state, ""
        name, (there, wanted) = other[0], (state[other[0]], own[other[0]])
        if len(other) > 1 or there.ndim != 4 or wanted[:, :1].shape != there[:, :1].shape or there.shape[1] != 3:
            raise UserError(f"--init {self._origin}: {name} is {tuple(there.shape)}, not {tuple(wanted.shape)}")
        from timm.models import adapt_input_conv

        state[name] = adapt_input_conv(wanted.shape[1], there)
        return state, f"; its first layer, of 3 channels, is made one of {wanted.shape[1]}"

    def _fill_head(self, method: Method) -> list[str]:
        """Puts the head where it fits; a line about it, if there is one on either side."""
        there = self.loaded.head
        name = next((p[:-1] for p in OWN_HEADS if isinstance(getattr(method, p[:-1], None), nn.Module)), "")
        own = getattr(method, name).state_dict() if name else {}
        if not own:
            return ["the method has no head to start"] if there else []
        if not there:
            return [f"the head starts at random ({self._origin} has none)"]
        fitted = _matched(own, there)
        if fitted is None or not self.loaded.family:
            return [f"the head starts at random: that of {self._origin} has {len(there)} entries of other shapes"]
        for network in _with_copies(method, name):
            network.load_state_dict(fitted)
        return [f"{len(fitted)} entries into the head"]


def _matched(own: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The entries of another head under this one's names, by name or else by their order; None where shapes differ."""
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    names = [name for name in own if name not in counters]
    theirs = [name for name in there if not name.endswith("num_batches_tracked")]
    source = names if set(names) == set(theirs) else theirs
    if len(names) != len(source) or any(own[a].shape != there[b].shape for a, b in zip(names, source, strict=True)):
        return None
    return {**{a: there[b] for a, b in zip(names, source, strict=True)}, **counters}


def _with_copies(method: Method, name: str) -> list[nn.Module]:
    """A network of a method and its moving averages, which are called and placed as the backbone's are."""
    found = dict(method.named_modules())
    places = [place for place, module in found.items() if any(module is one for one in method.backbones)]
    return [found[other] for other in (place.replace("backbone", name) for place in places) if other in found]


def scale_rates(optimizer: torch.optim.Optimizer, method: Method, settings: InitialSettings) -> None:
    """Divides the optimiser's groups so that each layer of the backbone has the rate that was asked for.

    Raises UserError for a backbone whose layers are not known, and where freezing it would leave nothing to train.
    """
    if settings.freeze_backbone_epochs:
        inside = {id(parameter) for parameter in method.backbone.parameters()}
        if all(id(p) in inside or not p.requires_grad for p in method.parameters()):
            raise UserError("--freeze_backbone_epochs: this method trains nothing but the backbone")
    scales = {id(parameter): scale for parameter, scale in _scales(method.backbone, settings)}
    if not scales:
        return

    def scale_of(parameter: Tensor) -> float:
        return scales.get(id(parameter), 1.0)

    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for scale, members in itertools.groupby(sorted(group["params"], key=scale_of), scale_of):
            groups.append({**group, "params": list(members), "lr_scale": group.get("lr_scale", 1.0) * scale})
    optimizer.param_groups[:] = groups


def _scales(backbone: nn.Module, settings: InitialSettings) -> Iterator[tuple[nn.Parameter, float]]:
    scale, decay = settings.lr_backbone_scale, settings.layer_decay
    if scale == decay == 1:
        return
    if decay == 1:
        for parameter in backbone.parameters():
            yield parameter, scale
        return
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise UserError("--layer_decay needs a transformer, or another network of timm")
    from timm.models import group_parameters

    layers: Sequence[Sequence[str]] = [names for _, names in sorted(group_parameters(backbone, matcher()).items())]
    named = dict(backbone.named_parameters())
    for depth, names in enumerate(reversed(layers)):
        for name in names:
            yield named[name], scale * decay**depth
