"""Pre-trains a network with TWIST (Wang et al. 2021, arXiv 2110.07402).

    torchrun --nproc_per_node=8 main_twist.py --data-path /path/to/imagenet --output_dir runs/twist --aug barlow \\
        --batch-size 256 --dim 32768 --epochs 800

The defaults of the flags are the published ones: ResNet-50, multi-crop, self-labelling in the last 50 epochs, on 16
GPUs. The method is src/methods/twist.py, its loss src/losses/twist.py.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import nn

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import find_training
from src.data.view_sets import twist as twist_views
from src.data.views import View
from src.engine.loop import Evaluation
from src.engine.monitor import Monitor, number
from src.errors import UserError
from src.evaluation.clustering import class_prediction, clustering_scores
from src.losses.twist import entropy_bound
from src.methods.twist import Twist
from src.models.backbones import create_backbone, feature_width
from src.models.backbones.resnet import ResNet
from src.models.backbones.vit import VisionTransformer
from src.models.heads import TwistHead
from src.optim.lars import LARS, split_by_adaptation
from src.optim.schedules import phased, warmup_cosine
from src.parallel import sync_bn
from src.pretraining import Pretraining

# Crops of the self-labelling epochs: shares of the area of global and of local views
HARDER = (0.14, 1.0), (0.05, 0.14)
# Not one-dimensional, but without weight decay and adaptation all the same
EXEMPT = ("pos_embed", "cls_token", "dist_token")


def build_parser() -> cli.Parser:
    parser = cli.Parser("Pre-trains a network with TWIST.")
    cli.add_training_images_arguments(parser, cli.IMAGENET_MEAN, list(cli.IMAGENET_STD))

    views = parser.add_argument_group("views")
    views.add_argument(
        "--aug", default="multicrop", choices=["multicrop", "barlow", "moco", "rand"], help="kind; see view_sets.py"
    )
    views.add_argument("--img_size", type=cli.positive, default=224, help="crops of barlow and moco, in pixels")
    views.add_argument("--size_crops", type=int, nargs=2, default=[224, 96], help="global and local crops of multicrop")
    views.add_argument("--local_crops_number", type=cli.non_negative, default=12, help="local crops of multicrop")
    views.add_argument("--min1", type=float, default=0.4, help="least share of the area of global crops")
    views.add_argument("--max1", type=float, default=1.0, help="largest share of the area of global crops")
    views.add_argument("--min2", type=float, default=0.05, help="least share of the area of local crops")
    views.add_argument("--max2", type=float, default=0.4, help="largest share of the area of local crops")
    cli.add_augmentation_argument(views)

    cli.add_backbone_arguments(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--drop_path", type=float, default=0.0, help="stochastic depth of transformers")
    model.add_argument("--freeze_embedding", type=cli.boolean, default=False, help="of a transformer's patches")
    model.add_argument("--dim", type=cli.positive, default=4096, help="classes; 1000 for unsupervised classification")
    model.add_argument("--hid_dim", type=cli.positive, default=4096, help="width of the head's hidden layers")
    model.add_argument("--act", default="relu", choices=["relu", "gelu"], help="of the head")
    model.add_argument("--drop", type=float, default=0.0, help="dropout in the head")
    model.add_argument("--proj_norm", default="bn", choices=["bn", "ln", "none"], help="of the head's hidden layers")
    model.add_argument(
        "--proj_trunc_init",
        type=cli.boolean,
        default=False,
        help="truncated normal start of the head (transformers: always)",
    )
    model.add_argument(
        "--lbn_type", default="bn", choices=["bn", "syncbn", "identity"],
        help="last norm: statistics of --bunch_size images, of all processes, or none",
    )  # fmt: skip
    model.add_argument(
        "--bunch_size", type=cli.positive, default=256, help="images that share the last norm's statistics"
    )
    model.add_argument("--sync_bn", type=cli.boolean, default=True, help="all other batch norms over all processes")

    loss = parser.add_argument_group("loss")
    loss.add_argument("--lam1", type=float, default=0.0, help="weight of the entropy of a sample is 1 + lam1")
    loss.add_argument("--lam2", type=float, default=1.0, help="weight of the entropy of the mean")
    loss.add_argument("--tau", type=float, default=1.0, help="temperature of the entropies")
    loss.add_argument("--EPS", type=float, default=1e-5, help="inside every logarithm")
    loss.add_argument(
        "--crops_interact_style", default="sparse", choices=["sparse", "self_label"],
        help="sparse: the main loss, then self-labelling; self_label: that alone",
    )  # fmt: skip
    loss.add_argument(
        "--mme_epochs", type=cli.non_negative, default=800, help="of the main loss; the rest labels itself"
    )
    loss.add_argument("--quantile", type=float, default=0.5, help="share of a batch kept by self-labelling, at first")
    loss.add_argument("--quantile_end", type=float, default=0.6, help="and at last")
    loss.add_argument("--threshold", type=float, default=0.0, help="confidence needed where the quantile is 0")
    loss.add_argument("--use_momentum_encoder", type=cli.boolean, default=False, help="momentum teacher")
    loss.add_argument("--momentum_start", type=float, default=0.996, help="of the teacher")
    loss.add_argument("--momentum_end", type=float, default=1.0, help="of the teacher")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=cli.positive, default=850, help="in all")
    optim.add_argument("--batch_size", type=int, default=128, help="images for each process")
    optim.add_argument(
        "--optim", default="lars", choices=["lars", "lars_oss", "sgd", "admw", "adamw"], help="optimiser"
    )
    optim.add_argument("--lr", type=float, default=0.5, help="for 256 images; multiplied by the batch in all / 256")
    optim.add_argument("--lr_sl", type=float, default=0.05, help="the same, in self-labelling")
    optim.add_argument("--lr_wbr", type=float, default=1.0, help="biases and norms have lr / lr_wbr")
    optim.add_argument(
        "--warmup_epochs", type=cli.non_negative, help="default: 3 of up to 20 epochs, 5 of up to 50, else 10"
    )
    optim.add_argument("--sl_warmup_epochs", type=cli.non_negative, default=5, help="at the start of self-labelling")
    optim.add_argument("--weight_decay", type=float, default=1.5e-6, help="at first")
    optim.add_argument("--weight_decay_end", type=float, default=1.5e-6, help="at last, by a cosine")
    optim.add_argument(
        "--exclude_bias_weight_decay",
        type=cli.boolean,
        default=True,
        help="none for biases and norms; else a constant one",
    )
    optim.add_argument("--clip_norm", type=float, default=0.0, help="bound on the gradient norm; 0 = none")
    optim.set_defaults(accumulate=1)

    cli.add_pretraining_arguments(parser)
    parser.add_argument(
        "--enable_watch", type=cli.boolean, default=True,
        help="scores of the classes against labels after every epoch; false: after every tenth",
    )  # fmt: skip
    for name in ("eval_only", "inference_only"):
        parser.add_argument(f"--{name}", type=cli.boolean, default=False, help="that is eval_cluster.py now")
    parser.add_argument("--determine", dest="deterministic", type=cli.boolean, help="TWIST's word for --deterministic")
    parser.add_argument("--amp", dest="use_fp16", type=cli.boolean, help="TWIST's word for --use_fp16")
    parser.set_defaults(use_fp16=True, deterministic=False, seed=0)
    return parser


def resolve(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other flags."""
    args.method = "twist"
    args.precision = args.precision or ("auto" if args.use_fp16 else "fp32")
    args.mme_epochs = min(args.mme_epochs, args.epochs)
    if args.warmup_epochs is None:
        args.warmup_epochs = 3 if args.epochs <= 20 else 5 if args.epochs <= 50 else 10
    if args.aug != "multicrop":
        args.local_crops_number = 0
    args.eval_size = args.eval_size or (args.img_size if args.aug in ("barlow", "moco") else args.size_crops[0])
    args.eval_resize = args.eval_resize or round(args.eval_size * 256 / 224)


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be trained, before anything is started."""
    if args.eval_only or args.inference_only:
        raise UserError("--eval_only and --inference_only: that is eval_cluster.py DATA CHECKPOINT")
    if args.crops_interact_style == "self_label" and args.mme_epochs != args.epochs:
        raise UserError("--crops_interact_style self_label needs --mme_epochs equal to --epochs")
    if min(args.tau, args.EPS, args.lr_wbr) <= 0:
        raise UserError("--tau, --EPS and --lr_wbr must be positive")
    if min(args.lr, args.lr_sl, args.weight_decay, args.weight_decay_end, args.clip_norm) < 0:
        raise UserError("learning rates, --weight_decay and --clip_norm must not be negative")
    for name in ("quantile", "quantile_end", "threshold", "momentum_start", "momentum_end", "drop", "drop_path"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected 0 to 1")
    for low, high, n in ((args.min1, args.max1, 1), (args.min2, args.max2, 2)):
        if not 0 < low <= high <= 1:
            raise UserError(f"--min{n} {low} --max{n} {high}: expected 0 < min <= max <= 1 (shares of the image area)")
    if min(*args.size_crops, args.img_size) < 8:
        raise UserError("crops of less than 8 pixels")
    if args.dim < 2:
        raise UserError("--dim: at least 2 classes are needed")
    if args.shard:
        raise UserError("--shard is there for SwAV only")


def check_bunches(args: argparse.Namespace, world_size: int) -> int:
    """How many consecutive processes share the last norm's statistics; 0 stands for all."""
    if args.lbn_type == "syncbn":
        return 0
    ranks, rest = divmod(args.bunch_size, max(args.batch_size, 1))
    if rest or world_size % max(ranks, 1) or ranks > world_size:
        raise UserError(
            f"--bunch_size {args.bunch_size} is not made of the batches of {args.batch_size} images of a divisor of "
            f"the {world_size} processes; --bunch_size {args.batch_size} always works"
        )
    return ranks


