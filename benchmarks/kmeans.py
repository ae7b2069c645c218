"""One clustering of DeepCluster-v2 at the size of ImageNet: time, and memory beyond the embeddings themselves.

    python benchmarks/kmeans.py [--samples 1281167] [--clusters 3000] [--iterations 10]

`benchmarks/micro.py --only kmeans --peer` compares one iteration with scikit-learn and faiss on a smaller set.
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.timing import machine, wait_for_device
from src.ops.kmeans import chunk_bytes_on, spherical_kmeans


def peak_gib(device: torch.device) -> float:
    """Largest memory so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=3000)
    parser.add_argument("--iterations", type=int, default=10)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    # groups of directions, so that there is something to find
    centres = F.normalize(torch.randn(args.clusters, args.dim), dim=1)
    features = torch.empty(args.samples, args.dim, device=device)
    for part in features.split(1 << 14):  # in parts, so that making them needs no memory worth mentioning
        noisy = centres[torch.randint(args.clusters, (len(part),))] + 0.1 * torch.randn(part.shape)
        part.copy_(F.normalize(noisy, dim=1))
    start = features[torch.randperm(args.samples)[: args.clusters].to(device)]
    before = peak_gib(device)
    started = time.perf_counter()

    def progress(done: int) -> None:
        wait_for_device()
        print(f"iteration {done}/{args.iterations}: {time.perf_counter() - started:.1f} s", flush=True)

    centroids, labels = spherical_kmeans(features, start, args.iterations, progress=progress)
    wait_for_device()
    seconds = time.perf_counter() - started
    found = (centroids @ centres.to(device).T).amax(dim=0)
    print(machine())
    print(
        f"{args.samples} x {args.dim}, {args.clusters} clusters, {args.iterations} iterations: {seconds:.0f} s, "
        f"{2 * args.samples * args.dim * args.clusters * (args.iterations + 1) / seconds / 1e9:.0f} GFLOP/s"
    )
    print(
        f"memory: peak {peak_gib(device):.2f} GiB, {peak_gib(device) - before:.2f} GiB of them for the clustering "
        f"(data {features.nbytes / 2**30:.2f} GiB; scores are bounded at {chunk_bytes_on(device) / 2**20:.0f} MiB)"
    )
    print(
        f"clusters in use {(torch.bincount(labels, minlength=args.clusters) > 0).float().mean().item():.3f}, "
        f"true directions found (cosine above 0.9) {(found > 0.9).float().mean().item():.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
