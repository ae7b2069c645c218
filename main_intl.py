"""Pre-trains a network with INTL (arXiv 2305.16789), CW-RGP (arXiv 2210.03586) or the methods they are compared with.

    torchrun --nproc_per_node=8 main_intl.py --data_path /path/to/imagenet --method intl_m --multi-crop
    python main_intl.py --method cwrgp --dataset cifar10 --data_path data --num_samples 4 --bs 256 --w_size 64 --group 4

The defaults depend on the method and the data, as the papers' four programs differ: see DEFAULTS. The methods are
src/methods/{intl,cwrgp}.py and src/methods/baselines/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import find_training
from src.data.view_sets import intl as intl_views
from src.data.views import RandomView, View
from src.engine.loop import Evaluation, Schedule
from src.engine.method import Method
from src.engine.monitor import Monitor, number
from src.errors import UserError
from src.losses.whitened import trace_loss_floor, trade_off
from src.methods.baselines.barlowtwins import BarlowTwins
from src.methods.baselines.byol import BYOL
from src.methods.baselines.simclr import SimCLR
from src.methods.baselines.simsiam import SimSiam
from src.methods.baselines.vicreg import VICReg
from src.methods.baselines.zero_icl import ZeroICL
from src.methods.cwrgp import TRANSFORMS, GroupWhitening
from src.methods.intl import Intl
from src.methods.joint_embedding import spectrum
from src.models.backbones import create_backbone, feature_width
from src.models.heads import mlp
from src.ops.whitening import iter_norm
from src.optim.schedules import dropped_rate, epoch_cosine_rate, intl_rate, warm_restarts
from src.parallel import sync_bn
from src.plots import spectrum_curves
from src.pretraining import Pretraining

INTL = ("intl", "intl_m")
METHODS = (
    *INTL,
    *("cwrgp", "cw-rgp", "wmse", "pca", "bn", "plain"),
    *("contrastive", "byol", "simsiam", "barlowtwins", "vicreg", "zero_icl"),
)
TWO_VIEWS = ("simsiam", "barlowtwins", "vicreg", "zero_icl")

# name: mean, std, crop, side that images are resized to for evaluation, stem of the ResNet
SMALL_SETS: dict[str, tuple[list[float], list[float], int, int, str]] = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010], 32, 32, "small"),
    "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761], 32, 32, "small"),
    "stl10": ([0.43, 0.42, 0.39], [0.27, 0.26, 0.27], 64, 70, "small_pool"),
    "tiny_in": ([0.480, 0.448, 0.398], [0.277, 0.269, 0.282], 64, 64, "small_pool"),
    "in100": (list(cli.IMAGENET_MEAN), list(cli.IMAGENET_STD), 224, 256, "imagenet"),
}
INTL_STD = {"cifar10": [0.2470, 0.2435, 0.2616], "cifar100": [0.2673, 0.2564, 0.2762]}
INTL_MEAN = {"cifar10": [0.4914, 0.4822, 0.4465], "cifar100": [0.5071, 0.4865, 0.4409]}

# The papers' programs: INTL's on ImageNet and on CIFAR, CW-RGP's on ImageNet and on small data
DEFAULTS: dict[str, dict[str, Any]] = {
    "intl": {
        "arch": "resnet50", "stem": "imagenet", "epochs": 100, "bs": 256, "lr": 0.5, "wd": 1e-5, "m": 0.996,
        "head_layers": 3, "head_size": 8192, "emb": 8192, "nmb_crops": [1, 1], "crops_size": [224, 224],
        "min_scale_crops": [0.08, 0.08], "max_scale_crops": [1.0, 1.0], "gaussian_prob": [1.0, 0.1],
        "solarization_prob": [0.0, 0.2], "optimizer": "sgd",
    },
    "intl_cifar": {
        "arch": "resnet18", "stem": "small", "epochs": 100, "bs": 256, "lr": 0.3, "wd": 1e-4, "m": 0.999,
        "head_layers": 3, "head_size": 2048, "emb": 2048, "nmb_crops": [1, 1], "crops_size": [32, 32],
        "min_scale_crops": [0.08, 0.08], "max_scale_crops": [1.0, 1.0], "gaussian_prob": [0.0, 0.0],
        "solarization_prob": [0.0, 0.2], "optimizer": "sgd",
    },
    "cwrgp": {
        "arch": "resnet50", "stem": "imagenet", "epochs": 100, "bs": 512, "lr": 0.05, "wd": 1e-4, "head_layers": 3,
        "head_size": 2048, "emb": 1024, "num_samples": 4, "w_size": 128, "group": 2, "optimizer": "sgd", "gs_p": 0.2,
        "crop_size": 224,
    },
    "cwrgp_small": {
        "arch": "resnet18", "epochs": 200, "bs": 512, "lr": 1e-3, "wd": 1e-6, "head_layers": 2, "head_size": 1024,
        "emb": 512, "num_samples": 2, "w_size": 128, "group": 1, "optimizer": "adam", "gs_p": 0.1,
    },
}  # fmt: skip
MULTI_CROP = {
    "nmb_crops": [2, 1, 1, 1, 1], "crops_size": [224, 192, 160, 128, 96],
    "min_scale_crops": [0.2, 0.171, 0.143, 0.114, 0.086], "max_scale_crops": [1.0, 0.857, 0.714, 0.571, 0.429],
    "gaussian_prob": [0.5] * 5, "solarization_prob": [0.1] * 5,
}  # fmt: skip


def build_parser() -> cli.Parser:
    parser = cli.Parser("Pre-trains a network with INTL, CW-RGP or the methods they are compared with.")
    parser.add_argument("--method", default="intl", choices=METHODS, help="see src/methods")
    parser.add_argument(
        "--program",
        choices=DEFAULTS,
        help="whose defaults, views and optimiser to use; default: by --method and --dataset, see DEFAULTS",
    )
    cli.add_training_images_arguments(parser, None, None)
    parser.set_defaults(data_path="data/ImageNet")

    views = parser.add_argument_group("views of INTL (one entry for each kind)")
    views.add_argument(
        "--nmb_crops", type=int, nargs="+", help="views of this kind; for CIFAR, one number: views in all"
    )
    views.add_argument("--crops_size", type=int, nargs="+", help="pixels")
    views.add_argument("--min_scale_crops", type=float, nargs="+", help="least share of the area")
    views.add_argument("--max_scale_crops", type=float, nargs="+", help="largest share of the area")
    views.add_argument("--gaussian_prob", type=float, nargs="+", help="probability of a blur")
    views.add_argument("--solarization_prob", type=float, nargs="+", help="probability of solarisation")
    views.add_argument(
        "--multi_crop", action="store_true", help="2x224, 192, 160, 128 and 96 pixels, in spite of the lists"
    )
    cli.add_augmentation_argument(views)
    views = parser.add_argument_group("views of the others")
    views.add_argument("--num_samples", type=cli.positive, help="views, all alike")
    views.add_argument("--crop_size", type=cli.positive, help="pixels; default: the data set's")
    for n, (default, what) in enumerate(((0.4, "brightness"), (0.4, "contrast"), (0.4, "saturation"), (0.1, "hue"))):
        views.add_argument(f"--cj{n}", type=float, default=default, help=f"strength of the jitter's {what}")
    views.add_argument("--cj_p", type=float, default=0.8, help="probability of the jitter")
    views.add_argument("--gs_p", type=float, help="probability of grayscale")
    views.add_argument("--hf_p", type=float, default=0.5, help="probability of a flip")
    views.add_argument("--crop_s0", type=float, default=0.2, help="least share of the area")
    views.add_argument("--crop_s1", type=float, default=1.0, help="largest share of the area")
    views.add_argument("--crop_r0", type=float, default=0.75, help="least aspect ratio")
    views.add_argument("--crop_r1", type=float, default=4 / 3, help="largest aspect ratio")

    cli.add_backbone_arguments(parser)
    parser.set_defaults(arch=None, stem=None)
    parser.add_argument(
        "--zero_init_residual", type=cli.boolean,
        help="residual branches start at zero; default: but for INTL with resnet18",
    )  # fmt: skip
    head = parser.add_argument_group("head")
    head.add_argument("--head_layers", "--projection_layers", type=cli.positive, help="linear layers")
    head.add_argument("--head_size", "--projection_size", type=cli.positive, help="width of the hidden ones")
    head.add_argument("--emb", type=cli.positive, help="d, embedding size")
    head.add_argument("--no_add_bn", action="store_true", help="no batch norm in the head")
    head.add_argument("--no_head", action="store_true", help="features are the embedding")
    head.add_argument("--sync_bn", type=cli.boolean, default=True, help="batch norms over all processes")

    loss = parser.add_argument_group("loss")
    loss.add_argument("--iters", type=cli.non_negative, default=4, help="INTL: Newton's iterations, T")
    loss.add_argument("--axis", type=int, choices=[0, 1], default=0, help="0: channel whitening, 1: batch whitening")
    loss.add_argument("--trade_off", type=float, help="INTL: weight of the trace loss; default: 0.01 (log2(bs) - 3)")
    loss.add_argument("--m", type=float, help="INTL with momentum: of its copy, at first")
    loss.add_argument("--w_size", type=cli.positive, help="images whitened together")
    loss.add_argument("--w_iter", type=cli.positive, default=1, help="how often they are drawn anew")
    loss.add_argument("--w_eps", type=float, default=0.0, help="shrinkage of the covariance")
    loss.add_argument("--group", type=cli.positive, help="groups of channels")
    loss.add_argument("--minus", type=int, default=1, help="taken off the covariance's divisor")
    loss.add_argument("--no_rg", action="store_true", help="the groups are always the same")
    loss.add_argument("--no_norm", action="store_true", help="distances of embeddings that are not unit vectors")
    loss.add_argument("--cov_w", type=float, default=0.0, help="CW-RGP: penalty on the covariance")
    loss.add_argument("--cov_stop", type=cli.non_negative, default=50, help="epoch at which it ends")
    loss.add_argument("--tau", type=float, default=0.5, help="contrastive: temperature")
    loss.add_argument("--byol_tau", type=float, default=0.99, help="BYOL: momentum, at first")
    loss.add_argument("--barlow_lambda", type=float, default=0.008, help="Barlow Twins: weight off the diagonal")
    loss.add_argument(
        "--barlow_by_width", action="store_true", help="Barlow Twins: divide by d, as CW-RGP's program does"
    )
    loss.add_argument("--vicreg_sim", type=float, default=25.0, help="VICReg: weight of the agreement")
    loss.add_argument("--vicreg_var", type=float, default=25.0, help="VICReg: weight of the variances")
    loss.add_argument("--vicreg_cov", type=float, default=1.0, help="VICReg: weight of the covariances")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=cli.positive, help="in all")
    optim.add_argument("--bs", "--batch_size", type=int, help="images of a step, over all processes")
    optim.add_argument("--optimizer", choices=["sgd", "adam"], help="default: adam for small data without INTL")
    optim.add_argument("--lr", "--learning_rate", type=float, help="for 256 images with sgd; as it is with adam")
    optim.add_argument("--wd", "--weight_decay", type=float, help="weight decay")
    optim.add_argument("--warmup_eps", type=cli.non_negative, default=2, help="INTL: epochs of warm-up")
    optim.add_argument("--warmup_iters", type=cli.non_negative, default=500, help="the others: steps of warm-up")
    optim.add_argument("--lr_step", default="step", choices=["step", "cos", "none"], help="of adam's rate")
    optim.add_argument("--drop", type=int, nargs="*", default=[50, 25], help="so many epochs before the end")
    optim.add_argument("--T0", type=cli.positive, help="cos: epochs until the first restart; default: all")
    optim.add_argument("--Tmult", type=cli.positive, default=1, help="cos: factor from one restart to the next")
    optim.add_argument("--eta_min", type=float, default=0.0, help="cos: where the rate ends")
    optim.add_argument("--drop_gamma", type=float, default=0.2, help="to this share")
    optim.add_argument("--clip_norm", type=float, default=0.0, help="bound on the gradient norm; 0 = none")
    optim.set_defaults(accumulate=1)

    cli.add_pretraining_arguments(parser)
    parser.add_argument("--env_name", default="", help="name of the run; only shown")
    parser.set_defaults(knn_k=5, knn_rule="majority", seed=0)  # the papers report 5-NN
    return parser


def program(args: argparse.Namespace) -> str:
    """Which of the papers' programs this is: a key of DEFAULTS."""
    if args.program:
        if (args.method in INTL) != args.program.startswith("intl"):
            raise UserError(f"--program {args.program} does not train {args.method}")
        return args.program
    if args.method in INTL:
        return "intl_cifar" if args.dataset in INTL_STD else "intl"
    return "cwrgp_small" if args.dataset in SMALL_SETS or args.method not in TRANSFORMS else "cwrgp"


