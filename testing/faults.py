"""A training on a Ray cluster that faults strike, compared with one that none strikes.

Each cell runs `launch train dit`: a tiny DiT on two workers, a checkpoint every three steps, a fault every twelve, and
as many restarts of the command as are needed. The workers run the product's loop on a task of this file that kills its
process or fails its writes; the product has no code for it. `python -m benchmarks.faults` runs the campaign.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch.distributed as dist
import yaml
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline.train.tasks.distribution_matching  # derives from `FlowTask`, so it comes before that is replaced
import pipeline.train.tasks.flow
from data.dataset.manifest import MANIFEST_NAME, BucketRecord, LatentStats, Manifest
from data.files.jsonl import append_line, read_jsonl
from data.files.publish import publish_text
from models.networks.build import build_network
from models.networks.protocol import VelocityNetwork
from pipeline.checkpoint import write as saving
from pipeline.checkpoint.record import (
    CHECKPOINT_RECORD_NAME,
    FOLDER_NAME,
    LATEST_NAME,
    FileRecord,
    rank_file,
    read_checkpoint_record,
    step_folders,
)
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run import randomness
from pipeline.run.stage_record import STAGE_RECORD_NAME, StageRecord
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.flow import FlowMatchingLoss, FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch, FlowQuery, PackedFlowBatch
from testing.paths import ROOT
from testing.processes import children_of, kill_all
from testing.records import SMALL, write_random_latents

INTERVAL = 3  # steps between checkpoints
FIRST_STRIKE, STRIKE_EVERY = 8, 4 * INTERVAL  # in steps; the newest checkpoint is then two steps old
LAST_STEPS = 16  # after the last fault: workers of a killed driver continue for some steps
TRAINING_WORKER = "RayTrainWorker"  # in the names of Ray's processes
# Long enough that the workers of a killed driver do not finish the training.
STEP_SECONDS = 0.25
SHAPE = (4, 2, 4, 4)
TIMEOUT_SECONDS = 600  # a recovery takes half a minute on a slow machine, and several may lie between two steps
Fault = Literal[
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
FAULTS: tuple[Fault, ...] = get_args(Fault)
STRUCK_FILE: dict[Fault, str] = {
    "worker killed between save and publish": CHECKPOINT_RECORD_NAME,
    "worker killed between publish and latest": LATEST_NAME,
}
STRUCK_FROM_OUTSIDE: tuple[Fault, ...] = (
    "driver killed",
    "raylet killed",
    "SIGTERM",
    "newest shard corrupted",
    "newest shard deleted",
)


def strike_step(number: int) -> int:
    """The step in which a fault strikes for the `number`-th time, from 0."""
    return FIRST_STRIKE + STRIKE_EVERY * number


def struck_save(number: int) -> int:
    """The step whose checkpoint is struck, where the fault is in saving."""
    return strike_step(number) - 2


def steps_for(num_strikes: int) -> int:
    """The number of steps of a training with this many faults."""
    return strike_step(num_strikes - 1) + LAST_STEPS


@dataclass(frozen=True)
class FaultyTask(FlowTask):
    """The flow task with a log of its batches and faults at given steps."""

    strikes: tuple[Fault, ...] = ()
    log_dir: Path = Path()
    step_seconds: float = STEP_SECONDS

    def build(self, placement: Placement = WHOLE) -> nn.Module:  # noqa: ARG002 - all weights are new
        """The loss and the checkpoint writers with their faults."""
        saving.write_tensors = partial(_write, self, saving.write_tensors)
        saving.publish_text = partial(_publish, self, saving.publish_text)
        return FaultyLoss(build_network(self.model, self.latent_stats.num_channels), self)

    def strikes_now(self, number: int) -> bool:
        """True for the first caller in the whole run, across processes: each fault strikes once."""
        try:
            (self.log_dir / f"struck-{number}").open("x").close()
        except FileExistsError:
            return False
        return True

    def strike_in_step(self, step: int) -> int | None:
        """The number of the fault that strikes in this step, or None."""
        return next((n for n in range(len(self.strikes)) if strike_step(n) == step), None)

    def strike_in_save(self, text: str) -> int | None:
        """The number of the fault that strikes the checkpoint named in a path or a text, or None."""
        return next((n for n in range(len(self.strikes)) if f"step_{struck_save(n):07d}" in text), None)


class FaultyLoss(FlowMatchingLoss):
    """Logs a line for each batch; kills its process in the forward or the backward pass."""

    def __init__(self, network: VelocityNetwork, task: FaultyTask) -> None:
        super().__init__(network, task.flow)
        self.task = task
        self.steps = {fed["batch"]: step for step, fed in enumerate(first_fed(task.log_dir, dist.get_rank()), 1)}

    def forward(self, batch: FlowBatch | PackedFlowBatch | FlowQuery) -> dict[str, Tensor]:
        """The losses, after `step_seconds`."""
        assert isinstance(batch, FlowBatch)  # this training has no previews and one bucket
        time.sleep(self.task.step_seconds)
        rank = dist.get_rank()
        content = b"".join(tensor.numpy().tobytes() for tensor in (batch.x_1, batch.x_0, batch.t))
        name = sha256(content).hexdigest()
        step = self.steps.setdefault(name, len(self.steps) + 1)
        append_line(self.task.log_dir / f"batches-{rank}.jsonl", {"time": time.time(), "batch": name})
        losses = super().forward(batch)
        number = self.task.strike_in_step(step)
        if number is not None and rank == dist.get_world_size() - 1:
            if self.task.strikes[number] == "worker killed in step":
                _die(self.task, number)
            if self.task.strikes[number] == "worker killed in backward":
                losses["total"].register_hook(lambda _: _die(self.task, number))
        return losses


def _die(task: FaultyTask, number: int) -> None:
    if task.strikes_now(number):
        os.kill(os.getpid(), signal.SIGKILL)


def _write(
    task: FaultyTask,
    write: Callable[..., FileRecord],
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
) -> FileRecord:
    number = task.strike_in_save(str(path))
    if number is not None and path.name == rank_file(dist.get_world_size() - 1):
        fault = task.strikes[number]
        if fault in ("worker killed during save", "disk full during save"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half a file")
        if fault == "worker killed during save":
            _die(task, number)
        elif fault == "disk full during save" and task.strikes_now(number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(path, tensors, metadata)


def _publish(task: FaultyTask, publish: Callable[[Path, str], None], path: Path, content: str) -> None:
    number = task.strike_in_save(f"{path} {content}")
    if number is not None and STRUCK_FILE.get(task.strikes[number]) == path.name:
        _die(task, number)
    publish(path, content)


def drive(config: Path, log_dir: Path, step_seconds: float, strikes: tuple[Fault, ...]) -> None:
    """Run `train dit` with `FaultyTask` in place of `FlowTask`."""
    import launch.commands

    pipeline.train.tasks.flow.FlowTask = partial(  # pyright: ignore[reportAttributeAccessIssue]
        FaultyTask, log_dir=log_dir, step_seconds=step_seconds, strikes=strikes
    )
    launch.commands.app(["train", "dit", str(config)], prog_name="reelflow")


def prepare_run(folder: Path, zero_stage: int, steps: int) -> Path:
    """Write latents and a configuration; return the path of the configuration."""
    train = {
        "steps": steps, "global_batch": 4, "learning_rate": 0.003, "warmup_steps": 2, "precision": "fp32",
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
        "cluster": {"object_store_mib": 128, "workers": {"max_failures": 1000}},
    }
    write_latents(folder / "run" / "latents")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def write_latents(folder: Path) -> None:
    """Ten random latents with the manifest and the record of a complete encode stage."""
    shard = write_random_latents(folder, 10, SHAPE, "faults")
    save_file({"x": randomness.normal(0, "faults", [0], (8,))[0]}, folder / AUTOENCODER_NAME)
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
        folder / STAGE_RECORD_NAME,
        StageRecord(stage="encode", complete=True, build="faults", inputs={}).model_dump_json(),
    )


def first_fed(log_dir: Path, rank: int) -> list[dict[str, Any]]:
    """The log lines of the batches that a rank was fed for the first time, in order."""
    first: dict[str, dict[str, Any]] = {}
    for fed in all_fed(log_dir, rank):
        first.setdefault(fed["batch"], fed)
    return list(first.values())


def all_fed(log_dir: Path, rank: int) -> list[dict[str, Any]]:
    """All log lines of the batches of a rank, in order, without one that is being written.

    They are dictionaries, because workers get the classes of this module, which is `__main__`, by value.
    """
    return read_jsonl(log_dir / f"batches-{rank}.jsonl", dict[str, Any], skip_damaged=True)


RAY = (sys.executable, "-m")
TORCHRUN = (*RAY, "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


class Cell:
    """One training and the faults that strike it, in order.

    Args:
        damages: by a fault that ends the command, what is done to the newest checkpoint before the next start.
        launcher: what starts `testing.faults`.
    """

    def __init__(
        self,
        folder: Path,
        zero_stage: int,
        strikes: Sequence[Fault] = (),
        steps: int | None = None,
        step_seconds: float = STEP_SECONDS,
        damages: Mapping[Fault, Fault] | None = None,
        launcher: Sequence[str] = RAY,
    ) -> None:
        self.folder, self.strikes, self.step_seconds = folder, strikes, step_seconds
        self.damages, self.launcher = damages or {}, launcher
        self.steps = steps_for(len(strikes)) if steps is None else steps
        self.config = prepare_run(folder, zero_stage, self.steps)
        self.run_dir = folder / "run" / "dit"
        self.num_starts = 0
        self.savers: list[psutil.Process] = []
        self.orphans: list[psutil.Process] = []
        self.struck_at: dict[int, float] = {}  # by the strike's number

    def start(self) -> subprocess.Popen[str]:
        """Start the command and return its process."""
        self.num_starts += 1
        drive = (str(self.config), str(self.folder), str(self.step_seconds), *self.strikes)
        command = [*self.launcher, "testing.faults", *drive]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
        output = (self.folder / f"output-{self.num_starts:03d}.txt").open("w+", encoding="utf-8")
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)

    def end_of(self, process: subprocess.Popen[str]) -> int:
        """Wait for the exit code; kill the process and its children after the timeout."""
        try:
            return process.wait(TIMEOUT_SECONDS)
        finally:
            kill_all(children_of(process.pid))
            process.kill()

    def outputs_text(self) -> str:
        """The output of all commands."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("output-*.txt")))

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Wait until step number `step` has begun."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(first_fed(self.folder, 0)) < step:
            assert process.poll() is None, f"ended before step {step}:\n{self.outputs_text()}"
            assert time.monotonic() < deadline, f"no step {step}:\n{self.outputs_text()}"
            time.sleep(0.02)

    def strike(self, process: subprocess.Popen[str], number: int) -> None:
        """Wait for the step, strike the driver or its cluster with fault `number`, and wait for its end."""
        fault = self.strikes[number]
        self.wait_for_step(strike_step(number), process)
        children = children_of(process.pid)
        workers = [child for child in children if child.name().startswith("ray::")]
        self.savers = [worker for worker in workers if TRAINING_WORKER in worker.name()]
        self.struck_at[number] = time.time()
        if fault == "SIGTERM":
            process.send_signal(signal.SIGTERM)
            assert self.end_of(process) == 130, self.outputs_text()
        elif fault == "raylet killed":
            # Its workers too, as when a machine is lost; left alive, they might finish the training without it.
            kill_all([*workers, *(child for child in children if child.name() == "raylet")])
            assert self.end_of(process) != 0, self.outputs_text()
        else:
            process.kill()
            process.wait()
        self.orphans += children  # of a killed driver; they are still alive at the next start
        if fault.startswith("newest shard"):
            self.spoil_newest(fault)
            self.struck_at[number] = time.time()

    def spoil_newest(self, fault: Fault) -> None:
        """Damage the newest checkpoint once no process writes any more."""
        psutil.wait_procs(self.savers, TIMEOUT_SECONDS)
        newest = self.run_dir / FOLDER_NAME / (self.run_dir / LATEST_NAME).read_text().strip() / rank_file(1)
        if fault == "newest shard deleted":
            newest.unlink()
        else:
            content = bytearray(newest.read_bytes())
            content[-5] ^= 1
            newest.write_bytes(content)

    def run(self) -> None:
        """Start, strike, and restart until the training is finished."""
        try:
            self._run()
        finally:
            kill_all(self.orphans)

    def _run(self) -> None:
        process = self._first_of(1 + self.strikes.count("two starts at once"))
        for number, fault in enumerate(self.strikes):
            if fault in STRUCK_FROM_OUTSIDE:
                self.strike(process, number)
            elif fault == "disk full during save":
                assert self.end_of(process) == 1, self.outputs_text()
            else:
                continue
            if fault in self.damages:
                self.spoil_newest(self.damages[fault])
            process = self.start()
        assert self.end_of(process) == 0, self.outputs_text()
        self.struck_at |= {
            int(path.name[len("struck-") :]): path.stat().st_mtime for path in self.folder.glob("struck-*")
        }

    def _first_of(self, num_starts: int) -> subprocess.Popen[str]:
        """Start this many processes at once; return the one with the lock, once the others have ended with an error."""
        processes = [self.start() for _ in range(num_starts)]
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(running := [process for process in processes if process.poll() is None]) > 1:
            assert time.monotonic() < deadline, self.outputs_text()
            time.sleep(0.1)
        assert sorted(process.returncode for process in processes if process not in running) == [1] * (num_starts - 1)
        return running[0]