def views_of(args: argparse.Namespace, epoch: int) -> Sequence[View]:
    """The views of an epoch: self-labelling has harder, multi-crop ones, with as many local crops as before."""
    sizes = args.size_crops[0], args.size_crops[1]
    if epoch >= args.mme_epochs:
        size = args.img_size if args.aug in ("barlow", "moco") else sizes[0]
        return twist_views("multicrop", args.local_crops_number, size, *HARDER, sizes=(size, sizes[1]))
    return twist_views(
        args.aug,
        args.local_crops_number,
        args.img_size,
        (args.min1, args.max1),
        (args.min2, args.max2),
        sizes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    resolve(args)
    check(args)
    epochs = {False: views_of(args, 0), True: views_of(args, args.mme_epochs)}
    path = find_training(args.dataset, args.data_path)
    run = pretraining.start(args, ViewsByPhase(epochs, args.mme_epochs), path)
    method = build_method(run)
    pretraining.place(run, method)
    optimizer = build_optimizer(run, method)
    evaluations = [*pretraining.online_knn(run, method), *watch_classes(run, method)]
    return pretraining.train(
        run, method, optimizer, schedules(run), evaluations, lambda monitor: echo(run, method, monitor)
    )


class ViewsByPhase:
    """The views of an epoch, for :class:`src.data.loading.ViewDataset`; loader workers get a copy."""

    def __init__(self, views: dict[bool, Sequence[View]], mme_epochs: int) -> None:
        self.views, self.mme_epochs = views, mme_epochs

    def __call__(self, epoch: int) -> Sequence[View]:
        return self.views[epoch >= self.mme_epochs]


def build_method(run: Pretraining) -> Twist:
    """The method with fresh weights and synchronised batch norms."""
    args, world = run.args, run.world
    ranks = check_bunches(args, world.size)
    backbone = create_backbone(args.arch, width=args.width, stem=args.stem, drop_path=args.drop_path)
    if args.freeze_embedding:
        if not isinstance(backbone, VisionTransformer):
            raise UserError("--freeze_embedding needs vit_t, vit_s or vit_b")
        backbone.freeze_embedding()
    head = TwistHead(
        feature_width(backbone),
        args.hid_dim,
        args.dim,
        activation=args.act,
        dropout=args.drop,
        norm=args.proj_norm,
        last_norm=args.lbn_type != "identity",
        truncated_init=args.proj_trunc_init or not isinstance(backbone, ResNet),
    )
    method = Twist(
        backbone,
        head,
        mme_epochs=args.mme_epochs,
        self_label_only=args.crops_interact_style == "self_label",
        temperature=args.tau,
        alpha=1 + args.lam1,
        beta=args.lam2,
        eps=args.EPS,
        quantile=args.quantile,
        quantile_end=args.quantile_end,
        threshold=args.threshold,
        momentum=args.momentum_start if args.use_momentum_encoder else None,
        momentum_end=args.momentum_end,
        num_images=len(run.images),
    )
    for network in (method, method.teacher):
        if network is None:
            continue
        own = network.projection_heads
        if args.sync_bn:
            sync_bn.convert(network.backbone, device_type=world.device.type)
            sync_bn.convert(own.projection_head, device_type=world.device.type)
        if ranks != 1 and isinstance(own.norm, nn.BatchNorm1d):
            own.norm = sync_bn.convert(own.norm, ranks, world.device.type)
    return method


def build_optimizer(run: Pretraining, method: Twist) -> torch.optim.Optimizer:
    """Two groups: weights, and biases, norms and a transformer's tokens, without weight decay and adaptation."""
    args = run.args
    weights, plain = split_by_adaptation(method.named_parameters(), EXEMPT)
    plain |= {
        "lr_scale": 1 / args.lr_wbr,
        "weight_decay": 0.0 if args.exclude_bias_weight_decay else args.weight_decay,
        "weight_decay_fixed": True,
    }
    groups = [weights, plain]
    if args.optim in ("lars", "lars_oss"):
        return LARS(groups, lr=args.lr, momentum=0.9, weight_decay=args.weight_decay, variant="twist")
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.lr, momentum=0.9, weight_decay=args.weight_decay)
    return torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)


