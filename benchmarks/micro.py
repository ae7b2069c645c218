"""The parts of a step one by one: Sinkhorn, loss, optimisers, moving average, k-means, convolutions of small maps; each
against a plain version.

    python benchmarks/micro.py [--only sinkhorn larc ...] [--ranks 2] [--peer]

Sizes are those of ResNet-50 with 3000 prototypes; `_small` parts are those of the quickstart's network. `--ranks 2`
times Sinkhorn over two gloo processes, where what counts is the number of collectives. `--peer` also times the
counterparts in lightly, scikit-learn and faiss (`pip install faiss-cpu`) where they exist.
"""

import argparse
import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.plain import plain_larc, plain_lars, plain_loss
from benchmarks.timing import Timing, by_turns, machine, table
from src.losses.sinkhorn import sinkhorn
from src.losses.swapped_prediction import swapped_prediction_loss
from src.models.backbones import create_backbone
from src.models.backbones.convolution import as_product
from src.ops.kmeans import assign
from src.optim.ema import momentum_copy, update_momentum_copy
from src.optim.larc import LARC
from src.optim.lars import LARS
from src.parallel import collectives

BASELINE = "plain (baseline)"
PROTOTYPES, DIM = 3000, 128


def unit(rows: int, dim: int, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1).to(device)


def published_sinkhorn(scores: Tensor) -> Tensor:
    """As the paper's code: one call for each crop, the total and every row sum reduced over the ranks."""
    q = torch.exp(scores / 0.05).t()
    samples = q.shape[1] * collectives.world_size()
    q /= collectives.all_reduce_(torch.sum(q))
    for _ in range(3):
        q /= collectives.all_reduce_(torch.sum(q, dim=1, keepdim=True))
        q /= q.shape[0]
        q /= torch.sum(q, dim=0, keepdim=True)
        q /= samples
    return (q * samples).t()


