"""Pre-trains a network with INTL, with or without a momentum copy (Weng et al. 2024, arXiv 2305.16789).

    torchrun --nproc_per_node=8 main_intl.py --data_path /path/to/imagenet --method intl_m --multi-crop
    python main_intl.py --dataset cifar10 --data_path data --epochs 1000

The defaults depend on the data, as the paper's two programs differ: see PROGRAMS. The method is src/methods/intl.py.
CW-RGP and its baselines are main_cwrgp.py; `--method cwrgp` here starts it.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import main_cwrgp
from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import TrainingDataSettings
from src.data.small_sets import INTL_MEAN, INTL_STD, default_path, evaluation_resize, known_set
from src.data.splits import find_training
from src.data.view_sets import IntlViewSettings
from src.data.view_sets.intl import MULTI_CROP
from src.engine.judging import Evaluation
from src.engine.monitor import Monitor, number
from src.engine.precision import PrecisionSettings
from src.errors import UserError
from src.evaluation.knn import OnlineKNNSettings
from src.losses.whitened import trace_loss_floor
from src.methods.intl import Intl, IntlSettings
from src.methods.joint_embedding import Parts, spectrum
from src.models.backbones import BackboneSpec, ResidualStart, feature_width
from src.models.heads import ProjectorSettings, output_width
from src.ops.whitening import iter_norm
from src.optim.batch_scaled import ELSEWHERE, BatchScaledSettings
from src.optim.schedules import intl_rate
from src.parallel import sync_bn
from src.plots import spectrum_curves
from src.pretraining import Plan, Pretraining, PretrainingSettings, RunSettings
from src.settings import flat, leaves, replaced, setting

import torch


@dataclass(frozen=True)
class OptimSettings(BatchScaledSettings):
    """Optimisation"""

    warmup_eps: int = setting(2, "number of epochs of linear warm-up", at_least=0, at_most=1e9)


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting("intl", "method to train: without (intl) or with a momentum copy", choices=["intl", "intl_m"])
    program: str | None = setting(
        None,
        "program whose defaults to use; default: intl_cifar for CIFAR-10 and CIFAR-100, else intl",
        choices=["intl", "intl_cifar", *main_cwrgp.PROGRAMS],
    )
    data: TrainingDataSettings = TrainingDataSettings(data_path="data/ImageNet")
    start: ResidualStart = ResidualStart(True)
    run: RunSettings = RunSettings(seed=0)
    knn: OnlineKNNSettings = OnlineKNNSettings(knn_k=5, knn_rule="majority")  # the paper reports 5-NN
    views: IntlViewSettings = IntlViewSettings()
    head: ProjectorSettings = ProjectorSettings(head_size=8192, emb=8192)
    intl: IntlSettings = IntlSettings()
    optim: OptimSettings = OptimSettings()

    @property
    def plan(self) -> Plan:
        return Plan(self.optim.epochs, self.optim.bs, in_all=True, clip_norm=self.optim.clip_norm)

    @property
    def training_size(self) -> int:
        return self.views.crops_size[0]

    @property
    def trace_weight(self) -> float:
        return self.intl.weight(self.optim.bs, self.head.emb)


# The paper's programs: on ImageNet and on CIFAR
PROGRAMS = {
    "intl": Settings(),
    "intl_cifar": Settings(
        backbone=BackboneSpec("resnet18", stem="small"),
        views=IntlViewSettings(crops_size=(32, 32), gaussian_prob=(0.0, 0.0)),
        head=ProjectorSettings(head_size=2048, emb=2048),
        intl=IntlSettings(m=0.999),
        optim=OptimSettings(lr=0.3, wd=1e-4),
    ),
}
THEIRS = [leaf for leaf in leaves(main_cwrgp.Settings()) if leaf.name not in flat(Settings())]


def program_of(given: Mapping[str, Any]) -> str:
    """A key of PROGRAMS."""
    program = given.get("program")
    if program in main_cwrgp.PROGRAMS:
        raise UserError(f"--program {program} does not train {given.get('method', 'intl')}")
    return program or ("intl_cifar" if given.get("dataset") in INTL_STD else "intl")


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the defaults of its program and data set."""
    program, dataset = program_of(given), given.get("dataset", "folder")
    base, known = PROGRAMS[program], known_set(dataset)
    if program == "intl_cifar" and len(given.get("nmb_crops", ())) == 1:
        base = replace(base, views=some_views(given["nmb_crops"][0], given))
        given = {name: value for name, value in given.items() if name != "nmb_crops"}
    if given.get("multi_crop"):
        given = {**given, **{name: value for name, value in vars(MULTI_CROP).items() if isinstance(value, tuple)}}
    base = replaced(
        base,
        {
            "mean": INTL_MEAN.get(dataset, known.mean),
            "std": INTL_STD.get(dataset, known.std),
            "zero_init_residual": given.get("arch", base.backbone.arch) != "resnet18",
            **default_path(given),
            "precision": PrecisionSettings.published(program == "intl", given).precision,
        },
    )
    settings = replaced(base, given)
    resize = evaluation_resize(dataset, settings.knn.eval_size or settings.training_size)
    return replaced(settings, {"eval_resize": settings.knn.eval_resize or resize})


