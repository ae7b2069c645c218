"""Pre-trains a network with SwAV, DeepCluster-v2 or SeLa-v2 (Caron et al. 2020, arXiv 2006.09882).

    torchrun --nproc_per_node=8 main_swav.py --data_path /path/to/imagenet/train --epochs 400 --base_lr 0.6 ...
    torchrun --nproc_per_node=8 main_swav.py --method deepcluster-v2 --data_path ...

The defaults of the flags are the published ones. The methods are src/methods/{swav,deepcluster,sela}.py.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import refuse_split_root
from src.data.view_sets import multi_crop
from src.data.views import RandomView
from src.engine.monitor import Monitor, number
from src.errors import UserError
from src.methods.deepcluster import DeepClusterV2
from src.methods.prototype_base import PrototypeMethod
from src.methods.sela import SeLaV2
from src.methods.swav import SwAV, rows_per_rank
from src.methods.swav_disco import SwAVDisCo
from src.models.backbones import create_backbone
from src.models.teacher import Teacher
from src.optim.larc import LARC
from src.optim.schedules import warmup_cosine
from src.parallel import sync_bn
from src.pretraining import Pretraining


def build_parser() -> cli.Parser:
    parser = cli.Parser("Pre-trains a network with SwAV, DeepCluster-v2 or SeLa-v2.")
    parser.add_argument("--method", default="swav", choices=["swav", "deepcluster-v2", "sela-v2"], help="which of them")
    cli.add_training_images_arguments(
        parser,
        cli.IMAGENET_MEAN,
        cli.SWAV_STD,
        what="the training images: a folder (for ImageNet its train), or a set's root",
    )

    crops = parser.add_argument_group("views (one entry for each resolution)")
    crops.add_argument("--nmb_crops", type=int, nargs="+", default=[2], help="crops; the paper uses 2 6")
    crops.add_argument("--size_crops", type=int, nargs="+", default=[224], help="pixels; the paper uses 224 96")
    crops.add_argument("--min_scale_crops", type=float, nargs="+", default=[0.14], help="least share of the area")
    crops.add_argument("--max_scale_crops", type=float, nargs="+", default=[1.0], help="largest share of the area")
    crops.add_argument("--jitter_strength", type=float, default=1.0, help="of the colours; 0.5 suits small images")
    crops.add_argument("--grayscale", type=float, default=0.2, help="probability")
    crops.add_argument("--blur", type=float, default=0.5, help="probability; 0 suits images of some 32 pixels")
    cli.add_augmentation_argument(crops)

    cli.add_backbone_arguments(parser)
    parser.add_argument("--zero_init_residual", type=cli.boolean, default=False, help="residual branches start at zero")

    swav = parser.add_argument_group("prototypes and assignments")
    swav.add_argument("--crops_for_assign", type=int, nargs="+", default=[0, 1], help="crops assigned to prototypes")
    swav.add_argument("--temperature", type=float, default=0.1, help="of the predictions")
    swav.add_argument("--epsilon", type=float, default=0.05, help="Sinkhorn's; lower (0.03) if the loss stays at ln K")
    swav.add_argument("--sinkhorn_iterations", type=cli.positive, default=3, help="more hurt slightly, fewer diverge")
    swav.add_argument("--feat_dim", type=cli.positive, default=128, help="embedding size")
    swav.add_argument("--hidden_mlp", type=cli.non_negative, default=2048, help="of the head; 0 = linear head")
    swav.add_argument("--head_bn", type=cli.boolean, default=True, help="batch norm in the head")
    swav.add_argument(
        "--nmb_prototypes",
        type=cli.positive,
        nargs="+",
        default=None,
        help="about ten for each class; several = heads. Default: 3000 (SwAV), 3000 3000 3000 (the others)",
    )
    swav.add_argument(
        "--queue_length", type=cli.non_negative, default=0, help="over all ranks; 3840 with a batch of 256"
    )
    swav.add_argument("--epoch_queue_starts", type=cli.non_negative, default=15, help="epoch that fills the queue")
    swav.add_argument(
        "--freeze_prototypes_niters",
        type=cli.non_negative,
        default=None,
        help="steps; about one epoch helps the start. Default: 313, and for ever with DeepCluster-v2",
    )
    swav.add_argument(
        "--kmeans_iterations", type=cli.positive, default=10, help="DeepCluster-v2: a clustering's updates"
    )
    swav.add_argument(
        "--sela_epsilon", type=float, default=0.05, help="SeLa-v2: entropy of the transport; 0.004 in SeLa"
    )
    swav.add_argument("--sela_iterations", type=cli.positive, default=100, help="SeLa-v2: at most so many")
    swav.add_argument("--sela_tolerance", type=float, default=0.1, help="SeLa-v2: change at which they stop")
    swav.add_argument(
        "--sela_hard",
        type=cli.boolean,
        default=True,
        help="SeLa-v2: predict an image's cluster, or its code",
    )

    teach = parser.add_argument_group("distillation (DisCo's test-bed, --method swav)")
    teach.add_argument("--teacher", "--pretrained", default="", help="checkpoint of a frozen teacher, such as SwAV's")
    teach.add_argument("--teacher_arch", help="needed for networks that are no ResNets")
    teach.add_argument(
        "--teacher_normalise", type=cli.boolean, default=False, help="compare with unit vectors; published: raw ones"
    )
    teach.add_argument(
        "--distill_weight",
        type=float,
        default=0.5,
        help="of the mean squared error; published: 1/2, like each crop's loss",
    )

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=cli.positive, default=100, help="in all")
    optim.add_argument("--batch_size", type=int, default=64, help="images for each process")
    optim.add_argument("--base_lr", type=float, default=4.8, help="for 4096 images; 0.6 for 256. Never scaled for you")
    optim.add_argument("--final_lr", type=float, default=0.0, help="end of the cosine")
    optim.add_argument("--warmup_epochs", type=cli.non_negative, default=10, help="of linear warm-up")
    optim.add_argument("--start_warmup", type=float, default=0.0, help="first learning rate of the warm-up")
    optim.add_argument("--wd", type=float, default=1e-6, help="weight decay, on every parameter")
    optim.add_argument(
        "--accumulate", type=cli.positive, default=1, help="batches a step; Sinkhorn and batch norm still see one each"
    )
    optim.add_argument("--clip_norm", type=float, default=0.0, help="bound on the gradient norm; 0 = none")
    optim.add_argument(
        "--sync_bn", default="pytorch", help="pytorch: batch norm over all ranks; apex: over groups; else: local"
    )
    optim.add_argument(
        "--syncbn_process_group_size", type=cli.non_negative, default=8, help="ranks of a group; 0 = all"
    )

    cli.add_pretraining_arguments(parser)
    return parser


def resolve(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other flags."""
    offline = args.method != "swav"
    args.nmb_prototypes = args.nmb_prototypes or ([3000] * 3 if offline else [3000])
    if args.freeze_prototypes_niters is None:
        args.freeze_prototypes_niters = int(1e10) if args.method == "deepcluster-v2" else 313
    # the published DeepCluster-v2 has no mixed precision
    args.precision = args.precision or ("auto" if args.use_fp16 and not offline else "fp32")
    args.eval_size = args.eval_size or args.size_crops[0]
    args.eval_resize = args.eval_resize or round(args.eval_size * 256 / 224)


