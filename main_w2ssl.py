"""Pre-trains a network with W2SSL (Zhao et al. 2023): what and where, from montages of patches.

    torchrun --nproc_per_node=4 main_w2ssl.py --moco-m-cos --batch-size 512 --loss_crop 1.0 /path/to/imagenet

The defaults of the flags are the published ones. The method is src/methods/w2ssl.py, its montages src/ops/montage.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from src import cli, pretraining
from src.clock import Clock
from src.data.splits import find_training
from src.data.view_sets import W2SSLViewSettings
from src.engine.monitor import Monitor, number
from src.engine.precision import PrecisionSettings
from src.errors import UserError
from src.methods.w2ssl import W2SSL, W2SSLSettings, loss_of_equal_features
from src.optim.lars import LARS, split_by_adaptation
from src.optim.plain import adamw
from src.optim.schedules import fractional_cosine
from src.parallel import sync_bn
from src.pretraining import Plan, Pretraining, PretrainingSettings
from src.settings import replaced, setting

import torch


@dataclass(frozen=True)
class OptimSettings:
    """Optimisation"""

    epochs: int = setting(200, "number of epochs", at_least=1, at_most=1e9)
    batch_size: int = setting(
        512, "number of images in a batch, over all processes; default: 512 (2x2: 256)", flags=["-b"],
        at_least=1, at_most=1e7,
    )  # fmt: skip
    optimizer: str = setting("lars", "optimiser", choices=["lars", "adamw"])
    lr: float = setting(0.6, "learning rate for 256 images", flags=["--learning_rate"], at_least=0, at_most=1e6)
    momentum: float = setting(0.9, "momentum of LARS", at_least=0, below=1)
    wd: float = setting(1e-6, "weight decay", flags=["--weight_decay"], at_least=0, at_most=1e3)
    warmup_epochs: int = setting(
        10, "number of epochs of linear warm-up; default: 10 (2x2: 0)", at_least=0, at_most=1e9
    )
    clip_norm: float = setting(0.0, "bound on the gradient norm; 0 = none", at_least=0, at_most=1e9)
    accumulate: int = setting(1, "old name of --virtual_ranks, for so many times the images", at_least=1, at_most=1e6)
    sync_bn: bool = setting(True, "batch norm statistics of all processes together")

    def base_rate(self, step_batch: int) -> float:
        """By real images, which are twice as many as montages."""
        return self.lr * step_batch / 256


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting("w2ssl", "method to train", choices=["w2ssl"])
    views: W2SSLViewSettings = W2SSLViewSettings()
    w2ssl: W2SSLSettings = W2SSLSettings()
    optim: OptimSettings = OptimSettings()

    @property
    def plan(self) -> Plan:
        optim = self.optim
        return Plan(optim.epochs, optim.batch_size, True, optim.accumulate, optim.clip_norm)

    @property
    def training_size(self) -> int:
        return 2 * self.views.crop_size


HALVES = Settings()
QUARTERS = replace(
    HALVES,
    views=W2SSLViewSettings(grid="2x2", blur=(0.5, 0.1)),
    optim=OptimSettings(batch_size=256, warmup_epochs=0),
)


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the defaults of its grid."""
    base = QUARTERS if given.get("grid") == "2x2" else HALVES
    return replaced(replace(base, precision=PrecisionSettings.published(True, given)), given)


SCRIPT = cli.Script(
    "Pre-trains a network with W2SSL.",
    HALVES,
    positionals=("data_path",),
    complete=complete,
    retired={
        "loss_clu": "it never had an effect: the released code has no such loss",
        "moco_t": "it never had an effect; the temperature is --loss_t",
        "moco_dim": "it never had an effect; the embedding size is --crop_proj_dim",
        "stop_grad_conv1": "it is for transformers, which have no 2x2 map of patches",
    },
    repeatable=True,
)


def check(settings: Settings) -> None:
    """Refuses what cannot be trained, before anything is started."""
    if settings.backbone.arch.startswith("vit"):
        raise UserError("W2SSL needs a feature map, which transformers do not have: choose a convolutional network")


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    check(settings)
    views = settings.views.views()
    run = pretraining.start(call, views, find_training(settings.data.dataset, settings.data.data_path))
    method = W2SSL.build(settings.backbone.build(), settings.w2ssl, len(views) // 2, run.scale)
    if settings.optim.sync_bn:  # the heads see all ranks' rows anyway
        for network in (method.backbone, method.momentum_backbone):
            sync_bn.convert(network, device_type=run.world.device.type, virtual_ranks=run.virtual_ranks)
    pretraining.place(run, method)
    base = settings.optim.base_rate(run.step_batch)

    def learning_rate(clock: Clock) -> float:
        epoch = clock.step / clock.steps_per_epoch
        return fractional_cosine(epoch, epochs=clock.epochs, warmup=settings.optim.warmup_epochs, base=base)

    return pretraining.train(
        run,
        method,
        build_optimizer(settings.optim, method, base),
        {"lr": learning_rate},
        lambda monitor: echo(run, method, monitor),
    )


def build_optimizer(optim: OptimSettings, method: W2SSL, base: float) -> torch.optim.Optimizer:
    """LARS without decay and adaptation of one-dimensional parameters, or AdamW with all alike."""
    if optim.optimizer == "adamw":
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        return adamw(trained, lr=base, weight_decay=optim.wd)
    groups = split_by_adaptation(method.named_parameters())
    return LARS(groups, lr=base, momentum=optim.momentum, weight_decay=optim.wd, variant="moco-v3")


def echo(run: Pretraining[Settings], method: W2SSL, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, optim = run.settings, run.settings.optim
    views, losses = settings.views, settings.w2ssl
    images = run.step_batch
    pretraining.echo_data(run, monitor, f"2x{method.parts} patches of {views.crop_size}")
    monitor.say(
        f"montages   {images * method.parts // 4} of {2 * views.crop_size} pixels a view and step, of the "
        f'{images * method.parts} patches of {images} images (the papers\' "BS {images // 2}" is --batch_size {images})'
    )
    pretraining.echo_model(run, monitor, method)
    base = number(optim.base_rate(run.step_batch))
    monitor.say(f"lr         {base} ({optim.optimizer}, {optim.lr:g} for 256 images), weight decay {optim.wd:g}")
    nothing = loss_of_equal_features(images, method.parts, losses.loss_t)
    monitor.say(
        f"loss       what: {nothing:.2f} means that nothing is told apart; where: {100 / method.parts:g} % is chance"
    )
    if losses.loss_crop != 1.0:
        monitor.warn(f"--loss_crop {losses.loss_crop:g}: every published run has --loss_crop 1.0")
    if not losses.moco_m_cos:
        monitor.warn("every published run has --moco-m-cos")
    if views.flip == "patch" and views.grid != "2x1" and losses.loss_loc:
        monitor.warn(
            "patches are flipped one by one, as published, so left and right look alike and where stays at chance; "
            "--flip none makes it learnable"
        )


if __name__ == "__main__":
    cli.run(main)