def some_views(count: int, given: Mapping[str, Any]) -> IntlViewSettings:
    """So many views of CIFAR, each with an entry of its own in the lists."""
    solarization = given.get("solarization_prob", (0.0, 0.2) if count == 2 else ())
    if not solarization:
        raise UserError(f"--nmb_crops {count}: give --solarization_prob a value for each view")
    return IntlViewSettings((1,) * count, (32,) * count, (0.08,) * count, (1.0,) * count, (0.0,) * count, solarization)


SCRIPT = cli.Script(
    "Pre-trains a network with INTL. CW-RGP and its baselines: main_cwrgp.py --help.",
    Settings(),
    complete=complete,
    ignored={flag: "it belongs to main_cwrgp.py" for leaf in THEIRS for flag in leaf.flags},
    retired=ELSEWHERE,
    repeatable=True,
)


def is_cwrgp(argv: Sequence[str] | None) -> bool:
    """Whether the command line asks for a method of main_cwrgp.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", nargs="?")
    method = parser.parse_known_args(argv)[0].method
    return method == "cw-rgp" or method in main_cwrgp.METHODS


def main(argv: Sequence[str] | None = None) -> int:
    if is_cwrgp(argv):
        return main_cwrgp.main(argv)
    call = SCRIPT.parse(argv)
    settings = call.settings
    views, weight = settings.views.views(), settings.trace_weight
    if len(views) < 2:
        raise UserError("INTL compares views of an image: at least two are needed")
    run = pretraining.start(call, views, find_training(settings.data.dataset, settings.data.data_path))
    parts = Parts.of(settings.backbone, settings.head, settings.start, run.batch_size, bias=False)
    method = Intl.build(parts, settings.intl, weight, with_momentum=settings.method == "intl_m")
    if settings.optim.sync_bn:
        sync_bn.convert(method, device_type=run.world.device.type, virtual_ranks=run.virtual_ranks)
    if settings.intl.axis == 0 and embedding_width(method) <= run.step_batch:
        raise UserError(
            f"--axis 0 whitens {run.step_batch} samples over {embedding_width(method)} features, which must be more: a "
            "larger --emb, a smaller --bs, or --axis 1"
        )
    pretraining.place(run, method)
    steps, base = run.clock.steps_per_epoch, settings.optim.base_rate

    def learning_rate(clock: Clock) -> float:
        return intl_rate(clock.step, total=clock.total_steps, warmup=settings.optim.warmup_eps * steps, base=base)

    return pretraining.train(
        run,
        method,
        build_optimizer(settings, method),
        {"lr": learning_rate},
        lambda monitor: echo(run, method, monitor),
        evaluations=[Evaluation(1, lambda: draw_spectrum(run, method))],
        backbone_file=f"{settings.backbone.arch}.pth",
        derived={"trade_off": weight},
    )


def embedding_width(method: Intl) -> int:
    """d, of what is whitened."""
    return (
        output_width(method.projection) if len(list(method.projection.parameters())) else feature_width(method.backbone)
    )


def build_optimizer(settings: Settings, method: Intl) -> torch.optim.Optimizer:
    """SGD or Adam; in the program for ImageNet one-dimensional parameters do not decay."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    program = program_of({"program": settings.program, "dataset": settings.data.dataset})
    if program != "intl":
        return settings.optim.build([{"params": trained}])
    return settings.optim.build(
        [
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
            {"params": [p for p in trained if p.ndim != 1]},
        ]
    )


def draw_spectrum(run: Pretraining[Settings], method: Intl) -> dict[str, float | Path]:
    """``spectrum.png``: the eigenvalues of the last logged embeddings, before and after IterNorm."""
    own, before = run.settings.intl, method.embeddings_seen
    if run.world.is_main and len(before):
        after = iter_norm(before, own.iters, own.axis)
        curves = {"embedding": spectrum(before, own.axis), "after IterNorm": spectrum(after, own.axis)}
        path = Path(run.settings.run.dump_path) / "spectrum.png"
        spectrum_curves(curves, path)
        return {"spectrum": path}
    return {}


def echo(run: Pretraining[Settings], method: Intl, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, optim, weight = run.settings, run.settings.optim, run.settings.trace_weight
    pretraining.echo_data(run, monitor, pretraining.crops_in_words(settings.views.views()))
    pretraining.echo_model(run, monitor, method, f"embedding {settings.head.emb}")
    monitor.say(f"lr         {number(optim.base_rate)} ({optim.optimizer}), weight decay {optim.wd:g}")
    views = 1 if settings.method == "intl_m" else 2
    variables = optim.bs if settings.intl.axis == 0 else embedding_width(method)
    floor = trace_loss_floor(variables, settings.intl.iters) * weight * views
    monitor.say(f"loss       {weight:g} times the trace loss; it cannot go below {floor:.2f} (an even spectrum)")


if __name__ == "__main__":
    cli.run(main)
