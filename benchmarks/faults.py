"""Break a training in every way we know of and see that it ends as if nothing had happened.

    python -m benchmarks.faults [--repeats 5] [--output benchmarks/results/faults.json]

Each cell runs `launch train dit` on a Ray cluster of its own: 24 steps of a tiny DiT on two workers, a
checkpoint every three, one fault, and as many further starts of the same command as it takes. The workers
run the product's loop on a task of this file that knows how to die; nothing in the product knows of it.
"""

import argparse
import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch.distributed as dist
import yaml
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.records import SMALL, write_random_latents
from data.publish import publish_text
from data.shards import MANIFEST_NAME, BucketRecord, LatentStats, Manifest
from models.dit import DiT
from pipeline import saving, seeds
from pipeline.checkpoint import (
    FOLDER_NAME,
    LATEST_NAME,
    RECORD_NAME,
    CheckpointRecord,
    FileRecord,
    rank_file,
    step_folders,
)
from pipeline.flow_preview import FlowQuery
from pipeline.journal import read_events
from pipeline.metrics import read_metrics
from pipeline.stage import RECORD_NAME as STAGE_NAME
from pipeline.stage import StageRecord
from pipeline.train_dit import AUTOENCODER_NAME, DiTTask, FlowBatch, FlowMatchingLoss

ROOT = Path(__file__).resolve().parent.parent
STEPS, INTERVAL, STRIKE = 24, 3, 8  # faults strike in step 8; the checkpoint of step 6 is the newest then
STRUCK_SAVE = 6
# A save is written within a step, as in a real training, and the workers of a killed driver do not come to the end.
STEP_SECONDS = 0.25
SHAPE = (4, 2, 4, 4)
TIMEOUT_SECONDS = 240

Fault = Literal[
    "none",
    "worker killed in step",
    "worker killed in backward",
    "worker killed during save",
    "worker killed between save and publish",
    "worker killed between publish and latest",
    "driver killed",
    "raylet killed",
    "SIGTERM",
    "disk full during save",
    "newest shard corrupted",
    "newest shard deleted",
    "two starts at once",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)[1:]

STRUCK_FROM_OUTSIDE: tuple[Fault, ...] = (
    "driver killed",
    "raylet killed",
    "SIGTERM",
    "newest shard corrupted",
    "newest shard deleted",
)


