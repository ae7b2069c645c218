"""Timing by turns: on a shared machine only ratios within one run mean anything."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Timing:
    """Seconds for one call, the median over rounds; and how many times faster than the baseline of the same round."""

    seconds: float
    speedup: float
    spread: tuple[float, float]  # the quartiles of the speedup
    cpu: float  # seconds of all threads of this process


def by_turns(
    contestants: dict[str, Callable[[], object]], baseline: str, rounds: int = 9, seconds: float = 0.3
) -> dict[str, Timing]:
    """Runs every contestant in each round, for at least so many seconds, and compares within the round."""
    calls = {}
    for name, function in contestants.items():
        function()
        wait_for_device()
        started = time.perf_counter()
        function()
        wait_for_device()
        calls[name] = max(1, round(seconds / max(time.perf_counter() - started, 1e-6)))
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    on_cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, function in contestants.items():
            started, cpu_before = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                function()
            wait_for_device()
            on_cpu[name].append((time.process_time() - cpu_before) / calls[name])
            measured[name].append((time.perf_counter() - started) / calls[name])
    results = {}
    for name, times in measured.items():
        ratios = [base / own for base, own in zip(measured[baseline], times, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        cpu = statistics.median(on_cpu[name])
        results[name] = Timing(statistics.median(times), statistics.median(ratios), (quartiles[0], quartiles[2]), cpu)
    return results


def record(**values: object) -> None:
    """Adds a line to the file that the environment names as ``BENCHMARK_RECORDS``, for `benchmarks/summary.py`."""
    if "BENCHMARK_RECORDS" in os.environ:
        with open(os.environ["BENCHMARK_RECORDS"], "a") as file:
            file.write(json.dumps(values) + "\n")


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def anonymous_bytes() -> int:
    """This process's memory that is neither shared nor a file's."""
    total, in_memory = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            in_memory = fields[4] == "0"  # the inode: no file
        elif in_memory and fields[0] == "Private_Dirty:":
            total += int(fields[1]) * 1024
    return total


def machine() -> str:
    """One line: what this was measured on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def table(title: str, results: dict[str, Timing], unit: str, per_call: float, cpu: bool = False) -> str:
    """A Markdown table. ``per_call`` / seconds is the rate in ``unit``; with per_call 0, milliseconds.

    With ``cpu`` also the processor time of a call.
    """
    lines = [f"| {title} | {unit if per_call else 'ms'} | times the baseline | quartiles |", "|---|---|---|---|"]
    if cpu:
        lines = [lines[0] + " CPU ms each |", lines[1] + "---|"]
    for name, timing in results.items():
        value = per_call / timing.seconds if per_call else 1e3 * timing.seconds
        low, high = timing.spread
        line = f"| {name} | {value:.4g} | {timing.speedup:.2f} | {low:.2f} to {high:.2f} |"
        lines.append(line + f" {1e3 * timing.cpu:.3g} |" if cpu else line)
    return "\n".join(lines)
