"""The memory that `reelflow plan` predicts for a training on CPU, and what such a training takes.

    python -m benchmarks.plan
    python -m benchmarks.plan --sizes small --stages 2 --workers 1      # adds to the results that are there
    python -m benchmarks.plan --predict

A grid of sizes, ZeRO stages, kinds of activation checkpointing and numbers of workers. Each training makes three steps
in processes of its own. Measured is the most resident memory of the first worker above what it had before the network
was built, by which time a tiny network has been trained in it, so that libraries have taken what they need. Freed
blocks are returned to the system at once (`MALLOC_MMAP_THRESHOLD_`), so that the peak is that of the tensors.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from data.files.publish import publish_text
from pipeline.train.memory_plan import WorkerMemory
from testing.memory import MODES, SIZES, Case, measure, predict

RESULT = Path(__file__).parent / "results" / "plan.json"
GOAL = 0.10


@dataclass(frozen=True)
class Row:
    """What was predicted and measured, in bytes."""

    case: Case
    predicted: WorkerMemory
    predicted_bytes: int
    measured_bytes: int
    error: float
    """(predicted - measured) / measured."""


def row(case: Case, measured: int) -> Row:
    """What was measured beside what is predicted today."""
    predicted = predict(case)
    return Row(case, predicted, predicted.total, measured, predicted.total / measured - 1)


def earlier(path: Path) -> dict[Case, int]:
    """What a file of results holds: peaks in bytes."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return {Case(**each["case"]): each["measured_bytes"] for each in rows}


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """The grid; selective checkpointing is not for stage 3."""
    grid = product(arguments.sizes, arguments.stages, arguments.checkpointing, arguments.workers)
    for size, stage, checkpointing, workers in grid:
        if not (stage == 3 and checkpointing == "selective"):
            yield Case(size, stage, checkpointing, workers)


def main() -> None:
    """Predict and measure a grid, print and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=[name for name in SIZES if name != "tiny"], choices=list(SIZES))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--checkpointing", nargs="+", default=["none", "all"], choices=list(MODES))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--predict", action="store_true", help="measure nothing, predict again what was measured")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    measured = earlier(arguments.output)
    for case in () if arguments.predict else cases(arguments):
        (measured[case],) = measure([case])
        print(f"{case}: {measured[case] / 2**20:.1f} MiB", flush=True)
        write(arguments.output, [row(each, peak) for each, peak in measured.items()])
    rows = [row(case, peak) for case, peak in measured.items()]
    write(arguments.output, rows)
    for each in rows:
        case, parts = each.case, {name: round(value / 2**20) for name, value in asdict(each.predicted).items()}
        print(
            f"{case.size:6} stage {case.stage} {case.checkpointing:9} {case.workers} workers: predicted "
            f"{each.predicted_bytes / 2**20:7.1f} MiB, measured {each.measured_bytes / 2**20:7.1f}, {each.error:+.1%} "
            f"{parts}"
        )
    print(f"worst error {max(abs(each.error) for each in rows):.1%}, goal {GOAL:.0%}")


def write(path: Path, rows: list[Row]) -> None:
    """The results, with the worst error."""
    worst = max(abs(each.error) for each in rows)
    figures = {"goal": GOAL, "worst": worst, "torch": torch.__version__, "rows": [asdict(each) for each in rows]}
    publish_text(path, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
