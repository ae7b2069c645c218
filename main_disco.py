"""Pre-trains a network with MoCo-v2, or distils a small one: DisCo (arXiv 2104.09124), RKD, SEED and others.

    V2="--mlp --moco-t 0.2 --aug-plus --cos"
    torchrun --nproc_per_node=8 main_disco.py -a resnet50 $V2 --hidden 2048 /path/to/imagenet
    torchrun --nproc_per_node=8 main_disco.py -a efficientb0 $V2 --teacher moco_r50.pth.tar /path/to/imagenet

The defaults of the flags are those of the published programs, which are MoCo-v1's. The methods are
src/methods/{moco,disco}.py and src/methods/baselines/seed.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src import cli, pretraining
from src.clock import Clock
from src.data.splits import find_training
from src.data.view_sets import MoCoViewSettings
from src.data.views import RandomView
from src.engine.monitor import Monitor, number
from src.engine.precision import PrecisionSettings
from src.errors import UserError
from src.methods.baselines.seed import SEED
from src.methods.disco import MAPS, REFERENCE_BATCH, DisCo, DistillationSettings, mse_factor
from src.methods.moco import MoCo, MoCoHeadSettings, MoCoSettings
from src.methods.queue_base import QueueMethod
from src.models.backbones import ResidualStart, feature_width
from src.models.teacher import Teacher
from src.optim.plain import SGD
from src.optim.schedules import multistep, warmup_cosine
from src.pretraining import Plan, Pretraining, PretrainingSettings
from src.settings import Word, replaced, setting

from torch import nn


def _no_prototypes(words: list[str]) -> Mapping[str, Any]:
    if words != ["0"]:
        raise UserError("--nmb_prototypes: a teacher's prototype scores are no embeddings; leave it at 0")
    return {}


@dataclass(frozen=True)
class OptimSettings:
    """Optimisation"""

    epochs: int = setting(200, "number of epochs", at_least=1, at_most=1e9)
    batch_size: int = setting(
        256, "number of images in a batch, over all processes", flags=["-b"], at_least=1, at_most=1e7
    )
    lr: float = setting(
        0.03, "learning rate: 0.03 for 256 images; never scaled for you", flags=["--learning_rate"],
        at_least=0, at_most=1e6,
    )  # fmt: skip
    momentum: float = setting(0.9, "momentum of SGD", at_least=0, below=1)
    wd: float = setting(1e-4, "weight decay, on every parameter", flags=["--weight_decay"], at_least=0, at_most=1e3)
    cos: bool = setting(False, "learning rate by a cosine to zero, by epoch; otherwise by steps", switch=True)
    schedule: tuple[int, ...] = setting(
        (120, 160), "epochs at which the learning rate is multiplied by 0.1", empty=True, at_least=0, at_most=1e9
    )
    clip_norm: float = setting(0.0, "bound on the gradient norm; 0 = none", at_least=0, at_most=1e9)
    accumulate: int = setting(1, "old name of --virtual_ranks, for so many times the images", at_least=1, at_most=1e6)


# What each method adds to the contrastive loss
DISTILLS: dict[str, tuple[str, ...]] = {
    "moco": (),
    "disco": ("mse",),
    "rkd": ("rkd_distance", "rkd_angle"),
    "seed": (),
}


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting(
        "moco",
        "method to train; default: disco with a --teacher, else moco",
        choices=tuple(DISTILLS),
        words=[Word("--nmb_prototypes", "the published code's flag; only 0 has a meaning", _no_prototypes, nargs=1)],
    )
    start: ResidualStart = ResidualStart()
    views: MoCoViewSettings = MoCoViewSettings()
    head: MoCoHeadSettings = MoCoHeadSettings()
    moco: MoCoSettings = MoCoSettings()
    distillation: DistillationSettings = DistillationSettings()
    optim: OptimSettings = OptimSettings()

    @property
    def plan(self) -> Plan:
        optim = self.optim
        return Plan(optim.epochs, optim.batch_size, True, optim.accumulate, optim.clip_norm)

    @property
    def training_size(self) -> int:
        return self.views.crop_size


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the defaults of its method."""
    given = {name: value for name, value in given.items() if (name, value) != ("distill", ())}
    use_mse = given.get("use_mse", False)
    method = given.get("method") or ("rkd" if use_mse else "disco" if given.get("teacher") else "moco")
    terms = DISTILLS[method] + (("mse",) if use_mse and method == "rkd" else ())
    large = given.get("arch") in ("efficientb5", "efficientnet_b5")
    base = Settings(
        method=method,
        start=ResidualStart(method == "moco"),
        views=MoCoViewSettings(crop_size=456 if large else 224, blur=0.5 if given.get("aug_plus") else 0.0),
        head=MoCoHeadSettings(hidden=2048 if method in ("disco", "rkd") else -1),
        distillation=DistillationSettings(distill=terms),
        precision=PrecisionSettings.published(False, given),
    )
    return replaced(base, given)


SCRIPT = cli.Script(
    "Pre-trains a network with MoCo-v2, or distils a small one from a frozen teacher.",
    Settings(),
    positionals=("data_path",),
    complete=complete,
    retired={"resume_ckpt": "runs resume by themselves"},
    repeatable=True,
)


def check(settings: Settings) -> None:
    """Refuses what cannot be trained, before anything is started."""
    method, teacher = settings.method, settings.distillation.teacher
    if method != "moco" and not teacher:
        raise UserError(f"--method {method} needs a --teacher")
    if method == "moco" and teacher:
        raise UserError("--method moco has no teacher: --method disco, rkd or seed distils")
    if settings.distillation.distill and method in ("moco", "seed"):
        raise UserError(f"--distill goes with --method disco or rkd, not with {method}")
    if settings.moco.moco_k < settings.optim.batch_size:
        raise UserError(
            f"--moco_k {settings.moco.moco_k} does not hold one batch of {settings.optim.batch_size} images"
        )


