"""What `benchmarks/gpu.sh` measured, as one table and as JSON with the card's name.

    python benchmarks/summary.py RECORDS OUT.json [RUN ...]

RECORDS is what the benchmarks wrote under ``BENCHMARK_RECORDS`` (:func:`benchmarks.timing.record`), a JSON object a
line; each RUN is the folder of a training, whose log gives its images/s and the share of time that it waited for data.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.timing import machine
from src.engine.monitor import read_log

COLUMNS = {
    "what": "what",
    "images_per_second": "images/s",
    "times_the_baseline": "times the plain baseline",
    "times_the_step": "times the step alone",
    "peak_mb": "peak memory, MB",
    "waiting": "waiting for data",
}


def rows_of(records: Sequence[dict[str, Any]], runs: Sequence[Path]) -> list[dict[str, Any]]:
    """A row each: what the benchmarks recorded, and the trainings by the medians of their log lines but the first."""
    rows = [{name: record[name] for name in COLUMNS if name in record} for record in records]
    for run in runs:
        lines = read_log(run / "log.jsonl", "train")[1:]
        if not lines:
            raise SystemExit(f"{run}: its log has fewer than two lines of training")
        rate = statistics.median(line["images_per_second"] for line in lines)
        waiting = statistics.median(line["waiting_for_data"] for line in lines)
        rows.append({"what": f"training, {run.name}", "images_per_second": rate, "waiting": waiting})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row.get(name, "") for name in COLUMNS]
        lines.append(f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.4g}' for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.records.read_text().splitlines()]
    rows = rows_of(records, args.runs)
    args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"{machine()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
