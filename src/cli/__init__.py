"""The command line: what every script shares. Flags in groups, one-line errors, retired flags, the echo."""

import argparse
import difflib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torchvision

from ..checkpoints.files import write_atomically
from ..data.datasets import DATASETS
from ..errors import Diverged, UserError
from ..parallel import collectives, launch

# Flags of the published code and its launchers that have no effect any more: name -> what replaces them.
RETIRED = {
    "multiprocessing_distributed": "torchrun starts the processes",
    "dist_backend": "NCCL on GPUs, gloo on CPUs",
    "gpu": "each process takes its own GPU",
    "start_epoch": "a resume knows its epoch",
    "mode": "it never had one",
    "sched": "it never had one",
    "reduce_mean": "it never had one",
    "pin_mem": "memory is pinned for GPUs",
    "no_pin_mem": "memory is pinned for GPUs",
    "num_labels": "the classes are counted",
    "label": "the data folder decides, or --labels_perc",
    "patch_size": "the name of a transformer tells it",
    "use_env": "torchrun and Slurm say who each process is",
    "local_rank": "the launcher's LOCAL_RANK is used",
    "world_size": "the launcher says how many processes there are",
    "rank": "the launcher says which process this is",
    "use_pil_blur": "the blur is Pillow's",
    "prefix": "the layout of the file is told by its keys",
    "improve_numerical_stability": "Sinkhorn is safe at any epsilon",
}
# Those that never took a value: a word after them is something else.
RETIRED_SWITCHES = {"multiprocessing_distributed", "use_env", "pin_mem", "no_pin_mem", "stop_grad_conv1"}


def boolean(text: str) -> bool:
    """``on``, ``true``, ``1`` or ``off``, ``false``, ``0``, in any case."""
    if text.lower() in ("on", "true", "1"):
        return True
    if text.lower() in ("off", "false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a boolean: expected true or false")


def positive(text: str) -> int:
    """A whole number from 1 on; also read from floats such as 1e10, which published commands use."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def non_negative(text: str) -> int:
    """A whole number from 0 on."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return value