def resolve(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other flags."""
    args.method = args.method.replace("cw-rgp", "cwrgp")
    kind = program(args)
    if kind == "intl_cifar" and args.nmb_crops is not None and len(args.nmb_crops) == 1:
        views = args.nmb_crops[0]
        args.nmb_crops = [1] * views
        args.crops_size = args.crops_size or [32] * views
        args.min_scale_crops = args.min_scale_crops or [0.08] * views
        args.max_scale_crops = args.max_scale_crops or [1.0] * views
        args.gaussian_prob = args.gaussian_prob or [0.0] * views
        args.solarization_prob = args.solarization_prob or ([0.0, 0.2] if views == 2 else None)
        if args.solarization_prob is None:
            raise UserError(f"--nmb_crops {views}: give --solarization_prob a value for each view")
    if args.multi_crop:
        vars(args).update(MULTI_CROP)
    for name, value in DEFAULTS[kind].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    mean, std, crop, resize, stem = SMALL_SETS.get(
        args.dataset, (cli.IMAGENET_MEAN, list(cli.IMAGENET_STD), 224, 256, "imagenet")
    )
    args.mean = args.mean or (INTL_MEAN if args.method in INTL else {}).get(args.dataset, mean)
    args.std = args.std or (INTL_STD if args.method in INTL else {}).get(args.dataset, std)
    args.crop_size = args.crop_size or crop
    args.stem = args.stem or stem
    args.eval_size = args.eval_size or (args.crops_size[0] if args.method in INTL else args.crop_size)
    args.eval_resize = args.eval_resize or (
        resize if args.dataset in SMALL_SETS and args.eval_size == crop else round(args.eval_size * 256 / 224)
    )
    if args.zero_init_residual is None:
        args.zero_init_residual = not (args.method in INTL and args.arch == "resnet18")
    if args.trade_off is None and args.method in INTL:
        args.trade_off = trade_off(args.bs if args.axis == 0 else args.emb) if args.bs > 0 else 0.0
    default = "auto" if kind == "intl" and args.use_fp16 else "fp32"  # the other programs have no mixed precision
    args.precision = args.precision or default


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be trained, before anything is started."""
    views = len(views_of(args))
    if views < 2:
        raise UserError("these methods compare views of an image: at least two are needed")
    if args.method in TWO_VIEWS and views != 2:
        raise UserError(f"{args.method} has two views, not {views}")
    if args.method in INTL and args.trade_off <= 0:
        raise UserError(
            f"--bs {args.bs} gives the trace loss no weight; more than 8 images, or --trade_off, are needed"
        )
    if args.bs < 2:
        raise UserError(f"--bs {args.bs}: expected at least 2 images")
    if min(args.lr, args.wd, args.w_eps, args.cov_w, args.clip_norm) < 0 or args.tau <= 0:
        raise UserError("--lr, --wd, --w_eps, --cov_w and --clip_norm must not be negative, and --tau positive")
    if args.m is not None and not 0 <= args.m <= 1:
        raise UserError(f"--m {args.m}: expected 0 to 1")
    if args.shard:
        raise UserError("--shard is there for SwAV only")


def check_whitening(args: argparse.Namespace, batch_size: int, width: int) -> None:
    """Refuses sub-batches that do not fit the batch or cannot have full rank."""
    if args.method not in TRANSFORMS:
        return
    if batch_size % args.w_size:
        raise UserError(f"--w_size {args.w_size} does not divide the {batch_size} images of a process")
    if width % args.group:
        raise UserError(f"--group {args.group} does not divide the embedding of {width}")
    observations, variables = width // args.group, args.w_size
    if args.axis == 1:
        observations, variables = args.w_size - 1, width // args.group
    if TRANSFORMS[args.method] in ("zca", "cholesky", "pca") and observations < variables and not args.w_eps:
        raise UserError(
            f"a covariance of {variables} from {observations} observations is singular: a larger --emb or fewer groups "
            f"(axis 0), a larger --w_size (axis 1), or --w_eps"
        )


def views_of(args: argparse.Namespace) -> Sequence[View]:
    if args.method in INTL:
        return intl_views(
            args.nmb_crops,
            args.crops_size,
            args.min_scale_crops,
            args.max_scale_crops,
            args.gaussian_prob,
            args.solarization_prob,
        )
    small = program(args) == "cwrgp_small"
    view = RandomView(
        args.crop_size,
        (args.crop_s0, args.crop_s1),
        (args.crop_r0, args.crop_r1),
        flip=args.hf_p,
        jitter=(args.cj0, args.cj1, args.cj2, args.cj3),
        jitter_probability=args.cj_p,
        grayscale=args.gs_p,
        blur=0.0 if args.crop_size < 224 else 0.5,
        bicubic=small,
        colours_first=small,
    )
    return [view] * args.num_samples


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    resolve(args)
    check(args)
    path = find_training(args.dataset, args.data_path)
    run = pretraining.start(args, views_of(args), path, batch_in_all=args.bs)
    method = build_method(run)
    if args.sync_bn:
        sync_bn.convert(method, device_type=run.world.device.type)
    pretraining.place(run, method)
    optimizer = build_optimizer(run, method)
    return pretraining.train(
        run,
        method,
        optimizer,
        {"lr": schedule(run)},
        [*pretraining.online_knn(run, method), *draw_spectrum(run, method)],
        lambda monitor: echo(run, method, monitor),
        backbone_file=f"{args.arch}.pth",
    )


def draw_spectrum(run: Pretraining, method: Method) -> list[Evaluation]:
    """``spectrum.png`` after every epoch: the eigenvalues of the last logged embeddings, before and after IterNorm."""
    if not isinstance(method, Intl):
        return []

    def draw() -> dict[str, float]:
        if run.world.is_main and len(method.embeddings_seen):
            before = method.embeddings_seen
            after = iter_norm(before, run.args.iters, run.args.axis)
            curves = {"embedding": spectrum(before, run.args.axis), "after IterNorm": spectrum(after, run.args.axis)}
            spectrum_curves(curves, Path(run.args.dump_path) / "spectrum.png")
        return {}

    return [Evaluation(1, draw)]


def build_method(run: Pretraining) -> Method:
    """The method with fresh weights."""
    args = run.args
    backbone = create_backbone(args.arch, width=args.width, stem=args.stem)
    features = feature_width(backbone)
    width = features if args.no_head else args.emb
    check_whitening(args, args.batch_size, width)
    head: nn.Module = nn.Identity()
    if not args.no_head:
        is_intl = args.method in INTL
        head = mlp(
            features, args.head_size, args.emb, args.head_layers, bias=not is_intl, batch_norm=not args.no_add_bn
        )
    start: dict[str, Any] = {"zero_init_residual": args.zero_init_residual}
    if args.method in INTL:
        return Intl(
            backbone,
            head,
            weight=args.trade_off,
            iterations=args.iters,
            axis=args.axis,
            momentum=args.m if args.method == "intl_m" else None,
            **start,
        )
    if args.method in TRANSFORMS:
        return GroupWhitening(
            backbone,
            head,
            transform=TRANSFORMS[args.method],
            sub_batch=args.w_size,
            repeats=args.w_iter,
            groups=args.group,
            axis=args.axis,
            eps=args.w_eps,
            minus=args.minus,
            random_groups=not args.no_rg,
            normalise=not args.no_norm,
            covariance_weight=args.cov_w,
            covariance_epochs=args.cov_stop,
            **start,
        )
    if args.method == "contrastive":
        return SimCLR(backbone, head, width=width, temperature=args.tau, **start)
    if args.method == "byol":
        return BYOL(backbone, head, width=width, hidden=args.head_size, momentum=args.byol_tau, **start)
    if args.method == "simsiam":
        return SimSiam(backbone, features=features, hidden=args.head_size, width=args.emb, **start)
    if args.method == "barlowtwins":
        return BarlowTwins(
            backbone, head, width=width, off_diagonal=args.barlow_lambda, by_width=args.barlow_by_width, **start
        )
    if args.method == "vicreg":
        weights = {"invariance": args.vicreg_sim, "variance": args.vicreg_var, "covariance": args.vicreg_cov}
        return VICReg(backbone, head, **weights, **start)
    return ZeroICL(backbone, head, **start)


def build_optimizer(run: Pretraining, method: Method) -> torch.optim.Optimizer:
    """SGD or Adam; on ImageNet, INTL's one-dimensional parameters do not decay."""
    args = run.args
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if isinstance(method, SimSiam) and args.optimizer == "sgd":  # its predictor's rate stays as it is
        predictor = list(method.predictor.parameters())
        others = {id(parameter) for parameter in predictor}
        groups = [
            {"params": [p for p in parameters if id(p) not in others]},
            {"params": predictor, "lr": base_rate(args), "lr_fixed": True},
        ]
    if program(args) == "intl":
        groups = [
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
            {"params": [p for p in parameters if p.ndim != 1]},
        ]
    if args.optimizer == "adam":
        return torch.optim.Adam(groups, lr=args.lr, weight_decay=args.wd)
    return torch.optim.SGD(groups, lr=args.lr, momentum=0.9, weight_decay=args.wd)


def base_rate(args: argparse.Namespace) -> float:
    return args.lr if args.optimizer == "adam" else args.lr * args.bs / 256


def schedule(run: Pretraining) -> Schedule:
    """The learning rate of the program that this is."""
    args, steps, base = run.args, run.clock.steps_per_epoch, base_rate(run.args)

    def of_intl(clock: Clock) -> float:
        return intl_rate(clock.step, total=clock.total_steps, warmup=args.warmup_eps * steps, base=base)

    def of_imagenet(clock: Clock) -> float:
        return epoch_cosine_rate(
            clock.step, steps_per_epoch=steps, epochs=args.epochs, warmup=args.warmup_iters, base=base
        )

    def of_small_data(clock: Clock) -> float:
        if args.lr_step == "cos" and clock.step >= args.warmup_iters:
            return warm_restarts(
                clock.step / steps, first=args.T0 or args.epochs, factor=args.Tmult, base=base, floor=args.eta_min
            )
        milestones = [args.epochs - drop for drop in args.drop] if args.lr_step == "step" else []
        return dropped_rate(
            clock.step,
            steps_per_epoch=steps,
            warmup=args.warmup_iters,
            base=base,
            milestones=milestones,
            gamma=args.drop_gamma,
        )

    if args.method in INTL:
        return of_intl
    return of_small_data if args.optimizer == "adam" else of_imagenet


def echo(run: Pretraining, method: Method, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    args = run.args
    sizes = [view.size for view in views_of(args)]
    pretraining.echo_data(run, monitor, " + ".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes)))
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    monitor.say(
        f"model      {args.method}, {args.arch}, {trained / 1e6:.1f} M parameters, embedding {args.emb}, "
        f"{run.precision.name}"
    )
    monitor.say(f"lr         {number(base_rate(args))} ({args.optimizer}), weight decay {args.wd:g}")
    if args.method in INTL:
        floor = trace_loss_floor(args.bs, args.iters) * args.trade_off * (1 if args.method == "intl_m" else 2)
        monitor.say(
            f"loss       {args.trade_off:g} times the trace loss; it cannot go below {floor:.2f} (an even spectrum)"
        )
    elif args.method in TRANSFORMS:
        monitor.say(
            f"whitening  {TRANSFORMS[args.method]} of {args.w_size} images, {args.group} groups of channels, "
            f"axis {args.axis}, {args.w_iter} times"
        )


if __name__ == "__main__":
    cli.run(main)