@dataclass(frozen=True)
class Comparison:
    """A training with faults compared with one without."""

    finished: bool
    losses_bit_identical: bool
    batches_in_order: bool


def compare(cell: Cell, undisturbed: Cell) -> Comparison:
    """Compare losses, gradient norms and batches over the steps of the shorter training."""
    metrics, expected = read_metrics(cell.run_dir), read_metrics(undisturbed.run_dir)[: cell.steps]
    names = ("step", "total", "gradient_norm")
    first_seen = [[fed["batch"] for fed in first_fed(cell.folder, rank)] for rank in (0, 1)]
    wanted = [[fed["batch"] for fed in first_fed(undisturbed.folder, rank)][: cell.steps] for rank in (0, 1)]
    newest = read_checkpoint_record(list(step_folders(cell.run_dir).values())[-1])
    return Comparison(
        finished=newest.step == cell.steps,
        losses_bit_identical=[[row[n] for n in names] for row in metrics]
        == [[row[n] for n in names] for row in expected],
        batches_in_order=first_seen == wanted,
    )


def run_undisturbed(folder: Path, zero_stage: int, steps: int) -> Cell:
    """Run the reference without faults, by torchrun: two processes instead of a cluster."""
    cell = Cell(folder, zero_stage, steps=steps, step_seconds=0, launcher=TORCHRUN)
    cell.run()
    return cell


