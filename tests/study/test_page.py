"""Tables of a study's page."""

from src.study import page
from src.study.method import Method
from src.study.statistics import differences

import numpy as np


def test_pairs_say_how_many_seeds_they_have_in_common():
    generator = np.random.default_rng(0)
    seeds = {"swav": range(1, 11), "byol": range(1, 4), "moco": range(1, 11), "dino": range(11, 14), "simclr": range(0)}
    right = {name: {seed: generator.uniform(size=50) < 0.5 for seed in its} for name, its in seeds.items()}
    methods = {name: Method(name.upper(), right={"knn": rows} if rows else {}) for name, rows in right.items()}
    tested = page.Tested(differences({name: rows for name, rows in right.items() if rows}), "swav")
    rows = {line.split(" | ")[0]: line for line in page._less(methods, list(methods), tested, "knn", "swav")[2:-1]}
    assert rows.keys() == {"| BYOL", "| MOCO", "| DINO"}  # not itself, nor what was not judged
    assert rows["| BYOL"].endswith(("within noise (3 seeds in common) |", "real (3 seeds in common) |"))
    assert rows["| MOCO"].endswith(("within noise |", "real |"))
    assert rows["| DINO"] == "| DINO | - | - | no seed in common |"