def schedules(run: Pretraining) -> dict[str, pretraining.Schedule]:
    """Learning rate and weight decay, by step."""
    args, steps = run.args, run.clock.steps_per_epoch
    factor = args.batch_size * run.world.size / 256

    def learning_rate(clock: Clock) -> float:
        return phased(
            clock.step,
            total=clock.total_steps,
            switch=args.mme_epochs * steps,
            warmups=(args.warmup_epochs * steps, args.sl_warmup_epochs * steps),
            bases=(args.lr * factor, args.lr_sl * factor),
        )

    def weight_decay(clock: Clock) -> float:
        return warmup_cosine(clock.step, total=clock.total_steps, base=args.weight_decay, final=args.weight_decay_end)

    return {"lr": learning_rate, "weight_decay": weight_decay}


def watch_classes(run: Pretraining, method: Twist) -> list[Evaluation]:
    """The classes of the epoch's first views against the labels; and those of the validation images, where there are as
    many classes as labels. Nothing for images without labels."""
    args = run.args
    labels = torch.tensor(run.images.labels)
    if (labels < 0).all():
        return []

    def of_training() -> dict[str, float]:
        classes = method.classes_of_the_epoch().cpu().long()
        seen = (classes >= 0) & (labels >= 0)
        return {f"train_{name}": value for name, value in clustering_scores(classes[seen], labels[seen]).items()}

    evaluations = [Evaluation(1 if args.enable_watch else 10, of_training)]
    if args.dim == len(run.images.classes):
        try:
            images = pretraining.validation_images(run)
        except UserError:
            return evaluations  # there need not be any
        view = pretraining.validation_view(args)

        def of_validation() -> dict[str, float]:
            probabilities, true = class_prediction(
                method.backbone, method.projection_heads, images, view, run.prepare, args.workers, args.tau
            )
            return clustering_scores(probabilities.argmax(dim=1), true, probabilities=probabilities)

        evaluations.append(Evaluation(1, of_validation))
    return evaluations


