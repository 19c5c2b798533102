"""How long a training with compiled blocks takes to its first step, with an empty folder of compiled code and again.

    python -m benchmarks.compilation

The demo's DiT in the product's loop on one thread: validation, which compiles the blocks without gradients, then three
training steps. Each start is a process of its own. The second start has the folder of the first and no checkpoint, so
that it takes the same steps.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.train import lapped, make_config, make_task
from data.files.publish import publish_text
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.setup import COMPILED_NAME

RESULT = Path(__file__).parent / "results" / "compilation.json"
STEPS = 3
STARTS = {"not compiled": False, "compiled, first start": True, "compiled, second start": True}


def seconds_to_steps(data: Path, run_dir: Path, *, compiles: bool) -> list[float]:
    """When each step has ended, from the start of the loop on."""
    task = make_task(data)
    config = make_config(STEPS).model_copy(update={"compile": compiles, "global_batch": 32, "validation_clips": 16})
    begin = time.perf_counter()
    with lapped() as laps:
        train_here(partial(train, task, config, run_dir), num_threads=1)
    return [moment - begin for moment in laps.times]


def main() -> None:
    """Measure each start in a new process; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--start", nargs=3, metavar=("DATA", "RUN", "COMPILES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.start is not None:
        data, run_dir, compiles = chosen.start
        found = seconds_to_steps(Path(data), Path(run_dir), compiles=compiles == "True")
        print(json.dumps(found))
        return
    starts = {}
    with tempfile.TemporaryDirectory(prefix="reelflow-") as name:
        kept: Path | None = None
        for number, (what, compiles) in enumerate(STARTS.items()):
            run_dir = Path(name) / f"run-{number}"
            if kept is not None:
                shutil.copytree(kept, run_dir / COMPILED_NAME)
            command = [sys.executable, "-m", "benchmarks.compilation", "--start", str(Path(name) / f"data-{number}")]
            done = subprocess.run(
                [*command, str(run_dir), str(compiles)], stdout=subprocess.PIPE, text=True, check=True
            )
            starts[what] = json.loads(done.stdout.splitlines()[-1])
            kept = run_dir / COMPILED_NAME if compiles else None
            libraries = len(list(kept.rglob("*.so"))) if kept is not None else 0
            print(f"{what:24} steps end after {', '.join(f'{s:.1f}' for s in starts[what])} s; {libraries} libraries")
    figures = {"seconds_to_steps": starts, "torch": torch.__version__, "load_average": os.getloadavg()[0]}
    publish_text(chosen.output, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
