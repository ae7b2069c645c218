"""Pre-trains a network with TWIST (Wang et al. 2021, arXiv 2110.07402).

    torchrun --nproc_per_node=8 main_twist.py --data-path /path/to/imagenet --output_dir runs/twist --aug barlow \\
        --batch-size 256 --dim 32768 --epochs 800

The defaults of the flags are the published ones: ResNet-50, multi-crop, self-labelling in the last 50 epochs, on 16
GPUs. The method is src/methods/twist.py, its loss src/losses/twist.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from src import cli, pretraining
from src.clock import Clock
from src.data.splits import find_training
from src.data.view_sets import TwistViewSettings
from src.data.views import View
from src.engine.judging import Evaluation
from src.engine.loop import Schedule
from src.engine.method import Scale
from src.engine.monitor import Monitor, number
from src.engine.precision import PrecisionSettings
from src.errors import UserError
from src.evaluation.clustering import class_prediction, clustering_scores
from src.losses.twist import entropy_bound
from src.methods.twist import Twist, TwistModelSettings, TwistSettings
from src.optim.lars import LARS, split_by_adaptation
from src.optim.plain import SGD, adamw
from src.optim.schedules import phased, warmup_cosine
from src.pretraining import Plan, Pretraining, PretrainingSettings, RunSettings
from src.settings import Word, replaced, setting

import torch

# Not one-dimensional, but without weight decay and adaptation all the same
EXEMPT = ("pos_embed", "cls_token", "dist_token")


def _evaluation_only(words: list[str]) -> Mapping[str, Any]:
    if cli.boolean(words[0]):
        raise UserError("--eval_only and --inference_only: that is eval_cluster.py DATA CHECKPOINT")
    return {}


@dataclass(frozen=True)
class OptimSettings:
    """Optimisation"""

    epochs: int = setting(850, "number of epochs", at_least=1, at_most=1e9)
    batch_size: int = setting(128, "number of images of each process in a batch", at_least=1, at_most=1e7)
    optim: str = setting("lars", "optimiser", choices=["lars", "lars_oss", "sgd", "admw", "adamw"])
    lr: float = setting(
        0.5, "learning rate for 256 images; multiplied by the batch of all processes / 256", at_least=0, at_most=1e6
    )
    lr_sl: float = setting(0.05, "the same, in self-labelling", at_least=0, at_most=1e6)
    lr_wbr: float = setting(1.0, "biases and norms have the learning rate lr / lr_wbr", above=0, at_most=1e6)
    warmup_epochs: int = setting(
        10, "number of epochs of linear warm-up; default: 3 of up to 20 epochs, 5 of up to 50, else 10",
        at_least=0, at_most=1e9,
    )  # fmt: skip
    sl_warmup_epochs: int = setting(5, "the same, at the start of self-labelling", at_least=0, at_most=1e9)
    weight_decay: float = setting(1.5e-6, "weight decay at first", at_least=0, at_most=1e3)
    weight_decay_end: float = setting(1.5e-6, "weight decay at last, by a cosine", at_least=0, at_most=1e3)
    exclude_bias_weight_decay: bool = setting(
        True, "biases and norms have no weight decay; false: they have a constant one"
    )
    clip_norm: float = setting(0.0, "bound on the gradient norm; 0 = none", at_least=0, at_most=1e9)


@dataclass(frozen=True)
class WatchSettings:
    """Online evaluation"""

    enable_watch: bool = setting(
        True,
        "compare the classes with labels after every epoch; false: after every tenth",
        words=[
            Word(flag, "0; evaluations are eval_cluster.py", _evaluation_only, nargs=1)
            for flag in ("--eval_only", "--inference_only")
        ],
    )


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting("twist", "method to train", choices=["twist"])
    run: RunSettings = RunSettings(seed=0)
    views: TwistViewSettings = TwistViewSettings()
    model: TwistModelSettings = TwistModelSettings()
    twist: TwistSettings = TwistSettings()
    optim: OptimSettings = OptimSettings()
    watch: WatchSettings = WatchSettings()

    @property
    def plan(self) -> Plan:
        return Plan(self.optim.epochs, self.optim.batch_size, in_all=False, clip_norm=self.optim.clip_norm)

    @property
    def training_size(self) -> int:
        return self.views.main_size

    def adapted(self, given: Mapping[str, Any]) -> tuple[Self, list[str]]:
        """As others do; the warm-up of self-labelling, too, fits its epochs."""
        settings, said = super().adapted(given)
        labelled = self.optim.epochs - self.main_epochs
        if not labelled or "sl_warmup_epochs" in given:
            return settings, said
        warmup = self.optim.sl_warmup_epochs
        if warmup >= labelled:
            fits = round(labelled / 10) or int(labelled > 1)
            settings = replaced(settings, {"sl_warmup_epochs": fits})
            said.append(f"--sl_warmup_epochs is {fits} instead of {warmup}, for {labelled} epochs of self-labelling")
        return settings, said

    def fitted(self, given: Mapping[str, Any], scale: Scale, clock: Clock) -> tuple[Self, list[str]]:
        """As others do; the last norm's statistics are those of images that the processes can share."""
        settings, said = super().fitted(given, scale, clock)
        if "bunch_size" in given or self.model.lbn_type != "bn":
            return settings, said
        bunch = self.model.bunch_that_fits(scale.batch_size, scale.world_size)
        if bunch == self.model.bunch_size:
            return settings, said
        line = (
            f"--bunch_size is {bunch} instead of {self.model.bunch_size}, for {scale.world_size} processes with "
            f"{scale.batch_size} images each"
        )
        return replaced(settings, {"bunch_size": bunch}), [*said, line]

    @property
    def main_epochs(self) -> int:
        """Epochs of the main loss."""
        return self.twist.main_epochs(self.optim.epochs)


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with a warm-up as long as the run allows."""
    epochs = given.get("epochs", OptimSettings.epochs)
    optim = OptimSettings(warmup_epochs=3 if epochs <= 20 else 5 if epochs <= 50 else 10)
    return replaced(Settings(optim=optim, precision=PrecisionSettings.published(True, given)), given)


SCRIPT = cli.Script("Pre-trains a network with TWIST.", Settings(), complete=complete, repeatable=True)


class ViewsByPhase:
    """The views of an epoch, for :class:`src.data.loading.ViewDataset`; loader workers get a copy."""

    def __init__(self, settings: Settings) -> None:
        self.views = {False: settings.views.views(), True: settings.views.harder_views()}
        self.main_epochs = settings.main_epochs

    def __call__(self, epoch: int) -> Sequence[View]:
        return self.views[epoch >= self.main_epochs]


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    if settings.twist.crops_interact_style == "self_label" and settings.main_epochs != settings.optim.epochs:
        raise UserError("--crops_interact_style self_label needs --mme_epochs equal to --epochs")
    path = find_training(settings.data.dataset, settings.data.data_path)
    run = pretraining.start(call, ViewsByPhase(settings), path)
    settings = run.settings
    method = Twist.build(settings.backbone, settings.model, settings.twist, settings.optim.epochs, run.scale)
    pretraining.place(run, method)
    return pretraining.train(
        run,
        method,
        build_optimizer(settings.optim, method),
        schedules(run),
        lambda monitor: echo(run, method, monitor),
        evaluations=watch_classes(run, method),
        derived={"mme_epochs": settings.main_epochs, "local_crops_number": settings.views.local_crops},
    )


def build_optimizer(optim: OptimSettings, method: Twist) -> torch.optim.Optimizer:
    """Two groups: weights, and biases, norms and a transformer's tokens, without weight decay and adaptation."""
    weights, plain = split_by_adaptation(method.named_parameters(), EXEMPT)
    plain |= {
        "lr_scale": 1 / optim.lr_wbr,
        "weight_decay": 0.0 if optim.exclude_bias_weight_decay else optim.weight_decay,
        "weight_decay_fixed": True,
    }
    build = OPTIMIZERS[optim.optim]
    return build([weights, plain], lr=optim.lr, weight_decay=optim.weight_decay)