def num_starts_of_the_training(cell: Cell) -> int:
    """How often the workers started, by a command or by Ray."""
    return sum(event.event == "started" for event in read_events(cell.run_dir))


@dataclass(frozen=True)
class Recovery:
    """The cost of one fault."""

    seconds: float  # from the fault to the first step that had not been done before it
    recomputed_steps: int


def recovery_of(cell: Cell, struck_at: float) -> Recovery | None:
    """The cost of a fault; None if it did not interrupt the training, or if no steps were left after it."""
    restarts = [event.time for event in read_events(cell.run_dir) if event.event == "started"]
    restarted_at = min((at for at in restarts if at > struck_at), default=None)
    if restarted_at is None:
        return None
    batches = all_fed(cell.folder, 0)
    done = {fed["batch"] for fed in batches if fed["time"] < restarted_at}
    after = [fed for fed in batches if fed["time"] >= restarted_at]
    new = next((number for number, fed in enumerate(after) if fed["batch"] not in done), None)
    return None if new is None else Recovery(after[new]["time"] - struck_at, new)


def main() -> None:
    """`python -m testing.faults CONFIG LOG_DIR STEP_SECONDS [FAULT ...]`: the command that a cell starts."""
    config, log_dir, step_seconds, *strikes = sys.argv[1:]
    drive(Path(config), Path(log_dir), float(step_seconds), TypeAdapter(tuple[Fault, ...]).validate_python(strikes))


if __name__ == "__main__":
    main()
