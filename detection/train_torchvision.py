"""Trains and judges torchvision's Faster R-CNN or RetinaNet on a pre-trained ResNet; detectron2 is not needed.

    torchrun --nproc_per_node=8 detection/train_torchvision.py --pretrained runs/swav/checkpoint.pth.tar \\
        --dataset voc --data_path /path/to/datasets --iterations 24000 --steps 18000 22000 --warmup 100

`--data_path` holds coco/ or VOC2007/ and VOC2012/, as detectron2's DETECTRON2_DATASETS does. The defaults are COCO's 1x
schedule for 16 images a step, with synchronised batch norm on GPUs and everything trained, as the papers do it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from detection.average_precision import Found, average_precision
from detection.boxes import Boxes, open_coco, open_voc
from src import cli
from src.checkpoints import identity
from src.checkpoints.files import describe_mismatch, read_file, write_atomically, write_json
from src.checkpoints.layouts import resnet_in
from src.engine.alone import alone_in
from src.engine.finite import all_finite_everywhere, tensors_in
from src.engine.seeding import seed_everything
from src.errors import Diverged, UserError
from src.evaluation.reported import reported_detection
from src.models.pretrained import Hints, fingerprint, load_backbone, name_of_weights
from src.optim.schedules import multistep
from src.parallel import collectives, launch
from src.parallel.launch import DeviceSettings
from src.settings import flat, replaced, setting

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

FORMAT = "ssl-vision-detection/1"


@dataclass(frozen=True)
class DetectionSettings:
    """Detection"""

    pretrained: str = setting("", "any checkpoint of a ResNet; without one the weights are random")
    key: str = setting("auto", "entry of the file that holds the weights; auto finds it")
    arch: str = setting("resnet50", "architecture of random weights; that of a checkpoint is inferred from the file")
    model: str = setting("fasterrcnn", "detector, with an FPN", choices=["fasterrcnn", "retinanet"])
    dataset: str = setting("coco", "COCO 2017, or VOC 2007 + 2012", choices=["coco", "voc"])
    data_path: str = setting("datasets", "the folder that holds coco or VOC2007 and VOC2012")
    dump_path: str = setting("", "folder of checkpoints and results; default: detections/MODEL-WEIGHTS-on-DATA")
    accept_changes: tuple[str, ...] = setting(
        (), "names of settings that may differ from those of the checkpoint that the run continues from", empty=True
    )
    iterations: int = setting(90000, "number of steps", at_least=1, at_most=1e9)
    steps: tuple[int, ...] = setting(
        (60000, 80000), "steps at which the learning rate is multiplied by 0.1", empty=True, at_least=0, at_most=1e9
    )
    warmup: int = setting(1000, "number of steps of linear warm-up", at_least=0, at_most=1e9)
    batch_size: int = setting(16, "number of images in a batch, over all processes", at_least=1, at_most=1e6)
    lr: float = setting(0.02, "learning rate", above=0, at_most=1e6)
    wd: float = setting(1e-4, "weight decay", at_least=0, at_most=1e3)
    min_size: tuple[int, ...] = setting(
        tuple(range(640, 801, 32)), "short sides of the images in pixels; default: 640 to 800, VOC 480 to 800",
        at_least=1, at_most=1e5,
    )  # fmt: skip
    save_every: int = setting(5000, "number of steps from one checkpoint to the next", at_least=1, at_most=1e9)
    log_every: int = setting(50, "number of steps from one log line to the next", at_least=1, at_most=1e9)
    eval_only: bool = setting(False, "judge the newest checkpoint of --dump_path", switch=True)
    workers: int = setting(4, "loader processes of each rank", at_least=0, at_most=1024)
    seed: int = setting(0, "seed of new weights and of the order of images", at_least=0, at_most=2**32 - 1)


@dataclass(frozen=True)
class Settings:
    """What this script has."""

    detection: DetectionSettings = DetectionSettings()
    device: DeviceSettings = DeviceSettings()

    def adapted(self, given: Mapping[str, Any]) -> tuple["Settings", list[str]]:
        """The same with the folder of its results, which carries the names of what goes in."""
        own = self.detection
        weights = name_of_weights(own.pretrained) if own.pretrained else f"random-{own.arch}"
        folder = own.dump_path or f"detections/{own.model}-{weights}-on-{own.dataset}"
        return replaced(self, {"dump_path": folder}), []


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the image sizes of the data set."""
    sizes = tuple(range(480 if given.get("dataset") == "voc" else 640, 801, 32))
    return replaced(Settings(DetectionSettings(min_size=sizes)), given)


