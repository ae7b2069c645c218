"""A small checkpoint of every family, in the published layout and of our own runs, with the backbone it holds."""

from pathlib import Path

from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.methods.moco import MoCo
from src.models.backbones import create_backbone
from src.models.heads import projector

import torch
from torch import nn

PREFIXES: dict[str, tuple[str, dict[str, str]]] = {
    # family: prefix of the backbone, other entries (name: what is copied there)
    "swav": ("module.", {"module.projection_head.0.weight": "x", "module.prototypes.weight": "x"}),
    "twist": ("module.backbone.", {"module.projection_heads.last_linear.weight": "x"}),
    "intl": ("module.backbone.", {"module.projection.0.weight": "x"}),
    "moco": ("module.encoder_q.", {"module.encoder_q.fc.0.weight": "x", "module.queue": "x"}),
    "disco": ("module.encoder_q.", {"module.teacher_encoder_q.conv1.weight": "x", "module.queue": "x"}),
    "w2ssl": ("module.base_encoder.", {"module.base_encoder.fc_crop.0.weight": "x", "module.predictor.0.weight": "x"}),
    "torchvision": ("", {"fc.weight": "x", "fc.bias": "x"}),
}


def network(arch: str = "resnet50") -> nn.Module:
    """With statistics and scales that are not the start's, so that a mistake shows."""
    torch.manual_seed(0)
    backbone = create_backbone(arch)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return backbone.eval()


def save(family: str, path: Path, arch: str = "resnet50") -> nn.Module:
    """Writes the file and returns the backbone that is in it."""
    backbone = network(arch)
    if family == "ours":
        method = MoCo(backbone, projector(backbone.feature_width, 4, 4, batch_norm=False), dim=4, queue_columns=8)
        for name, tensor in network(arch).state_dict().items():  # the method gave it a start of its own
            method.backbone.state_dict()[name].copy_(tensor)
        state = RunState(
            method, torch.optim.SGD([method.head[0].weight], lr=0.1), torch.amp.GradScaler("cpu", enabled=False),
            Clock(3, 4), 8,
        )  # fmt: skip
        folder = path.parent / "run"
        CheckpointStore(folder, {"method": "moco", "arch": arch}).save(state)
        path.write_bytes((folder / "checkpoint.pth.tar").read_bytes())
        return method.backbone.eval()
    prefix, others = PREFIXES[family]
    content = {f"{prefix}{name}": tensor for name, tensor in backbone.state_dict().items()}
    content |= dict.fromkeys(others, torch.zeros(2, 2))
    torch.save({"state_dict": content}, path)
    return backbone


FAMILIES: list[str] = ["ours", *PREFIXES]
