"""Pre-trains a network with W2SSL (Zhao et al. 2023): what and where, from montages of patches.

    torchrun --nproc_per_node=4 main_w2ssl.py --moco-m-cos --batch-size 512 --loss_crop 1.0 /path/to/imagenet

The defaults of the flags are the published ones. The method is src/methods/w2ssl.py, its montages src/montage.py.
"""

import argparse
from collections.abc import Sequence

import torch

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import find_training
from src.data.view_sets import GRIDS
from src.data.view_sets import w2ssl as w2ssl_views
from src.data.views import PartView
from src.engine.monitor import Monitor, number
from src.errors import UserError
from src.methods.w2ssl import W2SSL, loss_of_equal_features
from src.models.backbones import create_backbone
from src.optim.lars import LARS, split_by_adaptation
from src.optim.schedules import fractional_cosine
from src.parallel import sync_bn
from src.pretraining import Pretraining

DEAD = {
    "loss_clu": "it never had an effect: the released code has no such loss",
    "moco_t": "it never had an effect; the temperature is --loss_t",
    "moco_dim": "it never had an effect; the embedding size is --crop_proj_dim",
    "stop_grad_conv1": "it is for transformers, which have no 2x2 map of patches",
}


def build_parser() -> cli.Parser:
    parser = cli.Parser("Pre-trains a network with W2SSL.", positionals=("data_path",), retired=DEAD)
    cli.add_training_images_arguments(parser, cli.IMAGENET_MEAN, list(cli.IMAGENET_STD))

    views = parser.add_argument_group("patches: every part of an image, in two views")
    views.add_argument(
        "--grid", default="1x2", choices=GRIDS, help="parts of an image, rows x columns; 2x2 is the papers' ablation"
    )
    views.add_argument("--cross_ratio", type=float, default=0.3, help="how far parts reach over the middle, as a share")
    views.add_argument("--crop_size", type=cli.positive, default=112, help="pixels; montages are twice as large")
    views.add_argument("--crop_min", type=float, default=0.2, help="least share of a part's area")
    views.add_argument(
        "--flip",
        default="patch",
        choices=["patch", "none"],
        help="patch: each by itself, as published, which hides whether it was left or right; none: where can be learnt",
    )
    views.add_argument("--jitter_strength", type=float, default=1.0, help="of the colours, as a factor")
    views.add_argument("--grayscale", type=float, default=0.2, help="probability")
    views.add_argument("--blur", type=float, nargs=2, help="probability in each view; default: 1 0.1 (2x2: 0.5 0.1)")
    cli.add_augmentation_argument(views)

    cli.add_backbone_arguments(parser)
    loss = parser.add_argument_group("heads and losses")
    loss.add_argument(
        "--crop_proj_dim", type=cli.positive, default=256, help="embedding size (published: without effect)"
    )
    loss.add_argument(
        "--moco_mlp_dim", type=cli.positive, default=4096, help="of the heads (published: without effect)"
    )
    loss.add_argument("--loss_t", type=float, default=0.3, help="temperature (published: without effect)")
    loss.add_argument("--loss_loc", type=float, default=1.0, help="weight of where")
    loss.add_argument("--loss_crop", type=float, default=0.25, help="weight of what; every published run has 1.0")
    loss.add_argument("--moco_m", type=float, default=0.99, help="momentum of the copy that makes the keys")
    loss.add_argument("--moco_m_cos", action="store_true", help="raised to 1 by a cosine, as in every published run")
    loss.add_argument(
        "--independent_perm", action="store_true", help="other neighbours in the second view; published: the same"
    )
    loss.add_argument("--sync_bn", type=cli.boolean, default=True, help="batch norms over all processes")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=cli.positive, default=200, help="in all")
    optim.add_argument(
        "--batch_size", "-b", type=int, help="images of a step, over all processes; default: 512 (2x2: 256)"
    )
    optim.add_argument("--optimizer", default="lars", choices=["lars", "adamw"], help="which")
    optim.add_argument("--lr", "--learning_rate", type=float, default=0.6, help="for 256 images")
    optim.add_argument("--momentum", type=float, default=0.9, help="of LARS")
    optim.add_argument("--wd", "--weight_decay", type=float, default=1e-6, help="weight decay")
    optim.add_argument("--warmup_epochs", type=cli.non_negative, help="default: 10 (2x2: 0)")
    optim.add_argument("--clip_norm", type=float, default=0.0, help="bound on the gradient norm; 0 = none")
    optim.add_argument("--accumulate", type=cli.positive, default=1, help="batches a step")

    cli.add_pretraining_arguments(parser)
    return parser


