"""The flags of eval_linear.py and eval_semisup.py, under the names of all programs whose commands they serve."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cli import Script
from ..engine.precision import PrecisionSettings
from ..models import zoo
from ..models.backbones import STEMS
from ..models.pretrained import name_of_weights
from ..settings import Word, setting
from .information import InformationSettings
from .protocols import LINEAR, SEMISUP, ClassifierSettings, describe
from .subject import EvaluationSettings


def _schedule(words: list[str]) -> Mapping[str, Any]:
    """``--schedule`` means a kind in INTL's program and epochs in MoCo's."""
    kinds = {"cos": "cosine", "cosine": "cosine", "step": "step"}
    if len(words) == 1 and words[0] in kinds:
        return {"scheduler_type": kinds[words[0]]}
    if not all(word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"{' '.join(words)}: expected cos, step, or epochs")
    return {"scheduler_type": "step", "decay_epochs": tuple(map(int, words))}


@dataclass(frozen=True)
class LinearClassifierSettings(ClassifierSettings):
    """Classifier (defaults: the protocol's)"""

    lr: tuple[float, ...] | None = setting(
        None, "learning rate of the classifier; several train several classifiers",
        flags=["--learning_rate", "--lr_classifier"], above=0, at_most=1e6,
    )  # fmt: skip
    lr_backbone: float | None = setting(
        None, "learning rate of the backbone, with --weights finetune", at_least=0, at_most=1e6
    )


@dataclass(frozen=True)
class SemisupClassifierSettings(ClassifierSettings):
    """Classifier (defaults: the protocol's)"""

    lr: tuple[float, ...] | None = setting(
        None, "learning rate of the classifier; several train several classifiers", own_flag=False,
        flags=["--lr_last_layer", "--lr_classifier", "--learning_rate"], above=0, at_most=1e6,
    )  # fmt: skip
    lr_backbone: float | None = setting(
        None, "learning rate of the backbone, with --weights finetune", own_flag=False,
        flags=["--lr", "--lr_backbone"], at_least=0, at_most=1e6,
    )  # fmt: skip


@dataclass(frozen=True)
class ProtocolSettings:
    """Protocol"""

    protocol: str = setting(
        "auto",
        "whose rules and defaults, see below; auto: those of the weights' paper, else of the program whose flags are "
        "used",
        words=[
            Word("--schedule", "cos, step, or the epochs of the step schedule", _schedule, nargs="*"),
            Word("--cos", "the same as --schedule cos", lambda _: {"scheduler_type": "cosine"}),
            Word("--lars", "the same as --optimizer larc", lambda _: {"optimizer": "larc"}),
        ],
    )


@dataclass(frozen=True)
class LabelSettings:
    """Labels"""

    labels_perc: float | None = setting(
        None, "share of the labels, in percent; default: the protocol's", flags=["--train_percent", "--train_perc"],
        above=0, at_most=100,
    )  # fmt: skip
    subset_file: str | None = setting(
        None,
        "list of the training images, a file name on each line, such as SimCLR's 1percent.txt; without one the share "
        "is drawn with --seed, equally many images of each class",
    )
    parity_drop_first: bool = setting(False, "leave out the list's first name, as DisCo's copy script did", switch=True)


@dataclass(frozen=True)
class TeacherSettings:
    """Knowledge distillation from a classifier (DisCo's main_lincls_ft.py)"""

    teacher: str = setting("", "a network with its classifier, such as one of --classifier_file")
    teacher_arch: str | None = setting(None, "architecture of the teacher, needed for networks that are no ResNets")
    teacher_stem: str | None = setting(
        None, "first layers of a teacher with a 3x3 first convolution, where its file does not tell", choices=STEMS
    )
    alpha: float = setting(0.5, "weight of the teacher; 1 - alpha is the labels'", at_least=0, at_most=1)
    T: float = setting(2.0, "temperature of both softmaxes", above=0, at_most=1000)


@dataclass(frozen=True)
class JudgingSettings:
    """Run"""

    classifier_file: str | None = setting(
        None, "also write the network with its best classifier, under torchvision's or timm's names"
    )
    published_classifier: str = setting(
        "",
        "judge this linear classifier without training one: a file of SwAV's, MoCo's, INTL's, CW-RGP's, W2SSL's or "
        "TWIST's program or of --classifier_file, or a name of docs/zoo.md. Files that hold the network too need no "
        "--pretrained. The published programs' -e --resume FILE is the same",
    )
    resume: str = setting("auto", "auto, never, or a checkpoint of this evaluation", spellings={"": "auto"})
    accept_changes: tuple[str, ...] = setting(
        (), "names of settings that may differ from those of the checkpoint that the evaluation continues from",
        empty=True,
    )  # fmt: skip
    evaluate: bool = setting(False, "judge the newest checkpoint, without training", flags=["-e"], switch=True)
    eval_freq: int = setting(
        1, "evaluate every so many epochs", flags=["--val_epoch", "--val_freq"], at_least=1, at_most=1e9
    )
    log_every: int = setting(
        50, "number of steps from one log line to the next", flags=["--print_freq", "-p"], at_least=1, at_most=1e12
    )
    save_every: int = setting(0, "also save every so many steps; 0 = never", at_least=0, at_most=1e12)
    max_steps: int | None = setting(None, "stop after so many steps in all", at_least=1, at_most=1e12)


@dataclass(frozen=True)
class ClassificationSettings(EvaluationSettings):
    """What eval_linear.py and eval_semisup.py have."""

    protocol: ProtocolSettings = ProtocolSettings()
    labels: LabelSettings = LabelSettings()
    classifier: ClassifierSettings = LinearClassifierSettings()
    teaching: TeacherSettings = TeacherSettings()
    information: InformationSettings = InformationSettings()
    judging: JudgingSettings = JudgingSettings()
    precision: PrecisionSettings = PrecisionSettings("fp32")

    @property
    def published(self) -> str:
        """The classifier of others that is to be judged; "" to train one."""
        own = self.judging
        if own.published_classifier:
            return own.published_classifier
        asked = own.evaluate and own.resume not in ("auto", "never")
        return own.resume if asked and zoo.is_published(own.resume) else ""

    def judged_name(self) -> str:
        published = self.published  # which looks into files
        if not published:
            return super().judged_name()
        classifier = name_of_weights(published)
        return f"{super().judged_name()}-{classifier}" if self.judged.pretrained else f"{classifier}-as-published"


LINEAR_SCRIPT = Script(
    "Linear classification of frozen features.",
    ClassificationSettings(),
    positionals=("data_path", "pretrained"),
    epilog=describe(LINEAR),
)
SEMISUP_SCRIPT = Script(
    "Fine-tuning with few labels.",
    ClassificationSettings(classifier=SemisupClassifierSettings()),
    positionals=("data_path", "pretrained"),
    epilog=describe(SEMISUP),
)
