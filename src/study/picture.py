"""A study's picture."""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from ..plots import save_figure
from .method import Method
from .plan import RANDOM
from .statistics import interval


def draw(methods: Mapping[str, Method], order: list[str], name: str, title: str, path: Path) -> None:
    """Intervals over seeds of ``knn`` or a score, called ``title``, with the runs as points, and the mean curves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.5 + 0.32 * len(order)))
    shown = [one for one in order if methods[one].values(name)]
    for row, one in enumerate(reversed(shown)):
        values = methods[one].values(name)
        mean, low, high = interval(values)
        colour = "tab:grey" if one == RANDOM else "tab:blue"
        left.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4)
        if not math.isnan(low):
            left.plot([low, high], [row, row], color=colour, linewidth=2)
        left.plot([mean], [row], "|", color=colour, markersize=12, markeredgewidth=2)
    left.set_yticks(range(len(shown)), [methods[one].title for one in reversed(shown)])
    left.set(xlabel=title, title="means and 95 % intervals over seeds; points are runs")
    left.grid(alpha=0.3)
    records = [record for one in methods.values() for curve in one.curve.values() for record in curve]
    key, known = ("knn_top1", "10-NN, %") if name == "knn" else (name, title)
    if not any(record.get(key) is not None for record in records):
        key, known = "rankme", "RankMe"
    for number, one in enumerate(shown):
        by_epoch: dict[int, list[float]] = {}
        for records in methods[one].curve.values():
            for record in records:
                if record.get(key) is not None:
                    by_epoch.setdefault(record["epoch"], []).append(record[key])
        if by_epoch:
            epochs = sorted(by_epoch)
            style = ("-", "--", ":")[number // 10 % 3]
            means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
            right.plot(epochs, means, marker="o", markersize=3, linestyle=style, label=methods[one].title)
    right.set(xlabel="epoch", title=f"while training: {known} (mean over seeds)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize=7, frameon=False, handlelength=4, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)
