"""The protocols by which the papers train a classifier on a backbone: what differs between them, as a table.

A protocol gives the defaults of the flags and the rules behind them; every value can be overridden by its flag.
"""

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from ..data.datasets import IMAGENET_STD, SWAV_STD
from ..errors import UserError
from ..settings import setting


@dataclass(frozen=True)
class Protocol:
    """How one paper trains a classifier, frozen or with the backbone.

    Attributes:
        source: the program that it comes from.
        lr, lr_backbone: learning rates of the classifier and, when it is trained, of the backbone.
        lr_per_256: they hold for 256 images a step, and are multiplied by batch / 256.
        batch_size: images of a step.
        batch_in_all: over all processes; otherwise for each.
        wd: weight decay.
        scheduler_type: ``cosine`` to zero, ``step``, or ``exponential`` to ``final_lr``; a rate is constant within an
            epoch.
        final_lr: where it ends.
        optimizer: ``sgd``, ``larc`` or ``adam``.
        features: ``augmented`` or ``cached``, see the flag.
        decay_epochs, gamma: of ``step``: the rate is multiplied by gamma from each of these epochs on.
        std: standard deviations that the published weights were normalised with.
        bicubic: crops are resized bicubically, not bilinearly.
        whole_image: test images are resized to the crop, not to 256/224 of it.
        weights: ``freeze`` or ``finetune``.
        sync_bn: batch norm of a trained backbone takes its statistics over all processes.
        normal_init: the classifier's weights start from N(0, 0.01); otherwise as torch's linear layers do.
        n_last_blocks: of a transformer, whose class tokens are concatenated.
        labels_perc: share of the labels.
        by_percent: other values for some shares of the labels.
    """

    source: str
    lr: float
    epochs: int = 100
    lr_backbone: float = 0.0
    lr_per_256: bool = False
    batch_size: int = 256
    batch_in_all: bool = True
    wd: float = 0.0
    scheduler_type: str = "cosine"
    final_lr: float = 0.0
    optimizer: str = "sgd"
    features: str = "augmented"
    decay_epochs: tuple[int, ...] = (60, 80)
    gamma: float = 0.1
    std: tuple[float, ...] = IMAGENET_STD
    bicubic: bool = False
    whole_image: bool = False
    weights: str = "freeze"
    sync_bn: bool = False
    normal_init: bool = True
    n_last_blocks: int = 1
    labels_perc: float = 100
    by_percent: dict[float, dict[str, Any]] = field(default_factory=dict)


LINEAR = {
    "swav": Protocol("SwAV's eval_linear.py", lr=0.3, wd=1e-6, batch_size=32, batch_in_all=False, std=SWAV_STD),
    "barlow": Protocol("TWIST's (Barlow Twins') evaluate.py", lr=0.3, wd=1e-6),
    "intl": Protocol("INTL's evaluate.py", lr=0.2, lr_per_256=True, scheduler_type="step"),
    "cwrgp": Protocol("CW-RGP's main_lincls.py", lr=0.1, lr_per_256=True, batch_size=1024),
    "small": Protocol(
        "the small-data evaluation of INTL, CW-RGP and W-MSE",
        lr=0.01,
        epochs=500,
        batch_size=1000,
        wd=5e-6,
        scheduler_type="exponential",
        final_lr=1e-6,
        optimizer="adam",
        features="cached",
    ),
    "moco": Protocol(
        "MoCo's and DisCo's main_lincls.py",
        lr=30.0,
        scheduler_type="step",
        decay_epochs=(5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 80),
        gamma=0.5,
    ),
    "cifar": Protocol(
        "DisCo's cifar_main_lincls.py",
        lr=1e-3,
        epochs=120,
        scheduler_type="step",
        decay_epochs=(),
        gamma=0.5,
        bicubic=True,
        whole_image=True,
    ),
    "w2ssl": Protocol("W2SSL's main_lincls.py", lr=0.1, lr_per_256=True),
    "jig": Protocol("W2SSL's jig_lincls.py", lr=30.0, lr_per_256=True, scheduler_type="step"),
    "vit": Protocol(
        "TWIST's evaluate_vitlinear.py",
        lr=0.001,
        lr_per_256=True,
        batch_size=128,
        batch_in_all=False,
        bicubic=True,
        n_last_blocks=4,
    ),
}