def check(args: argparse.Namespace, views: Sequence[RandomView]) -> None:
    """Refuses what cannot be trained, before anything is started."""
    if len(views) < 2:
        raise UserError("these methods compare crops of an image: --nmb_crops must give at least two")
    if args.method != "swav" and args.queue_length:
        raise UserError(f"--queue_length belongs to SwAV; {args.method} remembers a whole epoch")
    if args.method != "swav" and args.shard:
        raise UserError("--shard is there for SwAV only")
    if args.teacher and (args.method != "swav" or args.shard):
        raise UserError("--teacher goes with --method swav, and without --shard")
    if args.distill_weight < 0:
        raise UserError("--distill_weight must not be negative")
    if args.method == "sela-v2" and not args.sela_hard and len(set(args.nmb_prototypes)) > 1:
        raise UserError("--sela_hard false needs heads with equally many prototypes")
    if args.sela_epsilon <= 0 or args.sela_tolerance < 0:
        raise UserError("--sela_epsilon must be positive and --sela_tolerance not negative")
    wrong = [crop for crop in args.crops_for_assign if not 0 <= crop < len(views)]
    if wrong or len(set(args.crops_for_assign)) != len(args.crops_for_assign):
        raise UserError(
            f"--crops_for_assign {args.crops_for_assign}: expected distinct numbers from 0 to {len(views) - 1}"
        )
    if args.temperature <= 0 or args.epsilon <= 0:
        raise UserError("--temperature and --epsilon must be positive")
    if args.epsilon < 0.003:
        raise UserError(f"--epsilon {args.epsilon}: assignments are numerically hard below 0.003")
    if min(args.nmb_prototypes) < 2:
        raise UserError("--nmb_prototypes: at least 2 are needed")
    if args.base_lr < 0 or args.final_lr < 0 or args.start_warmup < 0 or args.wd < 0 or args.clip_norm < 0:
        raise UserError("learning rates, --wd and --clip_norm must not be negative")
    if args.warmup_epochs >= args.epochs and args.warmup_epochs > 0:
        raise UserError(f"--warmup_epochs {args.warmup_epochs} leaves nothing of --epochs {args.epochs}")
    if args.dataset == "folder":
        refuse_split_root(args.data_path)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    views = multi_crop(
        args.size_crops,
        args.nmb_crops,
        args.min_scale_crops,
        args.max_scale_crops,
        jitter_strength=args.jitter_strength,
        grayscale=args.grayscale,
        blur=args.blur,
    )
    resolve(args)
    check(args, views)

    run = pretraining.start(args, views, args.data_path)
    teacher = load_teacher(run)
    method = build_method(run, teacher)
    if args.sync_bn in ("pytorch", "apex"):
        group_size = args.syncbn_process_group_size if args.sync_bn == "apex" else 0
        sync_bn.convert(method, group_size, run.world.device.type)
    pretraining.place(run, method)
    optimizer = LARC(method.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=args.wd)

    def learning_rate(clock: Clock) -> float:
        return warmup_cosine(
            clock.step,
            total=clock.total_steps,
            warmup=args.warmup_epochs * clock.steps_per_epoch,
            start=args.start_warmup,
            base=args.base_lr,
            final=args.final_lr,
        )

    knn = pretraining.online_knn(run, method)
    return pretraining.train(
        run,
        method,
        optimizer,
        {"lr": learning_rate},
        knn,
        lambda monitor: echo(run, method, teacher, monitor),
        identity=("teacher_sha256",) if teacher else (),
    )