def _lars(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return LARS(groups, lr=lr, momentum=0.9, weight_decay=weight_decay, variant="twist")


def _sgd(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lars": _lars,
    "lars_oss": _lars,
    "sgd": _sgd,
    "admw": adamw,
    "adamw": adamw,
}


def schedules(run: Pretraining[Settings]) -> dict[str, Schedule]:
    """Learning rate and weight decay, by step."""
    optim, steps, factor = run.settings.optim, run.clock.steps_per_epoch, run.step_batch / 256
    main_epochs = run.settings.main_epochs
    # where nothing is labelled by the network itself, there is no second phase
    sl_warmup, sl_rate = (optim.sl_warmup_epochs, optim.lr_sl) if main_epochs < optim.epochs else (0, 0.0)

    def learning_rate(clock: Clock) -> float:
        return phased(
            clock.step,
            total=clock.total_steps,
            switch=main_epochs * steps,
            warmups=(optim.warmup_epochs * steps, sl_warmup * steps),
            bases=(optim.lr * factor, sl_rate * factor),
        )

    def weight_decay(clock: Clock) -> float:
        return warmup_cosine(clock.step, total=clock.total_steps, base=optim.weight_decay, final=optim.weight_decay_end)

    return {"lr": learning_rate, "weight_decay": weight_decay}


def named(scores: dict[str, float]) -> dict[str, float]:
    """The scores under names that say what they are: the released log's ``acc`` is something else (``views_agree``)."""
    return {"hungarian_acc" if name == "acc" else name: value for name, value in scores.items()}


def watch_classes(run: Pretraining[Settings], method: Twist) -> list[Evaluation]:
    """The classes of the epoch's first views against the labels; and those of the validation images, where there are as
    many classes as labels. Nothing for images without labels."""
    settings = run.settings
    labels = torch.tensor(run.images.labels)
    if (labels < 0).all():
        return []

    def of_training() -> dict[str, float]:
        classes = method.classes_of_the_epoch().cpu().long()
        seen = (classes >= 0) & (labels >= 0)
        return {f"train_{name}": value for name, value in named(clustering_scores(classes[seen], labels[seen])).items()}

    evaluations = [Evaluation(1 if settings.watch.enable_watch else 10, of_training)]
    if settings.model.dim != len(run.images.classes):
        return evaluations
    try:
        images = pretraining.validation_images(run)
    except UserError:
        if settings.knn.val_path:
            raise
        return evaluations  # nobody asked for validation images, and there are none

    def of_validation() -> dict[str, float]:
        found = class_prediction(
            method.backbone,
            method.projection_heads,
            images,
            run.eval_view,
            run.prepare,
            settings.data.workers,
            settings.twist.tau,
        )
        return named(clustering_scores(found.features.argmax(dim=1), found.labels, probabilities=found.features))

    return [*evaluations, Evaluation(1, of_validation)]


def echo(run: Pretraining[Settings], method: Twist, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, factor = run.settings, run.step_batch / 256
    optim, loss, classes = settings.optim, settings.twist, settings.model.dim
    pretraining.echo_data(run, monitor, pretraining.crops_in_words(settings.views.views()))
    pretraining.echo_model(run, monitor, method, f"{classes} classes")
    if method.teacher is not None:
        monitor.say(f"teacher    momentum copy, momentum {loss.momentum_start:g} -> {loss.momentum_end:g}")
    labelled = optim.epochs - settings.main_epochs
    monitor.say(
        f"phases     {settings.main_epochs} epochs of the main loss, {labelled} of self-labelling"
        if loss.crops_interact_style == "sparse"
        else f"phases     {optim.epochs} epochs of self-labelling"
    )
    later = f", {number(optim.lr_sl * factor)} in self-labelling" if labelled else ""
    monitor.say(
        f"lr         {number(optim.lr * factor)} after {optim.warmup_epochs} epochs of warm-up{later}, {optim.optim}"
    )
    monitor.say(
        f"entropies  ln C = {math.log(classes):.3f}; with EPS at most {entropy_bound(classes, loss.EPS):.3f}. "
        "Learning: eh falls, he stays"
    )


if __name__ == "__main__":
    cli.run(main)