class CellResult(BaseModel):
    """What came of one fault at one ZeRO stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: Fault
    zero_stage: int
    finished: bool
    losses_bit_identical: bool
    batches_in_order: bool  # none lost, none foreign, and only recomputed ones seen twice
    num_recomputed_steps: int
    num_starts_of_the_command: int
    num_starts_of_the_training: int  # more, where Ray restarted the workers by itself
    recovery_seconds: float  # from the fault to the first step that had not been done before it
    said: str  # the line that tells the user


# ------------------------------------------------------------------ inside the workers


@dataclass(frozen=True)
class FaultyTask(DiTTask):
    """A DiT that logs what it is fed, and is struck once."""

    fault: Fault = "none"
    log_dir: Path = Path()

    def build(self) -> nn.Module:
        """The loss that logs and dies; where the fault is in saving, the writer that does."""
        if self.fault == "worker killed during save":
            saving.write_tensors = partial(_torn_write, saving.write_tensors, partial(_die, self))
        elif self.fault == "disk full during save":
            saving.write_tensors = partial(_torn_write, saving.write_tensors, partial(_disk_full, self))
        elif self.fault == "worker killed between save and publish":
            saving.publish_text = partial(_publish, self, saving.publish_text, RECORD_NAME)
        elif self.fault == "worker killed between publish and latest":
            saving.publish_text = partial(_publish, self, saving.publish_text, LATEST_NAME)
        return FaultyLoss(DiT(self.model, self.latent_stats.num_channels), self)

    def strikes_now(self) -> bool:
        """True once in the life of a run."""
        try:
            (self.log_dir / "struck").open("x").close()
        except FileExistsError:
            return False
        return True


class FaultyLoss(FlowMatchingLoss):
    """Writes a line for each batch; dies in the forward or the backward pass."""

    def __init__(self, network: DiT, task: FaultyTask) -> None:
        super().__init__(network, task.flow)
        self.task, self.num_calls = task, 0

    def forward(self, batch: FlowBatch | FlowQuery) -> dict[str, Tensor]:
        """As ever, slower."""
        assert isinstance(batch, FlowBatch)  # nothing is sampled here
        time.sleep(STEP_SECONDS)
        self.num_calls += 1
        rank = dist.get_rank()
        content = b"".join(tensor.numpy().tobytes() for tensor in (batch.x_1, batch.x_0, batch.t))
        line = json.dumps({"time": time.time(), "batch": sha256(content).hexdigest()})
        with (self.task.log_dir / f"batches-{rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        losses = super().forward(batch)
        if self.num_calls == STRIKE and rank == dist.get_world_size() - 1:
            if self.task.fault == "worker killed in step":
                _die(self.task)
            if self.task.fault == "worker killed in backward":
                losses["total"].register_hook(lambda _: _die(self.task))
        return losses


def _die(task: FaultyTask) -> None:
    if task.strikes_now():
        os.kill(os.getpid(), signal.SIGKILL)


def _disk_full(task: FaultyTask) -> None:
    if task.strikes_now():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _torn_write(
    write: Callable[..., FileRecord],
    strike: Callable[[], None],
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
) -> FileRecord:
    if f"step_{STRUCK_SAVE:07d}" in str(path) and path.name == rank_file(dist.get_world_size() - 1):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a file")
        strike()
    return write(path, tensors, metadata)


def _publish(task: FaultyTask, publish: Callable[[Path, str], None], struck: str, path: Path, content: str) -> None:
    if path.name == struck and f"step_{STRUCK_SAVE:07d}" in f"{path} {content}":
        _die(task)
    publish(path, content)


# ------------------------------------------------------------------ the driver


def drive(config: Path, fault: Fault, log_dir: Path) -> None:
    """The command line's `train dit`, with the task above in the place of the product's."""
    import launch.__main__
    import launch.road
    from benchmarks.faults import FaultyTask  # not __main__'s: workers unpickle it by this name

    launch.road.DiTTask = partial(FaultyTask, fault=fault, log_dir=log_dir)  # pyright: ignore[reportAttributeAccessIssue]
    launch.__main__.app(["train", "dit", str(config)], prog_name="reelflow")


# ------------------------------------------------------------------ the campaign


def prepare_run(folder: Path, zero_stage: int) -> Path:
    """A run whose latents are made; returns its config."""
    train = {
        "steps": STEPS, "global_batch": 4, "learning_rate": 0.003, "warmup_steps": 2, "precision": "fp32",
        "zero_stage": zero_stage, "checkpoint_every_steps": INTERVAL, "log_every_steps": 1,
    }  # fmt: skip
    config = {
        "name": "run",
        "seed": 7,
        "runs_dir": str(folder),
        "data": {"buckets": [{"num_frames": 5, "height": 32, "width": 32, "fps": 8}]},
        "dit": {
            "model": {
                "width": 32,
                "depth": 1,
                "heads": 2,
                "text": {"width": 16, "depth": 1, "heads": 2, "max_bytes": 16},
            },
            "train": train,
        },
        "cluster": {"object_store_mib": 128},
    }
    write_latents(folder / "run" / "latents")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def write_latents(folder: Path) -> None:
    """Ten random latents, as the encode stage would leave them."""
    shard = write_random_latents(folder, 10, SHAPE, "faults")
    save_file({"x": seeds.normal(0, "faults", [0], (8,))[0]}, folder / AUTOENCODER_NAME)
    manifest = Manifest(
        kind="latents",
        fingerprint="faults",
        buckets=[BucketRecord(bucket=SMALL, num_samples=shard.num_samples, num_train=shard.num_samples)],
        num_samples=shard.num_samples,
        shards=[shard],
        latent_stats=LatentStats(mean=[0.0] * 4, std=[1.0] * 4),
    )
    publish_text(folder / MANIFEST_NAME, manifest.model_dump_json())
    publish_text(
        folder / STAGE_NAME, StageRecord(stage="encode", complete=True, build="faults", inputs={}).model_dump_json()
    )


class Cell:
    """One run of one fault."""

    def __init__(self, folder: Path, fault: Fault, zero_stage: int) -> None:
        self.folder, self.fault, self.zero_stage = folder, fault, zero_stage
        self.config = prepare_run(folder, zero_stage)
        self.run_dir = folder / "run" / "dit"
        self.num_starts = 0
        self.workers: list[psutil.Process] = []
        self.orphans: list[psutil.Process] = []
        self.struck_at = 0.0

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        self.num_starts += 1
        command = [sys.executable, "-m", "benchmarks.faults", "--drive", str(self.config), self.fault, str(self.folder)]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
        output = (self.folder / f"output-{self.num_starts}.txt").open("w+", encoding="utf-8")
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)

    def end_of(self, process: subprocess.Popen[str]) -> int:
        """Wait until it ends by itself."""
        try:
            return process.wait(TIMEOUT_SECONDS)
        finally:
            _kill(_children(process.pid))
            process.kill()

    def outputs_text(self) -> str:
        """Everything the commands said."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("output-*.txt")))

    def batches(self, rank: int = 0) -> list[dict[str, Any]]:
        """What a rank was fed, in order."""
        path = self.folder / f"batches-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until step number `step` has begun."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(self.batches()) < step:
            assert process.poll() is None, f"ended before step {step}:\n{self.outputs_text()}"
            assert time.monotonic() < deadline, f"no step {step}:\n{self.outputs_text()}"
            time.sleep(0.02)

    def strike(self, process: subprocess.Popen[str]) -> None:
        """Do to the driver or its cluster what this cell is about, once the step has come, and see it end."""
        self.wait_for_step(STRIKE, process)
        children = _children(process.pid)
        self.workers = [child for child in children if child.name().startswith("ray::")]
        self.struck_at = time.time()
        if self.fault == "SIGTERM":
            process.send_signal(signal.SIGTERM)
            assert self.end_of(process) == 130, self.outputs_text()
        elif self.fault == "raylet killed":
            # With its workers, as a lost machine takes them along; left alone they may come to the end without it.
            _kill([*self.workers, *(child for child in children if child.name() == "raylet")])
            assert self.end_of(process) != 0, self.outputs_text()
        else:
            process.kill()
            process.wait()
        self.orphans += children  # of a killed driver: the next start finds them alive

    def spoil_newest(self) -> None:
        """Damage the newest checkpoint once nobody writes any more."""
        psutil.wait_procs(self.workers, TIMEOUT_SECONDS)
        newest = self.run_dir / FOLDER_NAME / (self.run_dir / LATEST_NAME).read_text().strip() / rank_file(1)
        if self.fault == "newest shard deleted":
            newest.unlink()
        else:
            content = bytearray(newest.read_bytes())
            content[-5] ^= 1
            newest.write_bytes(content)
        self.struck_at = time.time()

    def run(self) -> None:
        """Start, strike, and start again until the training is finished."""
        try:
            self._run()
        finally:
            _kill(self.orphans)

    def _run(self) -> None:
        first = self.start()
        if self.fault in STRUCK_FROM_OUTSIDE:
            self.strike(first)
            if self.fault.startswith("newest shard"):
                self.spoil_newest()
        elif self.fault == "two starts at once":
            second = self.start()
            assert sorted((self.end_of(first), self.end_of(second))) == [0, 1], self.outputs_text()
            return
        elif self.fault == "disk full during save":
            assert self.end_of(first) == 1, self.outputs_text()
            self.struck_at = (self.folder / "struck").stat().st_mtime
        else:
            assert self.end_of(first) == 0, self.outputs_text()
            if self.fault != "none":
                self.struck_at = (self.folder / "struck").stat().st_mtime
            return
        assert self.end_of(self.start()) == 0, self.outputs_text()