def views_of(settings: Settings) -> Sequence[RandomView]:
    return settings.views.views()[: 1 if settings.method == "seed" else 2]


Build = Callable[[Settings, nn.Module, nn.Module, Any], QueueMethod]


def _moco(settings: Settings, backbone: nn.Module, head: nn.Module, _: None) -> MoCo:
    return MoCo(backbone, head, **_contrast(settings))


def _disco(settings: Settings, backbone: nn.Module, head: nn.Module, teacher: Teacher) -> DisCo:
    return DisCo.build(backbone, head, teacher, settings.distillation, _contrast(settings))


def _seed(settings: Settings, backbone: nn.Module, head: nn.Module, teacher: Teacher) -> SEED:
    options = settings.moco.queue_options(settings.head.moco_dim, settings.start.zero_init_residual)
    temperatures = settings.moco.moco_t, settings.distillation.teacher_temperature
    return SEED(backbone, head, teacher, temperature=temperatures[0], teacher_temperature=temperatures[1], **options)


def _contrast(settings: Settings) -> dict[str, Any]:
    return settings.moco.options(settings.head.moco_dim, settings.start.zero_init_residual, settings.run.seed)


METHODS: dict[str, Build] = {"moco": _moco, "disco": _disco, "rkd": _disco, "seed": _seed}


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    check(settings)
    path = find_training(settings.data.dataset, settings.data.data_path)
    run = pretraining.start(call, views_of(settings), path)
    settings.moco.check_parts(run.batch_size)
    needs_head = settings.method == "seed" or bool(set(settings.distillation.distill) - set(MAPS))
    teacher = settings.distillation.load(settings.moco.bn_parts, needs_head, run.world.device)
    if teacher is not None and settings.speed.compile:
        teacher.backbone.compile(dynamic=False)
    backbone = settings.backbone.build()
    head = settings.head.build(feature_width(backbone))
    method = METHODS[settings.method](settings, backbone, head, teacher)
    pretraining.place(run, method)
    optim = settings.optim
    optimizer = SGD(
        (parameter for parameter in method.parameters() if parameter.requires_grad),
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.wd,
    )

    def learning_rate(clock: Clock) -> float:
        """Constant within an epoch."""
        if optim.cos:
            return warmup_cosine(clock.epoch, total=clock.epochs, base=optim.lr)
        return multistep(clock.epoch, base=optim.lr, milestones=optim.schedule, gamma=0.1)

    return pretraining.train(
        run,
        method,
        optimizer,
        {"lr": learning_rate},
        lambda monitor: echo(run, method, teacher, monitor),
        derived={"teacher_sha256": ""} if teacher is None else teacher.identity,
    )


def echo(run: Pretraining[Settings], method: QueueMethod, teacher: Teacher | None, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, optim, contrast = run.settings, run.settings.optim, run.settings.moco
    pretraining.echo_data(run, monitor, pretraining.crops_in_words(views_of(settings)))
    widths = " -> ".join(str(m.out_features) for m in method.head.modules() if isinstance(m, nn.Linear))
    pretraining.echo_model(run, monitor, method, f"head {widths}")
    steps = "cosine" if optim.cos else f"x 0.1 at {list(optim.schedule)}"
    monitor.say(f"lr         {number(optim.lr)} ({steps}), weight decay {optim.wd:g}")
    monitor.say(f"queue      {contrast.moco_k} embeddings, temperature {contrast.moco_t:g}")
    if not (settings.head.mlp and settings.views.aug_plus and optim.cos):
        monitor.warn(
            "MoCo-v2 and DisCo are published with --mlp --aug_plus --cos --moco_t 0.2; without them it is MoCo-v1"
        )
    if settings.method != "seed" and run.ranks * contrast.bn_parts == 1:
        monitor.warn(
            "one batch norm sees queries and keys of the same images, which lets the network cheat; --bn_parts 8 (of "
            "at least 8 images each) shuffles keys as eight GPUs would"
        )
    if teacher is not None:
        echo_teacher(run, method, teacher, monitor)


def echo_teacher(run: Pretraining[Settings], method: QueueMethod, teacher: Teacher, monitor: Monitor) -> None:
    own = run.settings.distillation
    monitor.say(f"teacher    {teacher.description}, batch norms in {own.teacher_mode} mode")
    if own.init_queue_from_teacher and teacher.queue is not None and isinstance(method, MoCo):
        if teacher.queue.shape == method.queue.shape:
            monitor.say("queue      starts with the teacher's keys, as published (--init_queue_from_teacher false)")
        else:
            monitor.warn(f"the teacher's queue is {tuple(teacher.queue.shape)}: the student's starts at random")
    if "mse" not in own.distill:
        return
    weight = own.distill_weight * mse_factor(own.distill_norm, run.batch_size) * run.batch_size
    monitor.say(
        f"distil     {' + '.join(own.distill)}; beside the contrastive loss an image's squared error weighs {weight:g} "
        f"times (published: {REFERENCE_BATCH})"
    )
    if weight != REFERENCE_BATCH and own.distill_norm == "sum":
        monitor.warn(
            f"the published weight {REFERENCE_BATCH} is that of {REFERENCE_BATCH} images on each of 8 GPUs; "
            "--distill_norm ref32 keeps it whatever the batch of a process"
        )


if __name__ == "__main__":
    cli.run(main)
