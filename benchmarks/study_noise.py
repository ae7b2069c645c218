"""How often a study calls chance a difference, and what pairing is worth; from many runs of two methods.

    python study.py data/patches --methods moco simclr --seeds 24 --epochs 3 ... --dump_path studies/noise
    python benchmarks/study_noise.py studies/noise
    python benchmarks/study_noise.py --simulate

A/A studies compare a method with itself: some seeds of it under one name, and others under further names. Every "real"
among them is wrong, and about 5 of 100 may be. The plain paired bootstrap (seeds and test images are drawn again,
percentiles, Bonferroni's correction for all pairs) is measured beside what a study does. Studies are resampled from the
same runs, so they overlap, and the shares are known less well than so many studies of their own would tell.
--simulate draws studies of equal methods by chance, also of many methods, and of such whose seeds differ more than
others' do.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.errors import UserError
from src.settings import setting
from src.study.judge import RIGHT
from src.study.statistics import differences

import numpy as np

DRAWS = 1000
IMAGES = 500


@dataclass(frozen=True)
class Settings:
    """Noise of studies"""

    study: str = setting("", "folder of a study of two methods or more with many seeds")
    simulate: bool = setting(False, "draw studies by chance instead", switch=True)
    seeds: int = setting(5, "seeds of a method in each resampled study", at_least=2, at_most=100)
    studies: int = setting(1000, "resampled studies", at_least=10, at_most=1e6)
    measure: str = setting("knn", "what is compared", choices=["knn", "linear"])


SCRIPT = cli.Script("How often a study calls chance a difference.", Settings(), positionals=("study",))


def right_of(folder: Path, measure: str) -> dict[str, np.ndarray]:
    """Method -> (seeds, images), whether each network was right; all methods with the same seeds."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for path in folder.glob(f"runs/*/{RIGHT}"):
        method, _, seed = path.parent.name.rpartition("-")
        with np.load(path) as content:
            found.setdefault(method, {})[int(seed)] = content[measure]
    if not found:
        raise UserError(f"{folder} holds no judged runs")
    common = sorted(set.intersection(*(set(one) for one in found.values())))
    return {method: np.stack([one[seed] for seed in common]) for method, one in found.items() if method != "random"}


def bootstrap_is_real(table: np.ndarray, pairs: int, generator: np.random.Generator) -> bool:
    """Whether the percentiles of resampled seeds and images leave out 0, corrected for so many pairs."""
    seeds, images = table.shape
    drawn = np.empty(DRAWS)
    for number in range(DRAWS):
        rows = table[generator.integers(0, seeds, seeds)].mean(axis=0)
        drawn[number] = rows[generator.integers(0, images, images)].mean()
    low, high = np.percentile(drawn, [2.5 / pairs, 100 - 2.5 / pairs])
    return bool(low > 0 or high < 0)


def against_itself(right: np.ndarray, own: Settings, generator: np.random.Generator) -> None:
    """A/A studies of one method."""
    total = len(right)
    for names in sorted({2, min(4, total // own.seeds)}):
        called = by_bootstrap = 0
        tried = min(own.studies, 200)
        for number in range(own.studies):
            chosen = generator.permutation(total)[: names * own.seeds].reshape(names, own.seeds)
            found = differences({str(n): dict(enumerate(right[rows])) for n, rows in enumerate(chosen)})
            called += any(one.is_real for one in found.values())
            if number < tried:
                tables = [right[a].astype(float) - right[b] for a, b in itertools.combinations(chosen, 2)]
                by_bootstrap += any(bootstrap_is_real(table, len(tables), generator) for table in tables)
        shares = 100 * called / own.studies, 100 * by_bootstrap / tried
        print(f"  {names} names: any called real in {shares[0]:.1f} % of {own.studies} A/A studies; "
              f"by the plain bootstrap in {shares[1]:.1f} % of {tried}")  # fmt: skip


def worth_of_pairing(first: np.ndarray, second: np.ndarray, own: Settings, generator: np.random.Generator) -> None:
    """How much wider the interval of a difference is without pairs: ratios in the same resampled studies, with
    quartiles."""
    by_seed, by_image = [], []
    images = first.shape[1]
    for _ in range(own.studies):
        chosen = generator.permutation(len(first))[: own.seeds]
        a, b = first[chosen].astype(float), second[chosen].astype(float)
        spread = np.var(a.mean(axis=1) - b.mean(axis=1), ddof=1)
        alone = np.var(a.mean(axis=1), ddof=1) + np.var(b.mean(axis=1), ddof=1)
        by_seed.append(np.sqrt(alone / spread))
        # test images of their own for each method: both proportions vary by the draw of the images
        same = np.var((a - b).mean(axis=0), ddof=1) / images
        other = (np.var(a.mean(axis=0), ddof=1) + np.var(b.mean(axis=0), ddof=1)) / images
        by_image.append(np.sqrt(other / same))
    for name, ratios in (("seeds", by_seed), ("test images", by_image)):
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"  without pairs of {name} the error is {middle:.2f} times as large (quartiles {low:.2f} to {high:.2f})")


def alike(methods: int, generator: np.random.Generator) -> np.ndarray:
    """(methods,) how much the seeds of each differ, in the unit of ``simulated``."""
    return np.full(methods, 0.05)


def one_more(methods: int, generator: np.random.Generator) -> np.ndarray:
    return np.array([0.6, *[0.05] * (methods - 1)])


def each_its_own(methods: int, generator: np.random.Generator) -> np.ndarray:
    """As different as the methods of docs/studies/photographs are: logarithms with a standard deviation of 0.43."""
    return 0.2 * np.exp(generator.normal(0, 0.43, methods))


def simulated(own: Settings, spreads: np.ndarray, generator: np.random.Generator) -> tuple[bool, np.ndarray]:
    """Whether a study of equal methods calls any difference real; and the standard deviation of each method's accuracy
    over seeds, in percent, as it came out: each network is right or wrong by chance, too.

    What a method finds easy is partly its own; ``spreads`` is how much more or less its seeds find easy, in logits.
    """
    easy = generator.normal(0, 1.2, IMAGES)
    right, found = {}, []
    for number, spread in enumerate(spreads):
        worth = easy + generator.normal(0, 1, (1, IMAGES)) + generator.normal(0, spread, (own.seeds, 1))
        rows = generator.uniform(size=(own.seeds, IMAGES)) < 1 / (1 + np.exp(-worth))
        right[str(number)] = dict(enumerate(rows))
        found.append(100 * rows.mean(axis=1).std(ddof=1))
    return any(one.is_real for one in differences(right).values()), np.array(found)


def tell_simulated(own: Settings) -> None:
    print(f"percent of {own.studies} studies of equal methods with {own.seeds} seeds that call any difference real")
    for methods in (2, 6, 20):
        for spreads_of in (alike, one_more, each_its_own):
            generator = np.random.default_rng(0)
            drawn = [simulated(own, spreads_of(methods, generator), generator) for _ in range(own.studies)]
            share = 100 * np.mean([called for called, _ in drawn])
            deviations = np.sqrt(np.mean([found**2 for _, found in drawn], axis=0))  # of each method
            first, others = deviations[0], np.median(deviations[1:])
            print(f"  {methods} methods, {spreads_of.__name__}: {share:.1f} % (standard deviation over seeds: "
                  f"{first:.1f} % of the first, {others:.1f} % of the others)", flush=True)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    own = SCRIPT.parse(argv).settings
    if own.simulate:
        tell_simulated(own)
        return 0
    if not own.study:
        raise UserError("which study? Give its folder, or --simulate")
    right = right_of(Path(own.study), own.measure)
    generator = np.random.default_rng(0)
    total = min((len(rows) for rows in right.values()), default=0)
    if total < 2 * own.seeds:
        raise UserError(f"{own.study} has {total} seeds of each method, and A/A studies need {2 * own.seeds}")
    for method, rows in right.items():
        each = 100 * rows.mean(axis=1)
        print(f"{method}: {total} runs, {own.measure} {each.mean():.1f} %, standard deviation {each.std(ddof=1):.2f}")
        against_itself(rows, own, generator)
    names = list(right)
    for second in names[1:]:
        print(f"{names[0]} and {second}")
        worth_of_pairing(right[names[0]], right[second], own, generator)
    return 0


if __name__ == "__main__":
    cli.run(main)