def resolve(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other flags."""
    args.method = "w2ssl"
    quarters = args.grid == "2x2"
    args.batch_size = args.batch_size or (256 if quarters else 512)
    if args.warmup_epochs is None:
        args.warmup_epochs = 0 if quarters else 10
    args.blur = args.blur or ([0.5, 0.1] if quarters else [1.0, 0.1])
    args.precision = args.precision or ("auto" if args.use_fp16 else "fp32")
    args.eval_size = args.eval_size or 2 * args.crop_size
    args.eval_resize = args.eval_resize or round(args.eval_size * 256 / 224)
    args.resume = args.resume or "auto"


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be trained, before anything is started."""
    if args.arch.startswith("vit"):
        raise UserError("W2SSL needs a feature map, which transformers do not have: choose a convolutional network")
    if not 0 <= args.cross_ratio <= 0.5:
        raise UserError(f"--cross_ratio {args.cross_ratio}: expected 0 to 0.5")
    if not 0 < args.crop_min <= 1:
        raise UserError(f"--crop_min {args.crop_min}: expected above 0, up to 1")
    if not 0 <= args.jitter_strength <= 2.5:
        raise UserError(f"--jitter_strength {args.jitter_strength}: expected 0 to 2.5")
    if not all(0 <= p <= 1 for p in (args.grayscale, *args.blur)):
        raise UserError("--grayscale and --blur: expected probabilities from 0 to 1")
    if args.loss_t <= 0 or not 0 <= args.moco_m <= 1:
        raise UserError("--loss_t must be positive, and --moco_m between 0 and 1")
    if min(args.lr, args.wd, args.momentum, args.loss_loc, args.loss_crop, args.clip_norm) < 0:
        raise UserError("--lr, --wd, --momentum, --clip_norm and the losses' weights must not be negative")
    if args.warmup_epochs >= args.epochs and args.warmup_epochs > 0:
        raise UserError(f"--warmup_epochs {args.warmup_epochs} leaves nothing of --epochs {args.epochs}")
    if args.shard:
        raise UserError("--shard is there for SwAV only")


def views_of(args: argparse.Namespace) -> Sequence[PartView]:
    return w2ssl_views(
        args.grid,
        args.crop_size,
        cross_ratio=args.cross_ratio,
        least_area=args.crop_min,
        flip=0.5 if args.flip == "patch" else 0.0,
        jitter_strength=args.jitter_strength,
        grayscale=args.grayscale,
        blur=args.blur,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    resolve(args)
    check(args)
    views = views_of(args)
    run = pretraining.start(args, views, find_training(args.dataset, args.data_path), batch_in_all=args.batch_size)
    parts = len(views) // 2
    if args.batch_size * parts % 4:
        raise UserError(
            f"--batch_size: the {args.batch_size} images of a process have {args.batch_size * parts} patches, which do "
            "not fill montages of four"
        )
    method = W2SSL(
        create_backbone(args.arch, width=args.width, stem=args.stem),
        parts=parts,
        dim=args.crop_proj_dim,
        hidden=args.moco_mlp_dim,
        temperature=args.loss_t,
        where_weight=args.loss_loc,
        what_weight=args.loss_crop,
        momentum=args.moco_m,
        momentum_cosine=args.moco_m_cos,
        shared_order=not args.independent_perm,
        seed=args.seed,
    )
    if args.sync_bn:  # the heads see all ranks' rows anyway
        for network in (method.backbone, method.momentum_backbone):
            sync_bn.convert(network, device_type=run.world.device.type)
    pretraining.place(run, method)
    base = base_rate(run)

    def learning_rate(clock: Clock) -> float:
        return fractional_cosine(
            clock.step / clock.steps_per_epoch, epochs=args.epochs, warmup=args.warmup_epochs, base=base
        )

    return pretraining.train(
        run,
        method,
        build_optimizer(args, method, base),
        {"lr": learning_rate},
        pretraining.online_knn(run, method),
        lambda monitor: echo(run, method, monitor),
    )


def base_rate(run: Pretraining) -> float:
    """By real images, which are twice as many as montages."""
    args = run.args
    return args.lr * args.batch_size * run.world.size * args.accumulate / 256


def build_optimizer(args: argparse.Namespace, method: W2SSL, base: float) -> torch.optim.Optimizer:
    """LARS without decay and adaptation of one-dimensional parameters, or AdamW with all alike."""
    if args.optimizer == "adamw":
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=base, weight_decay=args.wd)
    groups = split_by_adaptation(method.named_parameters())
    return LARS(groups, lr=base, momentum=args.momentum, weight_decay=args.wd, variant="moco-v3")


def echo(run: Pretraining, method: W2SSL, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    args = run.args
    images = args.batch_size * run.world.size
    pretraining.echo_data(run, monitor, f"2x{method.parts} patches of {args.crop_size}")
    monitor.say(
        f"montages   {images * method.parts // 4} of {2 * args.crop_size} pixels a view and step, of the "
        f'{images * method.parts} patches of {images} images (the papers\' "BS {images // 2}" is --batch_size {images})'
    )
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    monitor.say(f"model      w2ssl, {args.arch}, {trained / 1e6:.1f} M parameters, {run.precision.name}")
    monitor.say(
        f"lr         {number(base_rate(run))} ({args.optimizer}, {args.lr:g} for 256 images), weight decay {args.wd:g}"
    )
    nothing = loss_of_equal_features(images, method.parts, args.loss_t)
    monitor.say(
        f"loss       what: {nothing:.2f} means that nothing is told apart; where: {100 / method.parts:g} % is chance"
    )
    if args.loss_crop != 1.0:
        monitor.warn(f"--loss_crop {args.loss_crop:g}: every published run has --loss_crop 1.0")
    if not args.moco_m_cos:
        monitor.warn("every published run has --moco-m-cos")
    if args.flip == "patch" and args.grid != "2x1" and args.loss_loc:
        monitor.warn(
            "patches are flipped one by one, as published, so left and right look alike and where stays at chance; "
            "--flip none makes it learnable"
        )


if __name__ == "__main__":
    cli.run(main)
