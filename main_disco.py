"""Pre-trains a network with MoCo-v2, or distils a small one: DisCo (arXiv 2104.09124), RKD, SEED and others.

    V2="--mlp --moco-t 0.2 --aug-plus --cos"
    torchrun --nproc_per_node=8 main_disco.py -a resnet50 $V2 --hidden 2048 /path/to/imagenet
    torchrun --nproc_per_node=8 main_disco.py -a efficientb0 $V2 --teacher moco_r50.pth.tar /path/to/imagenet

The defaults of the flags are those of the published programs, which are MoCo-v1's. The methods are
src/methods/{moco,disco}.py and src/methods/baselines/seed.py.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import find_training
from src.data.view_sets import moco as moco_views
from src.data.views import RandomView
from src.engine.monitor import Monitor, number
from src.errors import UserError
from src.methods.baselines.seed import SEED
from src.methods.disco import MAPS, REFERENCE_BATCH, TERMS, DisCo, mse_factor
from src.methods.moco import MoCo
from src.methods.queue_base import QueueMethod
from src.models.backbones import create_backbone, feature_width
from src.models.heads import projector
from src.models.teacher import Teacher
from src.optim.schedules import multistep, warmup_cosine
from src.pretraining import Pretraining

# What each method adds to the contrastive loss
DISTILLS: dict[str, list[str]] = {"moco": [], "disco": ["mse"], "rkd": ["rkd_distance", "rkd_angle"], "seed": []}


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        "Pre-trains a network with MoCo-v2, or distils a small one from a frozen teacher.", positionals=("data_path",)
    )
    parser.add_argument("--method", choices=DISTILLS, help="default: disco with a --teacher, else moco")
    cli.add_training_images_arguments(parser, cli.IMAGENET_MEAN, list(cli.IMAGENET_STD))

    views = parser.add_argument_group("views: two, alike (SEED: one)")
    views.add_argument("--aug_plus", action="store_true", help="MoCo-v2's augmentation, otherwise v1's")
    views.add_argument("--crop_size", type=cli.positive, help="pixels; default: 224 (efficientb5: 456)")
    views.add_argument("--crop_scale", type=float, nargs=2, default=[0.2, 1.0], help="shares of the image area")
    views.add_argument("--jitter_strength", type=float, default=1.0, help="of the colours, as a factor on MoCo's")
    views.add_argument("--grayscale", type=float, default=0.2, help="probability")
    views.add_argument("--blur", type=float, help="probability; default: 0.5 with --aug_plus; 0 suits small images")
    cli.add_augmentation_argument(views)

    cli.add_backbone_arguments(parser)
    parser.add_argument(
        "--zero_init_residual", type=cli.boolean, help="residual branches start at zero; default: with --method moco"
    )
    head = parser.add_argument_group("head")
    head.add_argument("--mlp", action="store_true", help="a hidden layer, as in MoCo-v2")
    head.add_argument(
        "--hidden",
        type=int,
        help="its width; -1: that of the features, 0: no hidden layer. Default: 2048 (disco, rkd), else -1",
    )
    head.add_argument("--moco_dim", type=cli.positive, default=128, help="embedding size")

    moco = parser.add_argument_group("contrast")
    moco.add_argument("--moco_k", type=cli.positive, default=65536, help="queue of keys")
    moco.add_argument("--moco_m", type=float, default=0.999, help="momentum of the copy that makes the keys")
    moco.add_argument("--moco_t", type=float, default=0.07, help="temperature; the papers use 0.2")
    moco.add_argument(
        "--bn_parts",
        type=cli.positive,
        default=1,
        help="batch norms see the batch of a process in so many parts, and keys are shuffled between them: 8 makes of "
        "one GPU what the published runs were on eight",
    )

    teach = parser.add_argument_group("distillation")
    teach.add_argument("--teacher", default="", help="its checkpoint: MoCo's, SwAV's or any other with a head")
    teach.add_argument("--teacher_arch", help="needed for networks that are no ResNets; others are told by the file")
    teach.add_argument(
        "--teacher_mode",
        default="train",
        choices=["train", "eval"],
        help="statistics of its batch norms: of the batch, as published, or running",
    )
    teach.add_argument(
        "--distill", nargs="+", choices=TERMS, help="terms added to the contrastive loss; default: the method's"
    )
    teach.add_argument("--use_mse", action="store_true", help="RKD + DisCo: --method rkd with DisCo's term added")
    teach.add_argument("--only_mse", action="store_true", help="no contrastive loss, only the distillation")
    teach.add_argument("--distill_weight", type=float, default=1.0, help="of the added terms")
    teach.add_argument(
        "--distill_norm",
        default="sum",
        choices=["sum", "ref32", "mean"],
        help="DisCo's squared errors are summed over the images of a process, so their weight grows with them: as "
        "published (sum), times 32/images, which is the published weight on any number of GPUs (ref32), or their mean",
    )
    teach.add_argument(
        "--init_queue_from_teacher",
        type=cli.boolean,
        default=True,
        help="start with the keys in the teacher's file, if it has as many, as the published code does",
    )
    teach.add_argument("--teacher_temperature", type=float, default=1e-4, help="SEED's")
    teach.add_argument("--nmb_prototypes", type=int, default=0, help="word of the published code; only 0 has a meaning")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=cli.positive, default=200, help="in all")
    optim.add_argument("--batch_size", "-b", type=int, default=256, help="images of a step, over all processes")
    optim.add_argument("--lr", "--learning_rate", type=float, default=0.03, help="for 256 images; never scaled for you")
    optim.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    optim.add_argument("--wd", "--weight_decay", type=float, default=1e-4, help="weight decay, on every parameter")
    optim.add_argument("--cos", action="store_true", help="cosine to zero, by epoch; otherwise steps")
    optim.add_argument("--schedule", type=int, nargs="*", default=[120, 160], help="epochs of the steps, x 0.1")
    optim.add_argument("--clip_norm", type=float, default=0.0, help="bound on the gradient norm; 0 = none")
    optim.add_argument("--accumulate", type=cli.positive, default=1, help="batches a step")

    cli.add_pretraining_arguments(parser)
    parser.add_argument("--resume_ckpt", action="store_true", help="word of the published code: runs resume anyway")
    return parser


def resolve(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other flags."""
    if args.method is None:
        args.method = "rkd" if args.use_mse else "disco" if args.teacher else "moco"
    args.distill = args.distill or [*DISTILLS[args.method], *(["mse"] if args.use_mse and args.method == "rkd" else [])]
    args.crop_size = args.crop_size or (456 if args.arch in ("efficientb5", "efficientnet_b5") else 224)
    if args.hidden is None:
        args.hidden = 2048 if args.method in ("disco", "rkd") else -1
    if args.blur is None:
        args.blur = 0.5 if args.aug_plus else 0.0
    if args.zero_init_residual is None:
        args.zero_init_residual = args.method == "moco"
    args.precision = args.precision or "fp32"  # the published programs have no mixed precision
    args.eval_size = args.eval_size or args.crop_size
    args.eval_resize = args.eval_resize or round(args.eval_size * 256 / 224)
    args.resume = args.resume or "auto"


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be trained, before anything is started."""
    if args.method != "moco" and not args.teacher:
        raise UserError(f"--method {args.method} needs a --teacher")
    if args.method == "moco" and args.teacher:
        raise UserError("--method moco has no teacher: --method disco, rkd or seed distils")
    if args.distill and args.method in ("moco", "seed"):
        raise UserError(f"--distill goes with --method disco or rkd, not with {args.method}")
    if args.nmb_prototypes:
        raise UserError("--nmb_prototypes: a teacher's prototype scores are no embeddings; leave it at 0")
    if args.hidden < -1:
        raise UserError(f"--hidden {args.hidden}: expected -1, 0 or a width")
    if args.moco_t <= 0 or args.teacher_temperature <= 0 or not 0 <= args.moco_m <= 1:
        raise UserError("temperatures must be positive, and --moco_m between 0 and 1")
    if min(args.lr, args.wd, args.momentum, args.clip_norm, args.distill_weight) < 0:
        raise UserError("--lr, --wd, --momentum, --clip_norm and --distill_weight must not be negative")
    low, high = args.crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(f"--crop_scale {low} {high}: expected 0 < least <= largest <= 1")
    if not 0 <= args.jitter_strength <= 1.25:
        raise UserError(f"--jitter_strength {args.jitter_strength}: expected 0 to 1.25 (hue shifts are 0.4 times it)")
    for name, value in (("--grayscale", args.grayscale), ("--blur", args.blur)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value}: expected a probability from 0 to 1")
    if args.moco_k < args.batch_size:
        raise UserError(f"--moco_k {args.moco_k} does not hold one batch of {args.batch_size} images")
    if args.shard:
        raise UserError("--shard is there for SwAV only")


def views_of(args: argparse.Namespace) -> Sequence[RandomView]:
    views = moco_views(
        args.aug_plus,
        args.crop_size,
        scale=tuple(args.crop_scale),
        jitter_strength=args.jitter_strength,
        grayscale=args.grayscale,
        blur=args.blur,
    )
    return views[:1] if args.method == "seed" else views


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    resolve(args)
    check(args)
    run = pretraining.start(
        args, views_of(args), find_training(args.dataset, args.data_path), batch_in_all=args.batch_size
    )
    if args.batch_size % args.bn_parts or args.batch_size // args.bn_parts < 2:
        raise UserError(
            f"--bn_parts {args.bn_parts} does not cut the {args.batch_size} images of a process into batches"
        )
    teacher = load_teacher(run)
    method = build_method(run, teacher)
    pretraining.place(run, method)
    optimizer = torch.optim.SGD(
        (parameter for parameter in method.parameters() if parameter.requires_grad),
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.wd,
    )

    def learning_rate(clock: Clock) -> float:
        """Constant within an epoch."""
        if args.cos:
            return warmup_cosine(clock.epoch, total=args.epochs, base=args.lr)
        return multistep(clock.epoch, base=args.lr, milestones=args.schedule, gamma=0.1)

    return pretraining.train(
        run,
        method,
        optimizer,
        {"lr": learning_rate},
        pretraining.online_knn(run, method),
        lambda monitor: echo(run, method, teacher, monitor),
        identity=("teacher_sha256",),
    )


def load_teacher(run: Pretraining) -> Teacher | None:
    """The frozen teacher on its device; its digest becomes a setting, so that a run goes on with no other."""
    args = run.args
    args.teacher_sha256 = ""
    if not args.teacher:
        return None
    teacher = Teacher(args.teacher, args.teacher_arch, training=args.teacher_mode == "train", parts=args.bn_parts)
    if args.method == "seed" or set(args.distill) - set(MAPS):
        _ = teacher.width  # a file without a head is refused here
    args.teacher_sha256 = teacher.sha256
    if args.compile:
        teacher.backbone.compile(dynamic=False)
    return teacher.to(run.world.device)


def build_method(run: Pretraining, teacher: Teacher | None) -> QueueMethod:
    """The method with fresh weights."""
    args = run.args
    backbone = create_backbone(args.arch, width=args.width, stem=args.stem)
    head = head_on(feature_width(backbone), args)
    common: dict[str, Any] = {
        "dim": args.moco_dim,
        "queue_columns": args.moco_k,
        "bn_parts": args.bn_parts,
        "zero_init_residual": args.zero_init_residual,
        "temperature": args.moco_t,
    }
    if args.method == "seed":
        assert teacher is not None
        return SEED(backbone, head, teacher, teacher_temperature=args.teacher_temperature, **common)
    common |= {"momentum": args.moco_m, "seed": args.seed}
    if teacher is None:
        return MoCo(backbone, head, **common)
    method = DisCo(
        backbone,
        head,
        teacher,
        terms=args.distill,
        contrastive_weight=0.0 if args.only_mse else 1.0,
        distill_weight=args.distill_weight,
        norm=args.distill_norm,
        **common,
    )
    if args.init_queue_from_teacher and teacher.queue is not None and teacher.queue.shape == method.queue.shape:
        method.queue.copy_(teacher.queue)
    return method


def head_on(features: int, args: argparse.Namespace) -> nn.Module:
    """MoCo's head: one linear layer, or with ``--mlp`` a hidden one before it; no batch norm."""
    hidden = 0 if not args.mlp else features if args.hidden == -1 else args.hidden
    return projector(features, hidden, args.moco_dim, batch_norm=False)


