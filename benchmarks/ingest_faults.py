"""Ingestion writes the same dataset when processes die, the disk fills or a source vanishes.

    python -m benchmarks.ingest_faults          every fault, JSON to benchmarks/results/ingest_faults.json

An undisturbed run is the reference. Each fault strikes a run of its own; the command is then given again
until it succeeds, and every file of the dataset is compared by checksum. Nothing is injected into the
program: signals are sent when a file of a given name appears. All workers are stopped (SIGSTOP) for the
moment it takes to see whether the wanted state still stands, so a fault hits where its name says or waits
for the next shard.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from testing.ingest_faults import FAULTS, disk_full, prepare, strike
from testing.paths import ROOT

RESULT = ROOT / "benchmarks" / "results" / "ingest_faults.json"


def main() -> None:
    """Every fault."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-faults-"))
    try:
        calm, reference = prepare(folder)
        outcomes = []
        for fault in FAULTS:
            outcomes.append(strike(fault, calm, reference))
            print(outcomes[-1], flush=True)
        if os.geteuid() == 0:
            outcomes.append(disk_full(calm, reference))
            print(outcomes[-1], flush=True)
    finally:
        shutil.rmtree(folder)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
