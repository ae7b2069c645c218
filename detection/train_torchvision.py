"""Trains and judges torchvision's Faster R-CNN or RetinaNet on a pre-trained ResNet; detectron2 is not needed.

    torchrun --nproc_per_node=8 detection/train_torchvision.py --pretrained runs/swav/checkpoint.pth.tar \\
        --dataset voc --data_path /path/to/datasets --iterations 24000 --steps 18000 22000 --warmup 100

`--data_path` holds coco/ or VOC2007/ and VOC2012/, as detectron2's DETECTRON2_DATASETS does. The defaults are COCO's 1x
schedule for 16 images a step, with synchronised batch norm on GPUs and everything trained, as the papers do it.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from detection.average_precision import Found, average_precision
from detection.boxes import Boxes, open_coco, open_voc
from src import cli
from src.checkpoints.files import describe_mismatch, read_file, write_atomically
from src.checkpoints.layouts import resnet_in
from src.errors import Diverged, UserError
from src.models.pretrained import load_backbone
from src.optim.schedules import multistep
from src.parallel import collectives, launch

FORMAT = "ssl-vision-detection/1"


def build_parser() -> cli.Parser:
    parser = cli.Parser("Trains torchvision's detectors on a pre-trained ResNet.")
    parser.add_argument("--pretrained", default="", help="any checkpoint of a ResNet; empty: random weights")
    parser.add_argument("--key", default="auto", help="entry of the file that holds the weights; auto finds it")
    parser.add_argument("--arch", default="resnet50", help="of random weights; a checkpoint tells its own")
    parser.add_argument("--model", default="fasterrcnn", choices=["fasterrcnn", "retinanet"], help="with an FPN")
    parser.add_argument("--dataset", default="coco", choices=["coco", "voc"], help="COCO 2017, or VOC 2007 + 2012")
    parser.add_argument("--data_path", default="datasets", help="the folder that holds coco or VOC2007 and VOC2012")
    parser.add_argument("--dump_path", default=".", help="folder of checkpoints and results")
    parser.add_argument("--iterations", type=cli.positive, default=90000, help="in all")
    parser.add_argument("--steps", type=int, nargs="*", default=[60000, 80000], help="iterations at which lr is x 0.1")
    parser.add_argument("--warmup", type=cli.non_negative, default=1000, help="iterations of linear warm-up")
    parser.add_argument("--batch_size", type=cli.positive, default=16, help="images of a step, over all processes")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate")
    parser.add_argument("--wd", type=float, default=1e-4, help="weight decay")
    parser.add_argument("--min_size", type=int, nargs="+", help="short sides; default: 640..800, VOC 480..800")
    parser.add_argument("--save_every", type=cli.positive, default=5000, help="iterations")
    parser.add_argument("--log_every", type=cli.positive, default=50, help="iterations")
    parser.add_argument("--eval_only", action="store_true", help="judge the newest checkpoint of --dump_path")
    parser.add_argument("--workers", type=cli.non_negative, default=4, help="loader processes for each rank")
    parser.add_argument("--seed", type=cli.non_negative, default=0, help="of new weights and the order of images")
    cli.add_device_arguments(parser)
    return parser


def build_model(args: Any, classes: int, synchronise: bool) -> nn.Module:
    """The detector with the checkpoint's backbone; raises UserError where they do not fit."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    arch, state = args.arch, None
    if args.pretrained:
        loaded = load_backbone(args.pretrained, key=args.key)
        state = loaded.backbone.state_dict()
        found = resnet_in(state)
        if found is None or found[1:] != (1.0, "imagenet"):
            raise UserError(
                f"{args.pretrained}: torchvision's detectors here need a ResNet of width 1 with the ImageNet stem"
            )
        arch = found[0]
    if arch not in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        raise UserError(f"{arch}: torchvision has resnet18, 34, 50, 101 and 152")
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


def open_data(args: Any, training: bool) -> Boxes:
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
def judge(model: nn.Module, data: Boxes, args: Any, world: launch.World) -> dict[str, float]:
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
    args = build_parser().parse_args(argv)
    args.min_size = args.min_size or list(range(640 if args.dataset == "coco" else 480, 801, 32))
    if args.lr <= 0 or args.wd < 0:
        raise UserError("--lr must be positive, --wd not negative")
    test = open_data(args, training=False)
    train = None if args.eval_only else open_data(args, training=True)
    world = launch.start(args.device, args.dist_url)
    if args.batch_size % world.size:
        raise UserError(f"--batch_size {args.batch_size} cannot be shared out over {world.size} processes")
    cli.seed_everything(args.seed)
    model = build_model(args, test.classes, world.size > 1 and world.device.type == "cuda").to(world.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.wd)
    folder = Path(args.dump_path)
    step = restore(folder / "detector.pth", model, optimizer)
    if args.eval_only and step == 0:
        raise UserError(f"--eval_only: there is no detector.pth in {folder}")
    if train is not None:
        fit(args, model, optimizer, train, step, world)
    result = judge(model, test, args, world)
    if world.is_main:
        print("  ".join(f"{name} {value:.2f}" for name, value in result.items()))
        content = {"what": args.pretrained or "random weights", "dataset": args.dataset, "model": args.model, **result}
        text = json.dumps(content, indent=2).encode()
        write_atomically(folder / "detection.json", lambda file: file.write(text))
    collectives.barrier()
    return 0


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Continues from a checkpoint if there is one; returns the iterations done."""
    if not path.exists():
        return 0
    content = read_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program: choose another --dump_path")
    problem = describe_mismatch(model.state_dict(), content["model"], path)
    if problem:
        raise UserError(f"{problem}; choose another --dump_path for another model")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]


def fit(
    args: Any, model: nn.Module, optimizer: torch.optim.Optimizer, train: Boxes, step: int, world: launch.World
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
                parts = "  ".join(f"{name.removeprefix('loss_')} {float(value):.3f}" for name, value in losses.items())
                print(f"iteration {step}/{args.iterations}  loss {float(loss):.4f}  {parts}", flush=True)
        if (step % args.save_every == 0 or step == args.iterations) and world.is_main:
            save(Path(args.dump_path) / "detector.pth", step, model, optimizer)


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    content = {"format": FORMAT, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    write_atomically(path, lambda file: torch.save(content, file))


if __name__ == "__main__":
    cli.run(main)