def echo(run: Pretraining, method: QueueMethod, teacher: Teacher | None, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    args = run.args
    pretraining.echo_data(run, monitor, f"{1 if args.method == 'seed' else 2}x{args.crop_size}")
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    widths = " -> ".join(str(m.out_features) for m in method.head.modules() if isinstance(m, nn.Linear))
    monitor.say(
        f"model      {args.method}, {args.arch}, {trained / 1e6:.1f} M parameters, head {widths}, {run.precision.name}"
    )
    steps = "cosine" if args.cos else f"x 0.1 at {args.schedule}"
    monitor.say(f"lr         {number(args.lr)} ({steps}), weight decay {args.wd:g}")
    monitor.say(f"queue      {args.moco_k} embeddings, temperature {args.moco_t:g}")
    if not (args.mlp and args.aug_plus and args.cos):
        monitor.warn(
            "MoCo-v2 and DisCo are published with --mlp --aug_plus --cos --moco_t 0.2; without them it is MoCo-v1"
        )
    shuffled = run.world.size * args.bn_parts
    if args.method != "seed" and shuffled == 1:
        monitor.warn(
            "one batch norm sees queries and keys of the same images, which lets the network cheat; --bn_parts 8 (of "
            "at least 8 images each) shuffles keys as eight GPUs would"
        )
    if teacher is None:
        return
    monitor.say(f"teacher    {teacher.description}, batch norms in {args.teacher_mode} mode")
    if args.init_queue_from_teacher and teacher.queue is not None and isinstance(method, MoCo):
        if teacher.queue.shape == method.queue.shape:
            monitor.say("queue      starts with the teacher's keys, as published (--init_queue_from_teacher false)")
        else:
            monitor.warn(f"the teacher's queue is {tuple(teacher.queue.shape)}: the student's starts at random")
    if "mse" in args.distill:
        weight = args.distill_weight * mse_factor(args.distill_norm, args.batch_size) * args.batch_size
        monitor.say(
            f"distil     {' + '.join(args.distill)}; beside the contrastive loss an image's squared error weighs "
            f"{weight:g} times (published: {REFERENCE_BATCH})"
        )
        if weight != REFERENCE_BATCH and args.distill_norm == "sum":
            monitor.warn(
                f"the published weight {REFERENCE_BATCH} is that of {REFERENCE_BATCH} images on each of 8 GPUs; "
                "--distill_norm ref32 keeps it whatever the batch of a process"
            )


if __name__ == "__main__":
    cli.run(main)