def load_teacher(run: Pretraining) -> Teacher | None:
    """The frozen teacher on its device, in eval mode; its digest becomes a setting."""
    args = run.args
    if not args.teacher:
        return None
    teacher = Teacher(args.teacher, args.teacher_arch, training=False, normalise=args.teacher_normalise)
    args.teacher_sha256 = teacher.sha256
    return teacher.to(run.world.device)


def build_method(run: Pretraining, teacher: Teacher | None) -> PrototypeMethod:
    """The method with fresh weights."""
    args, world = run.args, run.world
    common: dict[str, Any] = {
        "feat_dim": args.feat_dim,
        "hidden_mlp": args.hidden_mlp,
        "crops_for_assign": args.crops_for_assign,
        "temperature": args.temperature,
        "freeze_prototypes_niters": args.freeze_prototypes_niters,
        "head_batch_norm": args.head_bn,
        "zero_init_residual": args.zero_init_residual,
    }
    backbone = create_backbone(args.arch, width=args.width, stem=args.stem)
    if args.method == "swav":
        queue_rows = rows_per_rank(args.queue_length, args.batch_size, world.size)
        if args.queue_length and not queue_rows:
            raise UserError(
                f"--queue_length {args.queue_length} does not hold one batch of {args.batch_size * world.size} images"
            )
        common |= {
            "nmb_prototypes": args.nmb_prototypes[0] if len(args.nmb_prototypes) == 1 else args.nmb_prototypes,
            "epsilon": args.epsilon,
            "sinkhorn_iterations": args.sinkhorn_iterations,
            "queue_rows": queue_rows,
            "epoch_queue_starts": args.epoch_queue_starts,
        }
        if teacher is not None:
            return SwAVDisCo(backbone, teacher, weight=args.distill_weight, **common)
        return SwAV(backbone, **common)
    rows_per_epoch = run.clock.steps_per_epoch * args.accumulate * args.batch_size
    if rows_per_epoch < max(args.nmb_prototypes):
        raise UserError(
            f"--nmb_prototypes {max(args.nmb_prototypes)}: a process sees {rows_per_epoch} images an epoch, and needs "
            "at least one for each prototype"
        )
    common |= {"nmb_prototypes": args.nmb_prototypes, "num_images": len(run.images), "bank_rows": rows_per_epoch}
    if args.method == "deepcluster-v2":
        return DeepClusterV2(backbone, **common, kmeans_iterations=args.kmeans_iterations)
    return SeLaV2(
        backbone,
        **common,
        epsilon=args.sela_epsilon,
        iterations=args.sela_iterations,
        tolerance=args.sela_tolerance,
        hard=args.sela_hard,
    )


