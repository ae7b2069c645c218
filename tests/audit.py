"""What the training steps of every method do to a device, seen on one that only pretends to be there.

    python -m tests.audit [--only swav twist ...] [--precision fp32 ...] [--json FILE]

Prints, for each of the command lines of ``tests/same_runs.py`` in each precision, how often a step makes the host wait
for the device, how many kernels it runs and how many bytes it copies from the host. Exits with 1 where a step waits
though it need not, mixes devices, makes float64 outside the stated places, changes its sizes from step to step, or
computes other numbers than the CPU.
"""

import argparse
import contextlib
import io
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.data.loading import Batch
from tests.helpers import photograph_patches
from tests.steps import LINES, make_teacher, steps, training_of
from tests.watch import Record, Watch, pretended_device

import torch

# What is said after a line: its precision, and what else a step may do
PRECISIONS = {
    "fp32": ["--precision", "fp32"],
    "bf16": ["--precision", "bf16"],
    "fp16": ["--precision", "fp16", "--clip_norm", "1"],
}
# Lines whose steps of fp16 take two batches; swav-heads and w2ssl-quarters do in any precision
ACCUMULATED = ("swav", "deepcluster-v2", "moco", "disco")

# torch has no eigendecomposition that does not read from the device whether it could be done; how many a step has
UNAVOIDABLE = "aten._linalg_eigh"
DECOMPOSITIONS = {"cwrgp": 1, "pca": 1, "zero_icl": 1, "cwrgp-four-views": 2}
# Where float64 belongs: the mean of an image's grey levels, which is exact so; covariances of images that look alike;
# SeLa's transport plan, whose exponents are large; torch's own reciprocal of the loss scale
DOUBLES = ("augment.py", "whitening.py", "cwrgp.py", "sela.py", "self.scaler.unscale_(self.optimizer)")
WITH_DOUBLE_GRADIENTS = ("cwrgp", "wmse", "pca", "cwrgp-four-views")


@dataclass
class Audit:
    """What the steps of a command line did.

    Attributes:
        line, precision: of :data:`tests.steps.LINES` and :data:`PRECISIONS`.
        epochs: the steps of each epoch, without what readies the batches.
        batches: what readies the batch, or the batches, of each step: colours, normalisation.
        log_steps: those whose values are logged, where waiting is allowed.
        between: before the epochs, where it is, too.
        losses: of all steps.
    """

    line: str
    precision: str
    epochs: list[list[Record]] = field(default_factory=list)
    batches: list[Record] = field(default_factory=list)
    log_steps: list[Record] = field(default_factory=list)
    between: Record = field(default_factory=Record)
    losses: list[float] = field(default_factory=list)

    @property
    def steps(self) -> list[Record]:
        """Without the first, in which is made what is kept."""
        return [record for epoch in self.epochs for record in epoch][1:]

    @property
    def waits(self) -> Counter[str]:
        return sum((record.waits for record in [*self.steps, *self.batches[1:]]), Counter())

    def faults(self) -> list[str]:
        """What must not be, in words."""
        found = {f"waits: {place}" for place in self.waits if not place.startswith(UNAVOIDABLE)}
        needed = len(self.steps) * DECOMPOSITIONS.get(self.line, 0)
        decompositions = sum(count for place, count in self.waits.items() if place.startswith(UNAVOIDABLE))
        if decompositions > needed:
            found.add(f"waits: {UNAVOIDABLE} {decompositions} times in {len(self.steps)} steps")
        for record in [*(record for epoch in self.epochs for record in epoch), *self.log_steps, *self.batches]:
            found |= {f"mixes devices: {place}" for place in record.mixed}
            found |= {f"float64: {place}" for place in record.doubles if not self._may_be_double(place)}
        for epoch in self.epochs:
            for before, after in itertools.pairwise(epoch[1:]):  # with an epoch, methods change what they do
                if before.shapes != after.shapes:
                    pairs = zip(before.shapes, after.shapes, strict=False)
                    change = next((f"{a} became {b}" for a, b in pairs if a != b), "one step does more than another")
                    found.add(f"sizes change: {change}")
        return sorted(found)

    def _may_be_double(self, place: str) -> bool:
        stated = self.line in WITH_DOUBLE_GRADIENTS and ".backward()" in place
        return stated or any(island in place for island in DOUBLES)

    def numbers(self) -> dict[str, object]:
        """Of a step, the mean of all but the first."""
        steps, batches = self.steps, self.batches[1:]
        return {
            "line": self.line,
            "precision": self.precision,
            "waits": round(sum(self.waits.values()) / len(steps), 1),
            "kernels": round(sum(record.kernels for record in steps) / len(steps)),
            "of the batch": round(sum(record.kernels for record in batches) / len(batches)),
            "bytes sent": round(sum(record.sent for record in steps) / len(steps))
            + round(sum(record.sent for record in batches) / len(batches)),
            "waits in log steps": round(sum(sum(r.waits.values()) for r in self.log_steps) / len(self.log_steps), 1),
            "waits between epochs": sum(self.between.waits.values()),
        }