def echo(run: Pretraining, method: Twist, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    args, factor = run.args, run.args.batch_size * run.world.size / 256
    sizes = [view.size for view in views_of(args, 0)]
    pretraining.echo_data(run, monitor, " + ".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes)))
    online = [p for n, p in method.named_parameters() if not n.startswith("teacher.")]
    size = f"{sum(p.numel() for p in online) / 1e6:.1f} M parameters, {args.dim} classes"
    teacher = f", teacher with momentum {args.momentum_start:g} -> {args.momentum_end:g}" if method.teacher else ""
    monitor.say(f"model      twist, {args.arch}, {size}, {run.precision.name}{teacher}")
    labelled = args.epochs - args.mme_epochs
    monitor.say(
        f"phases     {args.mme_epochs} epochs of the main loss, {labelled} of self-labelling"
        if args.crops_interact_style == "sparse"
        else f"phases     {args.epochs} epochs of self-labelling"
    )
    later = f", {number(args.lr_sl * factor)} in self-labelling" if labelled else ""
    monitor.say(
        f"lr         {number(args.lr * factor)} after {args.warmup_epochs} epochs of warm-up{later}, {args.optim}"
    )
    monitor.say(
        f"entropies  ln C = {math.log(args.dim):.3f}; with EPS at most {entropy_bound(args.dim, args.EPS):.3f}. "
        "Learning: eh falls, he stays"
    )


if __name__ == "__main__":
    cli.run(main)
