"""Processes: trainings that torchrun starts, and the end of what others have started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from testing.paths import ROOT


def train_in_processes(folder: Path, run_dir: Path, world_size: int, steps: int, *settings: str) -> None:
    """Train with torchrun, which is the start without Ray; `testing.train_worker` is each process."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}",
        "--max-restarts=1",  # once in some hundred runs, a thread of Gloo aborts a process as it ends
        "-m", "testing.train_worker", str(folder), str(run_dir), str(steps), *settings,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def children_of(pid: int) -> list[psutil.Process]:
    """All descendants of a process; none if it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: list[psutil.Process]) -> None:
    """Send SIGKILL to those that have not ended."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