def sinkhorns(device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    scores = torch.stack([unit(64, DIM, device, s) @ unit(PROTOTYPES, DIM, device, 9).T for s in (0, 1)])
    return {
        BASELINE: lambda: [published_sinkhorn(crop) for crop in scores],
        "both crops in one call": lambda: sinkhorn(scores, 0.05, 3),
    }


def losses(device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    z = unit(8 * 64, DIM, device)
    c = unit(PROTOTYPES, DIM, device, 9)
    base = z @ c.T

    def run(loss: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def step() -> None:
            scores = base.detach().requires_grad_()
            loss(scores).backward()

        return step

    def ours(scores: Tensor) -> Tensor:
        scores_VBK = scores.view(8, 64, -1)
        return swapped_prediction_loss(scores_VBK, sinkhorn(scores_VBK[:2].detach(), 0.05, 3), [0, 1], 0.1)

    found = {BASELINE: run(lambda scores: plain_loss(scores, 8, 64)), "ours": run(ours)}
    if peer:
        from lightly.loss import SwaVLoss

        theirs = SwaVLoss()
        found["lightly's SwaVLoss"] = run(
            lambda scores: theirs(list(scores[:128].split(64)), list(scores[128:].split(64)))
        )
    return found


NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-50": {"name": "resnet50"},
    "the quickstart's ResNet-18": {"name": "resnet18", "width": 0.25, "stem": "small"},
}


def with_gradients(network: str, device: torch.device) -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = list(create_backbone(**NETWORKS[network]).to(device).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def larcs(network: str, device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    plain, ours = with_gradients(network, device), with_gradients(network, device)
    sgd = torch.optim.SGD(plain, lr=1e-3, momentum=0.9, foreach=False)
    optimizer = LARC(ours, lr=1e-3, weight_decay=1e-6)
    return {BASELINE: lambda: plain_larc(plain, sgd, 1e-6), "LARC": optimizer.step}


def larses(network: str, device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    plain, ours = with_gradients(network, device), with_gradients(network, device)
    buffers = [torch.zeros_like(p) for p in plain]
    optimizer = LARS(ours, lr=1e-3, weight_decay=1e-6)
    found: dict[str, Callable[[], object]] = {
        BASELINE: lambda: plain_lars(plain, buffers),
        "LARS": optimizer.step,
    }
    if peer:
        from lightly.utils.lars import LARS as LightlyLARS

        found["lightly's LARS"] = LightlyLARS(
            with_gradients(network, device), lr=1e-3, momentum=0.9, weight_decay=1e-6
        ).step
    return found


@torch.no_grad()
def plain_average(average: nn.Module, online: nn.Module) -> None:
    for a, b in zip(average.parameters(), online.parameters(), strict=True):
        a.data = a.data * 0.99 + b.data * (1.0 - 0.99)


def averages(network: str, device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    online = create_backbone(**NETWORKS[network]).to(device)
    ours, theirs, plain = momentum_copy(online), momentum_copy(online), momentum_copy(online)
    found = {
        BASELINE: lambda: plain_average(plain, online),
        "update_momentum_copy": lambda: update_momentum_copy(ours, online, 0.99),
    }
    if peer:
        from lightly.models.utils import update_momentum

        found["lightly's update_momentum"] = lambda: update_momentum(online, theirs, 0.99)
    return found


# Convolutions of small maps: images, channels in and out, side of the map, kernel, stride
MAPS = [
    (192, 512, 512, 1, 3, 1), (64, 512, 512, 2, 3, 1), (64, 256, 512, 4, 3, 2), (192, 256, 256, 2, 3, 1),
    (192, 128, 128, 4, 3, 1), (192, 512, 2048, 1, 1, 1), (64, 1024, 2048, 4, 1, 2), (16, 2048, 512, 7, 1, 1),
    (16, 1024, 256, 14, 1, 1),
]  # fmt: skip


def convolutions(which: tuple[int, ...], device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    """Forward and backward pass in the channels-last layout."""
    images, channels, out, side, kernel, stride = which
    pixels, weight = (
        torch.randn(shape, device=device).to(memory_format=torch.channels_last).requires_grad_()
        for shape in [(images, channels, side, side), (out, channels, kernel, kernel)]
    )
    upstream = torch.randn_like(as_product(pixels, weight, stride))

    def timed(compute: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(compute(), (pixels, weight), upstream)

    return {
        BASELINE: timed(lambda: F.conv2d(pixels, weight, stride=stride, padding=kernel // 2)),
        "as a matrix product": timed(lambda: as_product(pixels, weight, stride)),
    }


def kmeans_steps(device: torch.device, peer: bool) -> dict[str, Callable[[], object]]:
    """One iteration on 20,000 x 128 with 500 clusters."""
    x, c = unit(20_000, DIM, device), unit(500, DIM, device, 1)

    def ours() -> None:
        labels = assign(x, c)
        torch.zeros_like(c).index_add_(0, labels, x)
        torch.bincount(labels, minlength=len(c))

    def plain() -> None:
        labels = (x @ c.T).argmax(dim=1)
        for k in range(len(c)):
            x[labels == k].mean(dim=0)

    found: dict[str, Callable[[], object]] = {BASELINE: plain, "ours": ours}
    if peer and device.type == "cpu":
        from sklearn.cluster import KMeans

        points, start = x.numpy(), c.numpy()
        found["scikit-learn's Lloyd step"] = lambda: KMeans(len(c), init=start, n_init=1, max_iter=1).fit(points)
        with contextlib.suppress(ImportError):
            import faiss

            faiss.omp_set_num_threads(torch.get_num_threads())

            def one_iteration() -> None:
                faiss.Kmeans(DIM, len(c), niter=1, spherical=True, max_points_per_centroid=len(x)).train(
                    points, init_centroids=start
                )

            found["faiss's Lloyd step"] = one_iteration
    return found


PARTS: dict[str, tuple[str, Callable[[torch.device, bool], dict[str, Callable[[], object]]]]] = {
    "sinkhorn": ("Sinkhorn, 2 crops of 64 x 3000, 3 iterations", sinkhorns),
    "loss": ("SwAV loss with Sinkhorn and backward, 8 x 64 x 3000", losses),
    **{
        f"{name}{suffix}": (f"{title}, {network}", functools.partial(make, network))
        for suffix, network in zip(("", "_small"), NETWORKS, strict=True)
        for name, title, make in (
            ("larc", "LARC step", larcs),
            ("lars", "LARS step", larses),
            ("ema", "moving average", averages),
        )
    },
    "kmeans": ("k-means iteration, 20,000 x 128, 500 clusters", kmeans_steps),
    **{
        f"map{number}": (
            f"{images} images, {channels} -> {out} channels, map {side}x{side}, kernel {kernel}, stride {stride}",
            functools.partial(convolutions, (images, channels, out, side, kernel, stride)),
        )
        for number, (images, channels, out, side, kernel, stride) in enumerate(MAPS)
    },
}


def _on_rank(rank: int, size: int, meeting_point: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size)
    # collectives must be called equally often everywhere, so the number of calls is fixed
    results = by_turns(sinkhorns(torch.device("cpu"), False), BASELINE, rounds, seconds=0.0)
    if rank == 0:
        print(table(f"Sinkhorn over {size} gloo processes", results, "ms", 0.0) + "\n")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--peer", action="store_true", help="also time lightly, scikit-learn and faiss")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"{machine()}\n")
    if args.ranks > 1:
        with tempfile.TemporaryDirectory() as folder:
            arguments: tuple[Any, ...] = (args.ranks, f"{folder}/meet", 20 * args.rounds)
            torch.multiprocessing.spawn(_on_rank, args=arguments, nprocs=args.ranks)
        return
    for name in args.only:
        title, make = PARTS[name]
        results: dict[str, Timing] = by_turns(make(device, args.peer), BASELINE, args.rounds)
        print(table(title, results, "ms", 0.0) + "\n")


if __name__ == "__main__":
    main()