def run_cell(folder: Path, fault: Fault, zero_stage: int, undisturbed: Cell) -> CellResult:
    """Run one fault and compare it with the run that met none."""
    cell = Cell(folder, fault, zero_stage)
    cell.run()
    metrics, expected = read_metrics(cell.run_dir), read_metrics(undisturbed.run_dir)
    names = ("step", "total", "gradient_norm")
    fed = [[row["batch"] for row in cell.batches(rank)] for rank in (0, 1)]
    wanted = [[row["batch"] for row in undisturbed.batches(rank)] for rank in (0, 1)]
    first_seen = [list(dict.fromkeys(batches)) for batches in fed]
    newest = CheckpointRecord.model_validate_json(
        (list(step_folders(cell.run_dir).values())[-1] / RECORD_NAME).read_text(encoding="utf-8")
    )
    return CellResult(
        fault=fault,
        zero_stage=zero_stage,
        finished=newest.step == STEPS,
        losses_bit_identical=[[row[n] for n in names] for row in metrics]
        == [[row[n] for n in names] for row in expected],
        batches_in_order=first_seen == wanted,
        num_recomputed_steps=max(len(batches) for batches in fed) - STEPS,
        num_starts_of_the_command=cell.num_starts,
        num_starts_of_the_training=sum(event.event == "started" for event in read_events(cell.run_dir)),
        recovery_seconds=round(recovery_seconds(cell), 1),
        said=_said(cell.outputs_text()),
    )