SEMISUP = {
    "swav": Protocol(
        "SwAV's eval_semisup.py",
        lr=0.2,
        lr_backbone=0.01,
        epochs=20,
        batch_size=32,
        batch_in_all=False,
        scheduler_type="step",
        decay_epochs=(12, 16),
        gamma=0.2,
        std=SWAV_STD,
        weights="finetune",
        sync_bn=True,
        normal_init=False,
        labels_perc=10,
        by_percent={1: {"lr": 5.0, "lr_backbone": 0.02}},
    ),
    "barlow": Protocol(
        "TWIST's (Barlow Twins') evaluate.py --weights finetune",
        lr=0.2,
        lr_backbone=0.02,
        epochs=20,
        weights="finetune",
        by_percent={1: {"lr_backbone": 0.04}, 100: {"lr_backbone": 0.01, "epochs": 30}},
    ),
    # 20 epochs never reach the steps: the published runs have constant rates
    "intl": Protocol(
        "INTL's evaluate.py --weights finetune",
        lr=0.2,
        lr_backbone=0.004,
        lr_per_256=True,
        epochs=20,
        scheduler_type="step",
        weights="finetune",
    ),
    # frozen in spite of its name; the data folder is the share of the labels
    "moco": Protocol("DisCo's main_lincls_semi.py", lr=30.0, scheduler_type="step", gamma=0.5),
    # W2SSL names MoCo-v3's transfer and no values for a ResNet; these are usual ones
    "transfer": Protocol(
        "fine-tuning on small sets, as MoCo-v3 transfers", lr=0.01, lr_backbone=0.01, epochs=100, batch_size=128,
        weights="finetune", bicubic=True, sync_bn=True,
    ),
}  # fmt: skip
TRANSFERS = ("cifar10", "cifar100", "flowers102", "oxford_pets")

# The families of src/layouts.py and the methods of our runs -> how their papers judge them
OF_FAMILY = {
    "swav": "swav",
    "deepcluster-v2": "swav",
    "sela-v2": "swav",
    "twist": "barlow",
    "intl": "intl",
    "intl_m": "intl",
    **dict.fromkeys(("cw-rgp", "cwrgp", "wmse", "pca", "bn", "plain"), "cwrgp"),
    **dict.fromkeys(("contrastive", "byol", "simsiam", "barlowtwins", "vicreg", "zero_icl"), "cwrgp"),
    **dict.fromkeys(("moco", "moco-v2", "disco", "rkd", "seed"), "moco"),
    "moco-v3": "w2ssl",
    "w2ssl": "w2ssl",
}
# Sets that a protocol's paper judges by the small-data evaluation
SMALL_SETS = {
    "intl": ("cifar10", "cifar100", "stl10", "tiny_in"),
    "cwrgp": ("cifar10", "cifar100", "stl10", "tiny_in", "in100"),
}


def choose(
    table: dict[str, Protocol],
    asked: str,
    family: str,
    is_transformer: bool,
    flags: Set[str],
    dataset: str = "folder",
) -> tuple[str, str]:
    """The name of a protocol, and why it is that one.

    Args:
        table: LINEAR or SEMISUP.
        asked: ``--protocol``; ``auto`` is the one of the weights' paper, else the one whose flags were used.
        family: of the weights, "" if they do not tell.
        is_transformer: the backbone is one.
        flags: names of the flags on the command line.
        dataset: ``--dataset``.
    """
    if asked not in ("auto", *table):
        raise UserError(f"--protocol {asked}: invalid choice, expected auto, {', '.join(table)}")
    if asked != "auto":
        return asked, "asked for"
    if is_transformer and "vit" in table and (family in ("", "twist", "dino") or "pretrained_weights" in flags):
        return "vit", "a vision transformer"
    if "small" in table and dataset in SMALL_SETS.get(OF_FAMILY.get(family, ""), ()):
        return "small", "small data in those papers"
    if "cifar" in table and dataset in ("cifar10", "cifar100") and OF_FAMILY.get(family) == "moco":
        return "cifar", "DisCo's transfer to CIFAR"
    if "transfer" in table and dataset in TRANSFERS and OF_FAMILY.get(family) == "w2ssl":
        return "transfer", "W2SSL's transfer to small sets"
    if OF_FAMILY.get(family) in table:
        return OF_FAMILY[family], "that of the weights' paper"
    for name, tell_tale in (
        ("barlow", {"lr_classifier", "train_percent", "train_perc", "weights", "checkpoint_dir"}),
        ("moco", {"learning_rate", "multiprocessing_distributed"}),
    ):
        if flags & tell_tale:
            return name, "inferred from the flags"
    return "swav", "the method of the weights is unknown"


