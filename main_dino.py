"""Pre-trains a network with DINO (Caron et al. 2021, arXiv 2104.14294).

    torchrun --nproc_per_node=8 main_dino.py --arch vit_s --data_path /path/to/imagenet --dump_path runs/dino

The defaults of the flags are the published ones. The method is src/methods/dino.py, its loss src/losses/dino.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src import cli, pretraining
from src.clock import Clock
from src.data.splits import find_training
from src.data.view_sets import TwistViewSettings
from src.engine.monitor import Monitor, number
from src.engine.precision import PrecisionSettings
from src.methods.dino import Dino, DinoSettings
from src.models.backbones import BackboneSpec
from src.models.backbones.resnet import RESNETS
from src.optim.lars import split_by_adaptation
from src.optim.plain import SGD, adamw
from src.optim.schedules import warmup_cosine
from src.parallel import sync_bn
from src.pretraining import Plan, Pretraining, PretrainingSettings, RunSettings
from src.settings import replaced, setting

import torch


@dataclass(frozen=True)
class OptimSettings:
    """Optimisation"""

    epochs: int = setting(100, "number of epochs", at_least=1, at_most=1e9)
    batch_size: int = setting(
        64, "number of images of each process in a batch", flags=["--batch_size_per_gpu"], at_least=1, at_most=1e7
    )
    optimizer: str = setting("adamw", "optimiser", choices=["adamw", "sgd"])
    lr: float = setting(0.0005, "learning rate for 256 images", at_least=0, at_most=1e6)
    min_lr: float = setting(1e-6, "learning rate at the end", at_least=0, at_most=1e6)
    warmup_epochs: int = setting(10, "number of epochs of linear warm-up", at_least=0, at_most=1e9)
    weight_decay: float = setting(0.04, "weight decay at first", at_least=0, at_most=1e3)
    weight_decay_end: float = setting(0.4, "weight decay at last, by a cosine", at_least=0, at_most=1e3)
    drop_path_rate: float = setting(
        0.1, "stochastic depth of transformers; default: 0.1 (ResNets: 0)", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting("dino", "method to train", choices=["dino"])
    backbone: BackboneSpec = BackboneSpec("vit_s")
    run: RunSettings = RunSettings(seed=0)
    views: TwistViewSettings = TwistViewSettings(local_crops_number=8)  # TWIST took them over from DINO
    dino: DinoSettings = DinoSettings()
    optim: OptimSettings = OptimSettings()

    @property
    def plan(self) -> Plan:
        return Plan(self.optim.epochs, self.optim.batch_size, in_all=False)

    @property
    def training_size(self) -> int:
        return self.views.main_size


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given; our ResNets have no stochastic depth."""
    resnet = given.get("arch") in RESNETS
    optim = OptimSettings(drop_path_rate=0.0 if resnet else 0.1)
    return replaced(Settings(optim=optim, precision=PrecisionSettings.published(True, given)), given)


SCRIPT = cli.Script("Pre-trains a network with DINO.", Settings(), complete=complete, repeatable=True)


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings, optim = call.settings, call.settings.optim
    path = find_training(settings.data.dataset, settings.data.data_path)
    run = pretraining.start(call, settings.views.views(), path)
    method = Dino(settings.backbone.build(optim.drop_path_rate), settings.dino)
    sync_bn.convert(method, device_type=run.world.device.type, virtual_ranks=run.virtual_ranks)
    pretraining.place(run, method)
    base = optim.lr * run.step_batch / 256

    def learning_rate(clock: Clock) -> float:
        warmup = optim.warmup_epochs * clock.steps_per_epoch
        return warmup_cosine(clock.step, total=clock.total_steps, warmup=warmup, base=base, final=optim.min_lr)

    def weight_decay(clock: Clock) -> float:
        return warmup_cosine(clock.step, total=clock.total_steps, base=optim.weight_decay, final=optim.weight_decay_end)

    schedules = {"lr": learning_rate, "weight_decay": weight_decay}
    optimizer = build_optimizer(optim, method)
    return pretraining.train(run, method, optimizer, schedules, lambda monitor: echo(run, method, monitor))


def build_optimizer(optim: OptimSettings, method: Dino) -> torch.optim.Optimizer:
    """Weights, and biases and norms without weight decay."""
    weights, plain = split_by_adaptation(method.named_parameters())
    groups = [weights, {**plain, "weight_decay": 0.0, "weight_decay_fixed": True}]
    if optim.optimizer == "sgd":
        return SGD(groups, lr=optim.lr, momentum=0.9, weight_decay=optim.weight_decay)
    return adamw(groups, lr=optim.lr, weight_decay=optim.weight_decay)


def echo(run: Pretraining[Settings], method: Dino, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, optim = run.settings, run.settings.optim
    pretraining.echo_data(run, monitor, pretraining.crops_in_words(settings.views.views()))
    pretraining.echo_model(run, monitor, method, f"{settings.dino.out_dim} outputs")
    base = number(optim.lr * run.step_batch / 256)
    monitor.say(f"lr         {base} after {optim.warmup_epochs} epochs of warm-up, {optim.optimizer}")


if __name__ == "__main__":
    cli.run(main)
