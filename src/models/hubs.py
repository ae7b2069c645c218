"""Weights of timm and torchvision by name: ``timm:resnet50.a1_in1k``, ``torchvision:resnet50``."""

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from filelock import FileLock
from torch import Tensor

from ..checkpoints.layouts import backbone_in
from ..checkpoints.weights import NAME
from ..errors import UserError, first_line
from .zoo import folder

TIMM, TORCHVISION = "timm:", "torchvision:"


def is_of_a_hub(word: str) -> bool:
    return word.startswith((TIMM, TORCHVISION))


def read(word: str) -> "OrderedDict[str, Tensor]":
    """The entries of a published classifier without its last layer, and what is known of it.

    Its library keeps the file where it always does.

    Args:
        word: ``timm:`` and any name that ``timm.create_model`` takes, with or without the weights after a dot, also
            ``hf-hub:USER/NAME`` and ``local-dir:FOLDER``; or ``torchvision:`` and the name of a model, with or without
            one of its weights after a dot, such as ``IMAGENET1K_V2``.

    Raises UserError for unknown names, models without weights, and what cannot be downloaded.
    """
    library, _, name = word.partition(":")
    if not name:
        raise UserError(f"{word}: expected the name of a model after the colon")
    folder().mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder() / "hubs.lock"), warnings.catch_warnings():  # one process of a machine downloads
            warnings.simplefilter("ignore")
            state, told = _of_timm(name) if library == "timm" else _of_torchvision(name)
    except UserError:
        raise
    except Exception as error:  # of the network, of a file, of another release's names: each library has its own
        raise UserError(f"{word} cannot be had: {first_line(error)}") from None
    entries = OrderedDict(state)
    entries._metadata = OrderedDict({NAME: told})  # type: ignore[attr-defined]
    return entries


def _of_timm(name: str) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    import timm

    is_place = ":" in name  # hf-hub:, local-dir:
    if not is_place and not timm.is_model(name):
        raise UserError(f"timm:{name}: timm has no such model")
    if not is_place and not timm.is_model_pretrained(name):
        raise UserError(f"timm:{name}: timm has no weights of it")
    model = timm.create_model(name, pretrained=True, num_classes=0)
    given: Any = model.pretrained_cfg
    size = given["input_size"][-1]
    return model.state_dict(), {
        "arch": given["architecture"],
        "channels": given["input_size"][0],
        "mean": list(given["mean"]),
        "std": list(given["std"]),
        "eval_size": size,
        "eval_resize": round(size / (given.get("crop_pct") or 1)),
    }


def _of_torchvision(name: str) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    from torchvision import models

    arch, _, which = name.partition(".")
    if arch not in models.list_models():
        raise UserError(f"torchvision:{name}: torchvision has no such model")
    choices = models.get_model_weights(arch)
    names = [one.name for one in choices]
    if which and which not in names:
        raise UserError(f"torchvision:{name}: expected one of {', '.join(names)} after the dot")
    weights = choices[which] if which else choices.DEFAULT
    shown = weights.transforms()
    told = {"arch": arch, "mean": list(shown.mean), "std": list(shown.std)}
    told |= {"eval_size": shown.crop_size[0], "eval_resize": shown.resize_size[0]}
    return backbone_in(weights.get_state_dict(progress=False, check_hash=True), f"torchvision:{name}")[0], told
