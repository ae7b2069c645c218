"""Linear classifiers that others have trained, to be judged as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.files import describe_mismatch, read_file
from ..checkpoints.layouts import weights_in
from ..errors import UserError
from ..models import zoo
from ..models.pretrained import Pretrained, fingerprint
from .classifiers import Classification, Classifier

# Under which names files hold a classifier on a backbone's features: SwAV's and TWIST's of transformers; torchvision's
# ResNets (MoCo's, INTL's, CW-RGP's, W2SSL's and TWIST's programs); timm's transformers and its mobile networks
PREFIXES = ("linear.", "fc.", "head.", "classifier.")


@dataclass(frozen=True)
class PublishedClassifier:
    """A classifier's entries, ``linear.*`` and perhaps ``bn.*``.

    Attributes:
        path: of the file.
        state: its entries.
        has_backbone: whether the file also holds the network that it classifies the features of.
    """

    path: Path
    state: Mapping[str, Tensor]
    has_backbone: bool

    def put_into(self, method: Classification) -> None:
        """Raises UserError where the features or the classes are others."""
        classifier = next(module for module in method.modules() if isinstance(module, Classifier))
        theirs, ours = self.state["linear.weight"].shape, classifier.linear.weight.shape
        if theirs != ours:
            raise UserError(
                f"{self.path} tells {theirs[0]} classes apart by {theirs[1]} features; here are {ours[0]} classes and "
                f"{ours[1]} features"
            )
        problem = describe_mismatch(classifier.state_dict(), self.state, self.path)
        if problem:
            raise UserError(problem)
        classifier.load_state_dict(dict(self.state))


def read_classifier(where: str) -> PublishedClassifier:
    """The classifier in a file, or of a name of the zoo. Raises UserError where there is none."""
    path = zoo.located(where)
    named = weights_in(read_file(path), path)
    named = {name.removeprefix("model."): tensor for name, tensor in named.items()}
    for prefix in PREFIXES:
        weight = named.get(f"{prefix}weight")
        if weight is not None and weight.ndim == 2:
            break
    else:
        raise UserError(f"{path} holds no linear classifier ({', '.join(f'{p}weight' for p in PREFIXES)})")
    state = {f"linear.{name}": named[prefix + name] for name in ("weight", "bias") if prefix + name in named}
    state |= {name: tensor for name, tensor in named.items() if prefix == "linear." and name.startswith("bn.")}
    state.setdefault("linear.bias", torch.zeros(len(state["linear.weight"])))
    rest = [name for name in named if not name.startswith((prefix, "bn."))]
    return PublishedClassifier(path, state, prefix != "linear." and bool(rest))


def require_same_backbone(weights: Pretrained, own: Pretrained, path: Path) -> None:
    """Raises UserError where ``--pretrained`` is not the network that the classifier's file holds."""
    if fingerprint(weights.backbone.state_dict()) != fingerprint(own.backbone.state_dict()):
        raise UserError(f"{path} holds another network than --pretrained: leave --pretrained out to judge its own")