def _whole(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(value)


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose flags may be spelt with ``-`` or ``_``, and whose errors are one line and exit code 2.

    Args:
        description: of the script.
        positionals: flags that may also be given as plain words, anywhere on the line and in this order.
        epilog: shown below the flags.
        retired: further switches and flags without effect, as in RETIRED, of this script alone.
    """

    def __init__(
        self,
        description: str,
        positionals: Sequence[str] = (),
        epilog: str = "",
        retired: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            usage=f"%(prog)s {' '.join(f'[{name.upper()}]' for name in positionals)} [--flag value ...]",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._words = tuple(positionals)
        self._retired = {**RETIRED, **(retired or {})}
        group = self.add_argument_group("accepted and without effect (published command lines)")
        for name, replacement in self._retired.items():
            how: Any = {"action": "store_true"} if name in RETIRED_SWITCHES else {"nargs": "?", "const": ""}
            group.add_argument(f"--{name}", **how, default=argparse.SUPPRESS, help=replacement)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_underscored(argument) for argument in arguments], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False  # a plain word may give it
        parsed, unknown = self.parse_known_args(args, namespace)
        for action in required:
            action.required = True
        for name in self._words:
            if unknown and not unknown[0].startswith("-") and not getattr(parsed, name):
                setattr(parsed, name, unknown.pop(0))
        missing = [action.option_strings[0] for action in required if getattr(parsed, action.dest) is None]
        if missing and not unknown:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unknown argument {unknown[0]}{hint}")
        for name, replacement in self._retired.items():
            if hasattr(parsed, name):
                delattr(parsed, name)
                if distributed_rank() == 0:
                    print(f"warning: --{name} has no effect any more: {replacement}", file=sys.stderr)
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def distributed_rank() -> int:
    """The rank as far as it is known before the process group exists."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(rank) if rank.isdigit() else 0


def run(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Runs a script. A user's mistake is one line on stderr and exit code 2; a diverged training, exit code 1."""
    try:
        code = main(None)
    except UserError as error:
        _fail(_own_message(error), 2)
    except Diverged as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    launch.stop()
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    rank = distributed_rank()
    # Before the ranks have met, all of them stumble over the same mistake; later it may be one rank's own.
    if rank == 0 or collectives.is_active():
        prefix = f"[rank {rank}] " if rank else ""
        print(f"error: {prefix}{message}", file=sys.stderr, flush=True)
    if collectives.is_active():
        # Other ranks may wait in a collective that this one never joins: leave without the orderly shutdown, so that
        # the launcher sees the failure and ends them.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _own_message(error: UserError) -> str:
    """The message itself, also of an error that a loader's worker sent with its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition("UserError: ")[2] or lines[-1] if len(lines) > 1 else str(error)


# ---------------------------------------------------------------------------------------------------- shared groups


IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = (0.229, 0.224, 0.225)
SWAV_STD = [0.228, 0.224, 0.225]  # the red channel with which SwAV was published


def _dataset(name: str) -> str:
    return "folder" if name == "imagenet" else name  # word of TWIST's and INTL's programs


class _UseLMDB(argparse.Action):
    """A switch in TWIST's training, 0 or 1 in its evaluations."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values is None or boolean(values):
            namespace.dataset = "lmdb"


def add_data_arguments(parser: Parser, what: str, mean: list[float] | None, std: list[float] | None) -> None:
    """``mean`` and ``std`` None mean: taken from the run that made the checkpoint."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", required=True, help=what)
    group.add_argument(
        "--dataset",
        default="folder",
        type=_dataset,
        choices=DATASETS,
        help="a folder of images (class sub-folders are optional where no label is needed), a file made by "
        "scripts/make_lmdb.py, WebDataset shards (a folder of .tar files, a pattern, or URLs), or a torchvision set "
        "whose root --data_path is",
    )
    group.add_argument(
        "--use_lmdb", nargs="?", action=_UseLMDB, default=argparse.SUPPRESS, help="TWIST's word for --dataset lmdb"
    )
    group.add_argument("--download", action="store_true", help="fetch a torchvision set that is not there yet")
    group.add_argument(
        "--workers", "--num_workers", "-j", type=non_negative, default=10, help="loader processes for each rank"
    )
    group.add_argument("--mean", type=float, nargs=3, default=mean, help="channel means that normalise images")
    group.add_argument("--std", type=float, nargs=3, default=std, help="channel standard deviations")


def add_training_images_arguments(
    parser: Parser,
    mean: list[float] | None,
    std: list[float] | None,
    what: str = "the folder that holds train (and val), or the training images themselves, or a set's root",
) -> None:
    """What the main scripts train on; ``what`` is the help of ``--data_path``."""
    add_data_arguments(parser, what, mean, std)
    parser.add_argument("--size_dataset", type=int, default=-1, help="use the first so many images; -1 = all")


def add_augmentation_argument(group: Any) -> None:
    group.add_argument(
        "--augment_on",
        default="auto",
        choices=["auto", "worker", "device"],
        help="where colours are changed: image by image in the loader's workers, or a batch at a time on the device "
        "(the same draws, the same pictures); auto: on the device if it is a GPU",
    )


def colours_on_device(augment_on: str, device: torch.device) -> bool:
    return augment_on == "device" or (augment_on == "auto" and device.type == "cuda")


def add_backbone_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("backbone")
    group.add_argument(
        "--arch",
        "--backbone",
        "-a",
        default="resnet50",
        help="resnet18/34/50/101/152, resnet50w2/w4/w5, or any model name of timm",
    )
    group.add_argument("--width", type=float, default=1.0, help="factor on the channels of our ResNets")
    group.add_argument(
        "--stem",
        default="imagenet",
        choices=["imagenet", "small", "small_pool", "small_padded"],
        help="small: 3x3 first convolution and no pooling, for images of some 32 to 96 pixels; small_pool: with it",
    )


def add_pretraining_arguments(parser: Parser) -> None:
    """The groups that :mod:`src.pretraining` reads besides those of the images and the backbone."""
    add_run_arguments(parser)
    add_online_knn_arguments(parser)
    add_device_arguments(parser)
    add_precision_arguments(parser)
    add_speed_arguments(parser)


def add_run_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--dump_path",
        "--output_dir",
        "--save_dir",
        default=".",
        help="folder of the run: checkpoints, logs, settings",
    )
    group.add_argument(
        "--resume",
        default="auto",
        help="auto: continue from the newest readable checkpoint in --dump_path; never: refuse to start if there is "
        "one; or the path of a checkpoint, or of another run's folder, to continue from",
    )
    group.add_argument("--seed", type=non_negative, default=31, help="of the initial weights and of every draw")
    group.add_argument("--checkpoint_freq", type=positive, default=25, help="keep a checkpoint every so many epochs")
    group.add_argument("--keep_last", type=positive, default=2, help="newest checkpoints kept besides")
    group.add_argument(
        "--save_every",
        type=non_negative,
        default=0,
        help="also save every so many steps inside an epoch; 0 = off",
    )
    group.add_argument("--log_every", "--print_freq", "-p", type=positive, default=50, help="steps between log lines")
    group.add_argument("--max_steps", type=positive, default=None, help="stop after so many steps in all")
    group.add_argument("--tensorboard", type=boolean, default=True, help="write TensorBoard event files")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="only deterministic GPU kernels: slower, and needed there for a bit-exact resume",
    )


def add_device_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("device and processes")
    group.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda")
    group.add_argument("--dist_url", default="env://", help="where processes meet: env:// or tcp://HOST:PORT")


def add_precision_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--precision",
        default=None,
        choices=["auto", "fp32", "bf16", "fp16"],
        help="type of the forward pass; auto is bf16 on GPUs that have it, fp16 on others, fp32 on the CPU",
    )
    group.add_argument(
        "--use_fp16",
        type=boolean,
        default=True,
        help="word of the published code: false is --precision fp32, true is --precision auto",
    )


def add_speed_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("speed and memory")
    group.add_argument("--compile", action="store_true", help="compile the backbone (torch.compile)")
    group.add_argument(
        "--checkpoint_activations",
        action="store_true",
        help="recompute activations in the backward pass: one more forward pass, a fraction of the memory",
    )
    group.add_argument(
        "--shard",
        action="store_true",
        help="share parameters, gradients and optimiser state out over the processes (FSDP2), for resnet50w4 and w5",
    )


def add_online_knn_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("online evaluation")
    group.add_argument("--knn_freq", type=non_negative, default=0, help="kNN every so many epochs; 0 = off")
    group.add_argument(
        "--val_path",
        default=None,
        help="labelled images to be classified by kNN; by default the folder val or test beside --data_path",
    )
    group.add_argument("--knn_k", type=positive, default=20, help="neighbours")
    group.add_argument(
        "--knn_rule", default="weighted", choices=["weighted", "majority"], help="as --rule of eval_knn.py"
    )
    group.add_argument(
        "--knn_train_images",
        type=positive,
        default=50_000,
        help="training images used, evenly spread over the set",
    )
    group.add_argument(
        "--eval_size",
        type=positive,
        default=None,
        help="side of the evaluated centre crop in pixels; by default the first of --size_crops",
    )
    group.add_argument(
        "--eval_resize",
        type=positive,
        default=None,
        help="short side that images are resized to before it; by default 256/224 of --eval_size",
    )


def add_evaluation_arguments(parser: Parser) -> None:
    """What is judged, on which images; resolved by :func:`src.evaluation.subject.open_subject`."""
    add_data_arguments(
        parser, "folder that holds train and val (or test), or the root of a torchvision set", None, None
    )
    add_backbone_arguments(parser)
    group = parser.add_argument_group("what is judged")
    group.add_argument(
        "--pretrained",
        "--pretrained_weights",
        default="",
        help="the checkpoint. Ours and ResNets tell their backbone, for others --arch says it. Empty: random weights",
    )
    group.add_argument(
        "--key",
        default="auto",
        help="entry of the file that holds the weights, such as teacher_backbone; auto (or none) finds it",
    )
    parser.set_defaults(arch=None)
    group.add_argument("--seed", type=non_negative, default=31, help="of random weights and of every draw")
    group.add_argument(
        "--dump_path", "--output_dir", "--checkpoint_dir", "--save_dir", default=".", help="folder of the results"
    )
    group.add_argument(
        "--crop_size", type=positive, default=None, help="evaluated crop; default: that of the run, else 224"
    )
    group.add_argument(
        "--resize", type=positive, default=None, help="short side before the crop; default: that of the run, else 256"
    )


# ---------------------------------------------------------------------------------------------------- the echo


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def save_settings(folder: str | Path, arguments: argparse.Namespace) -> None:
    """Writes ``settings.json``: the command, every resolved flag, and the versions that ran."""
    content = {
        "command": command_line(),
        "arguments": vars(arguments),
        "world_size": collectives.world_size(),
        "versions": {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)},
    }
    text = json.dumps(content, indent=2, sort_keys=True).encode()
    write_atomically(Path(folder) / "settings.json", lambda file: file.write(text))


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds torch identically on every rank, so that all build the same weights."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)  # an operation without such a kernel is named
    torch.backends.cudnn.benchmark = not deterministic