def recovery_seconds(cell: Cell) -> float:
    """From the fault until a step that had not been done before; 0 where the training was never interrupted."""
    restarts = [e.time for e in read_events(cell.run_dir) if e.event == "started" and e.time > cell.struck_at > 0]
    if not restarts:
        return 0.0
    done = {row["batch"] for row in cell.batches() if row["time"] < restarts[0]}
    return min(row["time"] for row in cell.batches() if row["batch"] not in done) - cell.struck_at


def _said(output: str) -> str:
    """The line about the fault, without this machine's folders."""
    telling = re.compile("damaged|missing|not saved|in use|stopped as asked|error|resuming from", re.IGNORECASE)
    lines = [line.strip() for line in output.splitlines() if telling.search(line) and "(raylet)" not in line]
    return re.sub(r"/\S*/run\b", "run", lines[0])[:300] if lines else ""


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _order(cell: CellResult) -> tuple[int, int]:
    return FAULTS.index(cell.fault), cell.zero_stage


def format_report(results: list[CellResult]) -> str:
    """The JSON of a campaign, a fault after the other whatever order they were run in."""
    report = {
        "benchmark": "faults",
        "machine": platform.machine(),
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "steps": STEPS,
        "checkpoint_every_steps": INTERVAL,
        "cells": [cell.model_dump() for cell in sorted(results, key=_order)],
    }
    return json.dumps(report, indent=1) + "\n"


def earlier_results(path: Path) -> list[CellResult]:
    """The cells of an earlier campaign; those that are not run again stay in the file."""
    if not path.is_file():
        return []
    return [CellResult.model_validate(cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def main() -> None:
    """Every fault at ZeRO 1, 2 and 3, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--faults", nargs="+", default=FAULTS, choices=FAULTS)
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "faults.json")
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)  # what each cell starts
    arguments = parser.parse_args()
    if arguments.drive:
        config, fault, log_dir = arguments.drive
        drive(Path(config), fault, Path(log_dir))
        return
    asked = {(fault, stage) for fault in arguments.faults for stage in arguments.stages}
    results = [cell for cell in earlier_results(arguments.output) if (cell.fault, cell.zero_stage) not in asked]
    with tempfile.TemporaryDirectory(prefix="reelflow-faults-") as temporary:
        for stage in arguments.stages:
            undisturbed = Cell(Path(temporary) / f"undisturbed-{stage}", "none", stage)
            undisturbed.run()
            for number, fault in enumerate(fault for fault in arguments.faults for _ in range(arguments.repeats)):
                results.append(run_cell(Path(temporary) / f"{stage}-{number}", fault, stage, undisturbed))
                print(results[-1].model_dump_json(), flush=True)
                publish_text(arguments.output, format_report(results))


if __name__ == "__main__":
    main()