def audit(
    line: str, precision: str, patches: Path, runs: Path, device: torch.device, watch: Watch, per_epoch: int
) -> Audit:
    """Makes steps of a command line on the pretended device, the last of them a log step.

    Args:
        patches, runs: as in :func:`tests.steps.training_of`.
        per_epoch: steps of an epoch, and half as many of the next.
    """
    training = training_of(line, patches, runs, device, *_words(line, precision))
    first = min(per_epoch, training.clock.steps_per_epoch)
    counts = (first, max(first // 2, 1))
    assert first > 1, "the first step makes what is kept: more are needed"
    found = Audit(line, precision)
    real_prepare, clock = training.prepare, training.clock
    of_the_batch = found.between  # the look before the first step reads batches, too

    def prepare(batch: Batch) -> Batch:
        with watch.noting(of_the_batch):
            return real_prepare(batch)

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        nonlocal of_the_batch
        step, of_the_batch = Record(), Record()
        found.batches.append(of_the_batch)
        if clock.step_in_epoch == 0:
            found.epochs.append([])
        clock.logging = clock.epoch == 1 and clock.step_in_epoch == counts[1] - 1
        (found.log_steps if clock.logging else found.epochs[-1]).append(step)
        with watch.noting(step):
            yield

    training.prepare = prepare
    with watch.noting(found.between):
        for outputs in steps(training, around, counts):
            with watch.noting(Record()):
                found.losses.append(outputs["loss"].item())
    return found


def _words(line: str, precision: str) -> list[str]:
    words = PRECISIONS[precision]
    if line == "dino":
        words = [word.replace("--clip_norm", "--clip_grad") for word in words]
    return [*words, "--accumulate", "2"] if precision == "fp16" and line in ACCUMULATED else words


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(LINES), choices=list(LINES), metavar="LINE")
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--steps", type=int, nargs="*", default=[4], help="in each precision; see audit()")
    parser.add_argument("--patches", type=Path, help="a folder of images; default: cut from data/photographs")
    parser.add_argument("--json", type=Path, help="where the numbers and faults go, too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        runs = Path(folder)
        patches = given.patches or photograph_patches(runs / "patches")
        with contextlib.redirect_stdout(io.StringIO()):
            make_teacher(patches, runs)
        with pretended_device() as (device, watch):
            found = [
                audit(line, precision, patches, runs, device, watch, per_epoch)
                for line in given.only
                for precision, per_epoch in zip(given.precision, itertools.cycle(given.steps), strict=False)
            ]
    rows = [one.numbers() for one in found]
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [dict(zip(widths, widths, strict=True)), *rows]:
        print("  ".join(f"{value!s:<{widths[name]}}" for name, value in row.items()))
    faults = {f"{one.line} {one.precision}": one.faults() for one in found}
    for name, texts in faults.items():
        for text in texts:
            print(f"{name}: {text}")
    if given.json:
        losses = {f"{one.line} {one.precision}": one.losses for one in found}
        given.json.write_text(json.dumps({"rows": rows, "faults": faults, "losses": losses}))
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