@dataclass(frozen=True)
class ClassifierSettings:
    """Classifier (defaults: the protocol's)"""

    weights: str | None = setting(None, "train the classifier only, or everything", choices=["freeze", "finetune"])
    features: str | None = setting(
        None,
        "augmented: a forward pass on random crops every epoch (the published protocols); cached: one pass on centre "
        "crops, then the classifiers train on its features, minutes instead of hours (frozen backbones)",
        choices=["augmented", "cached"],
    )
    epochs: int | None = setting(None, "number of epochs", at_least=1, at_most=1e9)
    batch_size: int | None = setting(
        None, "number of images in a batch, of all processes or of each: see below",
        flags=["--bs", "--batch_size_per_gpu", "-b"], at_least=1, at_most=1e7,
    )  # fmt: skip
    lr: tuple[float, ...] | None = setting(None, "learning rate of the classifier", above=0, at_most=1e6)
    lr_backbone: float | None = setting(None, "learning rate of the backbone", at_least=0, at_most=1e6)
    wd: float | None = setting(None, "weight decay", flags=["--weight_decay"], at_least=0, at_most=1e3)
    momentum: float = setting(0.9, "momentum of SGD", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov momentum")
    optimizer: str | None = setting(
        None,
        "optimiser; lbfgs: scikit-learn's logistic regression on cached features, without epochs and rates",
        choices=["sgd", "larc", "adam", "lbfgs"],
    )
    scheduler_type: str | None = setting(
        None, "course of the learning rates", choices=["cosine", "step", "exponential"]
    )
    final_lr: float | None = setting(None, "the first learning rate at the end; not with step", at_least=0, at_most=1e6)
    decay_epochs: tuple[int, ...] | None = setting(
        None, "epochs of the step schedule", empty=True, at_least=0, at_most=1e9
    )
    gamma: float | None = setting(None, "factor of the step schedule", at_least=0, at_most=1000)
    bicubic: bool | None = setting(None, "crops are resized bicubically, not bilinearly")
    global_pooling: bool = setting(True, "pooled features; false: 2x2 positions (ResNets only)")
    use_bn: bool = setting(False, "batch norm before the classifier, only without global pooling")
    n_last_blocks: int | None = setting(
        None, "number of last blocks of a transformer whose class tokens are used", at_least=1, at_most=1000
    )
    avgpool_patchtokens: bool = setting(False, "also use the mean of a transformer's patch tokens")


@dataclass(frozen=True)
class Recipe:
    """How the classifiers are trained: what the user gave, completed by the protocol.

    Attributes:
        batch_size: images of a process.
        lr_factor: what the learning rates are multiplied by.
        and the others as in :class:`ClassifierSettings` and :class:`Protocol`.
    """

    protocol: Protocol
    labels_perc: float
    weights: str
    features: str
    epochs: int
    batch_size: int
    lr: tuple[float, ...]
    lr_backbone: float
    lr_factor: float
    wd: float
    optimizer: str
    scheduler_type: str
    final_lr: float
    decay_epochs: tuple[int, ...]
    gamma: float
    bicubic: bool
    n_last_blocks: int

    def plain(self) -> dict[str, Any]:
        """What checkpoints hold of it."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        del values["protocol"]
        return values


def resolve(given: ClassifierSettings, labels_perc: float | None, protocol: Protocol, world_size: int) -> Recipe:
    """Completes what was given by the protocol; raises UserError for a batch that cannot be shared out."""
    labels_perc = protocol.labels_perc if labels_perc is None else labels_perc
    defaults = {**vars(protocol), **protocol.by_percent.get(labels_perc, {})}
    defaults["lr"] = (defaults["lr"],)
    if given.optimizer == "lbfgs":
        defaults["features"] = "cached"

    def value(name: str) -> Any:
        typed = getattr(given, name)
        return defaults[name] if typed is None else typed

    batch_size = value("batch_size")
    if protocol.batch_in_all:
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size} cannot be shared out over {world_size} processes")
        batch_size //= world_size
    names = (
        *("weights", "features", "epochs", "lr", "lr_backbone", "wd", "optimizer", "scheduler_type", "final_lr"),
        *("decay_epochs", "gamma", "bicubic", "n_last_blocks"),
    )
    return Recipe(
        protocol=protocol,
        labels_perc=labels_perc,
        batch_size=batch_size,
        lr_factor=batch_size * world_size / 256 if protocol.lr_per_256 else 1.0,
        **{name: value(name) for name in names},
    )


def describe(table: dict[str, Protocol]) -> str:
    """The table for ``--help``."""
    lines = ["protocols (defaults of the flags):"]
    for name, p in table.items():
        batch = f"{p.batch_size} images {'in all' if p.batch_in_all else 'for each process'}"
        rate = f"lr {p.lr:g}{' per 256 images' if p.lr_per_256 else ''}"
        if p.weights == "finetune":
            rate += f", backbone's {p.lr_backbone:g}"
        schedule = p.scheduler_type if p.optimizer == "sgd" else f"{p.scheduler_type}, {p.optimizer}"
        if schedule == "step":
            schedule = f"x {p.gamma:g} at {' '.join(map(str, p.decay_epochs))}"
        lines.append(f"  {name:<8}{p.source}: {p.weights}, {p.epochs} epochs, {batch}, {rate}, wd {p.wd:g}, {schedule}")
    return "\n".join(lines)
