"""Trainings in processes started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

from testing.paths import ROOT


def train_in_processes(folder: Path, run_dir: Path, world_size: int, steps: int, *settings: str) -> None:
    """Train with torchrun, which is the start without Ray; `testing.train_worker` is each process."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}",
        "-m", "testing.train_worker", str(folder), str(run_dir), str(steps), *settings,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