SCRIPT = cli.Script("Trains torchvision's detectors on a pre-trained ResNet.", Settings(), complete=complete)


class Start(NamedTuple):
    """What a detector starts from: a ResNet's name, its weights (None = random), and the method that trained them."""

    arch: str
    state: Mapping[str, Tensor] | None
    method: str


def start_of(args: DetectionSettings) -> Start:
    """Raises UserError for a network that torchvision's detectors are not built on."""
    start = Start(args.arch, None, "")
    if args.pretrained:
        loaded = load_backbone(args.pretrained, Hints(stem="imagenet"), args.key)
        state = loaded.backbone.state_dict()
        found = resnet_in(state)
        if found is None or found[1:] != (1.0, "imagenet", 3):
            raise UserError(
                f"{args.pretrained}: torchvision's detectors here need a ResNet of width 1 with the ImageNet stem"
            )
        start = Start(found[0], state, loaded.family)
    if start.arch not in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        raise UserError(f"{start.arch}: torchvision has resnet18, 34, 50, 101 and 152")
    return start


def build_model(args: DetectionSettings, start: Start, classes: int, synchronise: bool) -> nn.Module:
    """The detector with the checkpoint's backbone; raises UserError where they do not fit."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    arch, state, _ = start
    norm = nn.SyncBatchNorm if synchronise else nn.BatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name=arch, weights=None, norm_layer=norm, trainable_layers=5)
    if state is not None:
        problem = describe_mismatch(backbone.body.state_dict(), state, args.pretrained)
        if problem:
            raise UserError(problem)
        backbone.body.load_state_dict(state)
    sizes = {"min_size": tuple(args.min_size), "max_size": 1333}
    if args.model == "retinanet":
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        anchors = AnchorGenerator(
            tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)),
            ((0.5, 1.0, 2.0),) * 5,
        )
        return detection.RetinaNet(backbone, classes + 1, anchor_generator=anchors, **sizes)
    return detection.FasterRCNN(backbone, classes + 1, **sizes)


def open_data(args: DetectionSettings, training: bool) -> Boxes:
    root = Path(args.data_path)
    if args.dataset == "coco":
        return open_coco(root, "train2017" if training else "val2017", training)
    return open_voc(root, [("2007", "trainval"), ("2012", "trainval")] if training else [("2007", "test")], training)


def batches_from(start: int, images: int, size: int, seed: int) -> Iterator[list[tuple[int, bool]]]:
    """The images of each step from ``start`` on, over all ranks, and whether they are mirrored.

    Every epoch has an order and draws of its own, so a resume meets those of an undisturbed run.
    """
    if images < size:
        raise UserError(f"--batch_size {size}: there are only {images} images")
    per_epoch = images // size
    step = start
    while True:
        epoch = step // per_epoch
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(images, generator=generator).tolist()
        mirrored = (torch.rand(images, generator=generator) < 0.5).tolist()
        drawn = list(zip(order, mirrored, strict=True))
        for place in range(step % per_epoch, per_epoch):
            yield drawn[place * size : (place + 1) * size]
            step += 1


class _Share(torch.utils.data.Sampler[list[tuple[int, bool]]]):
    """This rank's part of every step's images."""

    def __init__(self, start: int, end: int, images: int, size: int, seed: int, world: launch.World) -> None:
        self.steps = end - start
        self.batches = batches_from(start, images, size, seed)
        self.rows = slice(world.rank * size // world.size, (world.rank + 1) * size // world.size)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        for _ in range(self.steps):
            yield next(self.batches)[self.rows]

    def __len__(self) -> int:
        return self.steps


def collate(samples: list[Any]) -> tuple[list[Tensor], list[dict[str, Tensor]], list[int]]:
    images, targets, indices = zip(*samples, strict=True)
    return list(images), list(targets), list(indices)


@torch.no_grad()
def judge(model: nn.Module, data: Boxes, args: DetectionSettings, world: launch.World) -> dict[str, float]:
    """AP over all test images, which the ranks share."""
    model.eval()
    mine = range(world.rank, len(data), world.size)
    loader = DataLoader(torch.utils.data.Subset(data, mine), collate_fn=collate, num_workers=args.workers)
    found: dict[int, Found] = {}
    for images, _, indices in loader:
        for index, output in zip(indices, model([image.to(world.device) for image in images]), strict=True):
            found[index] = Found(*(output[key].cpu().numpy() for key in ("boxes", "labels", "scores")))
    gathered = collectives.gather_to_main(found)
    model.train()
    if gathered is None:
        return {}
    together = {index: one for part in gathered for index, one in part.items()}
    return average_precision([together[i] for i in range(len(data))], data.truths)


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    args = settings.detection
    test = open_data(args, training=False)
    train = None if args.eval_only else open_data(args, training=True)
    world = launch.start(settings.device.device, settings.device.dist_url)
    if args.batch_size % world.size:
        raise UserError(f"--batch_size {args.batch_size} cannot be shared out over {world.size} processes")
    seed_everything(args.seed)
    start = start_of(args)
    model = build_model(args, start, test.classes, world.size > 1 and world.device.type == "cuda").to(world.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.wd)
    folder = Path(args.dump_path)
    became = {
        **flat(args),
        "backbone_sha256": fingerprint(model.get_submodule("backbone").state_dict()) if args.pretrained else "",
    }
    if train is not None:
        became["train_images"] = train.fingerprint()
    with alone_in(folder):
        step = restore(folder / "detector.pth", model, optimizer, became, args)
        if args.eval_only and step == 0:
            raise UserError(f"--eval_only: there is no detector.pth in {folder}")
        if train is not None:
            fit(args, model, optimizer, train, step, world, became)
    result = judge(model, test, args, world)
    if train is None or step < args.iterations:  # a finished run has read no rates
        call.tell_unread()
    if world.is_main:
        paper = reported_detection(start.method, "boxes", start.arch, args.dataset)
        print(paper)
        print("  ".join(f"{name} {value:.2f}" for name, value in result.items()))
        what = {"what": args.pretrained or "random weights", "dataset": args.dataset, "model": args.model}
        content = {**what, **result, "paper": paper}
        write_json(folder / "detection.json", content)
    collectives.barrier()
    return 0


def restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, became: Mapping[str, Any], args: DetectionSettings
) -> int:
    """Continues from a checkpoint if there is one; returns the iterations done.

    Raises UserError for one that was made with other settings, weights or images than ``became`` says.
    """
    if not path.exists():
        return 0
    content = read_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program: choose another --dump_path")
    problem = describe_mismatch(model.state_dict(), content["model"], path)
    if problem:
        raise UserError(f"{problem}; choose another --dump_path for another model")
    changes = identity.compare(content.get("settings", {}), became, path, args.accept_changes)
    if changes and collectives.is_main():
        print(f"warning: settings changed since the checkpoint was written: {changes}", file=sys.stderr)
    if content["step"] > args.iterations and not args.eval_only:
        raise UserError(f"{path} has gone through {content['step']} iterations: --iterations {args.iterations} is less")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]


def fit(
    args: DetectionSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Boxes,
    step: int,
    world: launch.World,
    became: Mapping[str, Any],
) -> None:
    """Trains from iteration ``step`` to the end, and saves."""
    wrapped = model
    if world.size > 1:
        wrapped = DistributedDataParallel(
            model, device_ids=[world.device.index] if world.device.type == "cuda" else None
        )
    share = _Share(step, args.iterations, len(train), args.batch_size, args.seed, world)
    loader = DataLoader(train, batch_sampler=share, collate_fn=collate, num_workers=args.workers)
    model.train()
    for images, targets, _ in loader:
        torch.manual_seed(args.seed + step * world.size + world.rank)  # proposals are sampled; a resume repeats it
        rate = multistep(step, base=args.lr, milestones=args.steps, gamma=0.1)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, args.warmup))
        losses = wrapped(
            [image.to(world.device) for image in images],
            [{key: value.to(world.device) for key, value in target.items()} for target in targets],
        )
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % args.log_every == 0 or step == args.iterations:
            if not torch.isfinite(loss):
                raise Diverged(f"the loss is not finite in iteration {step}; the last checkpoint is from before")
            if world.is_main:
                parts = "  ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in losses.items())
                print(f"iteration {step}/{args.iterations}  loss {loss.item():.4f}  {parts}", flush=True)
        if step % args.save_every == 0 or step == args.iterations:
            state = [model.state_dict(), optimizer.state_dict()["state"]]
            if not all_finite_everywhere(tensors_in(state), world.device):
                raise Diverged(f"weights are not finite after iteration {step}; the last checkpoint is from before")
        if (step % args.save_every == 0 or step == args.iterations) and world.is_main:
            save(Path(args.dump_path) / "detector.pth", step, model, optimizer, became)


def save(
    path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> None:
    content = {
        "format": FORMAT,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "settings": dict(settings),
    }
    write_atomically(path, lambda file: torch.save(content, file))


if __name__ == "__main__":
    cli.run(main)