def echo(run: Pretraining, method: PrototypeMethod, teacher: Teacher | None, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    args, ranks = run.args, run.world.size
    batch = args.batch_size * ranks
    crops = " + ".join(f"{n}x{size}" for n, size in zip(args.nmb_crops, args.size_crops, strict=True))
    pretraining.echo_data(run, monitor, crops)
    prototypes = " + ".join(map(str, args.nmb_prototypes))
    parameters = sum(parameter.numel() for parameter in method.parameters())
    size = f"{parameters / 1e6:.1f} M parameters, {prototypes} prototypes"
    monitor.say(f"model      {args.method}, {args.arch}, {size}, {run.precision.name}")
    warmup = f"{number(args.start_warmup)} -> {number(args.base_lr)} in {args.warmup_epochs} epochs, "
    monitor.say(
        f"lr         {warmup if args.warmup_epochs else ''}{number(args.base_lr)} -> {number(args.final_lr)} by cosine"
    )
    monitor.say(f"loss       {math.log(args.nmb_prototypes[0]):.3f} = ln K means that nothing is learnt")
    if teacher is not None:
        monitor.say(f"teacher    {teacher.description}; its mean squared error weighs {args.distill_weight:g}")
    queue = method.queue.shape[1] * ranks if isinstance(method, SwAV) else 0
    if queue:
        monitor.say(
            f"queue      {queue} embeddings over all processes, filled from epoch {args.epoch_queue_starts + 1} on"
        )
    if args.queue_length != queue:
        monitor.warn(f"--queue_length {args.queue_length} is no multiple of the batch; rounded down as published")
    seen = batch + queue if isinstance(method, SwAV) else len(run.images)
    if max(args.nmb_prototypes) > seen:
        monitor.warn(
            f"{max(args.nmb_prototypes)} prototypes share {seen} samples in each assignment, so some stay unused; "
            "fewer prototypes, a larger batch or a queue avoid that"
        )
    if args.accumulate > 1:
        monitor.warn(
            f"--accumulate averages gradients only: Sinkhorn and batch norm see {batch} images at a "
            "time, so this is not a training with the larger batch; a queue (--queue_length) comes closer"
        )


if __name__ == "__main__":
    cli.run(main)
