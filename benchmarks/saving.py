"""What a checkpoint costs a training: its pause, and time and peak memory of saving, restoring and resharding.

    python -m benchmarks.saving

Square linear layers with random weights, ZeRO 2 on one CPU worker, one process per size, the files on the disk of
`--folder`. Each is saved in the middle of training and, in turn, blocking: the state is copied, written, synced and
published while nothing else goes on. `paused` is what the training loop waits for (the copy, and the publishing),
`lost` how much longer the steps beside the writing took than those before. Resharding reads a checkpoint cut into four
shards, as four workers would have written it, into the one. Memory is the peak of what the process has, pages of mapped
files included, beyond what it had before; every page of the training's own state has been touched by then.

Goals: a pause of at most a tenth of a blocking save, and resharding in one shard and 1.5 times the largest tensor.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from data.files.publish import publish_text
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint, CheckpointRecord, Provenance, rank_file, read_checkpoint_record
from pipeline.checkpoint.restore import load_training_state
from pipeline.checkpoint.retention import Retention
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.checkpoint.write import CheckpointSaver, Contents
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.engine.ema import ShardedEma
from pipeline.engine.ema_profile import FixedDecay
from pipeline.engine.fragment import share
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.zero import ZeroTrainer

SIZES = (10, 30, 100, 300)  # millions of parameters
LAYERS, SHARDS, ROUNDS = 10, 4, 4
PAUSE_GOAL, TENSOR_GOAL = 0.1, 1.5
RESULT = Path(__file__).parent / "results" / "saving.json"
IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "saving.png"
CONTENTS = Contents("dit", {}, Provenance(dataset="", code="", versions={}, lineage=[]), [])


@dataclass(frozen=True)
class Spent:
    """Of one operation."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Costs:
    """One size."""

    parameters: int
    checkpoint_bytes: int
    largest_tensor_bytes: int
    shard_bytes: int  # of a checkpoint in four
    step_seconds: float
    first_copy_seconds: float  # of the process's first save, which takes its memory
    copy_seconds: float  # of later ones: medians, like the others
    publish_seconds: float
    paused_seconds: float  # both
    lost_seconds: float
    blocking_seconds: float
    pause: float  # share of the blocking save
    save_peak_bytes: int
    restore: Spent
    reshard: Spent
    reshard_to_goal: float  # peak to one shard and 1.5 times the largest tensor; the goal is 1


class Stack(nn.Module):
    """Square layers whose loss reaches every weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """A loss as the trainer wants it."""
        return {"total": self.layers(x).square().mean()}


def resident_peak() -> int:
    """Most bytes that this process has had in memory since `peak_of` last began."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@contextmanager
def peak_of() -> Iterator[Callable[[], int]]:
    """Asked afterwards: how far memory rose while the block ran."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_peak()
    yield lambda: resident_peak() - before


def cut_up(checkpoint: Checkpoint, trainer: ZeroTrainer, ema: ShardedEma, folder: Path) -> Checkpoint:
    """The same state in four files, each with an even part of every parameter."""
    files = {}
    for rank in range(SHARDS):
        tensors, starts = {}, {}
        for held in trainer.fragments:
            start, stop = share(held.master.numel(), rank, SHARDS)
            starts[held.name] = start
            views = held.tensors() | {name: average[held.name] for name, average in ema.averages.items()}
            tensors |= {f"{kind}/{held.name}": view[start:stop] for kind, view in views.items()}
        files[rank_file(rank)] = write_tensors(folder / rank_file(rank), tensors, {"starts": json.dumps(starts)})
    record = CheckpointRecord(**{**vars(checkpoint.record), "world_size": SHARDS, "files": files})
    return Checkpoint(folder, record)


def restored(checkpoint: Checkpoint, trainer: ZeroTrainer, ema: ShardedEma) -> Spent:
    """Read a checkpoint into a training that has other weights, and see that it did."""
    expected = [fragment.master.clone() for fragment in trainer.fragments[:1]]
    for fragment in trainer.fragments:
        fragment.master.fill_(torch.nan)
    with peak_of() as peak:
        started = time.perf_counter()
        load_training_state(checkpoint, trainer, ema)
        seconds = time.perf_counter() - started
        used = peak()
    assert all(torch.equal(old, new.master) for old, new in zip(expected, trainer.fragments[:1], strict=True))
    assert not any(bool(fragment.master.isnan().any()) for fragment in trainer.fragments)
    return Spent(seconds, used)


def measure(worker: Worker, millions: int, folder: Path) -> Costs:
    """Train, save both ways in turn, restore, reshard."""
    torch.manual_seed(0)
    width = round((millions * 1e6 / LAYERS) ** 0.5)
    trainer = ZeroTrainer(
        Stack(width),
        [ParameterGroup(weight_decay=0.0, betas=(0.9, 0.99))],
        device=worker.device,
        dtype=None,
        stage=2,
        micro_batch=4,
        clip_norm=1,
    )
    ema = ShardedEma(trainer.fragments, [FixedDecay(decay=0.99)])
    x, steps = torch.randn(4, width), 0

    def step() -> float:
        nonlocal steps
        started = time.perf_counter()
        trainer.step([x], 1e-4)
        steps += 1
        ema.update(steps)
        return time.perf_counter() - started

    step()
    alone = statistics.median(step() for _ in range(3))
    rounds, peaks = [], []
    with closing(CheckpointSaver(folder, trainer, ema, CONTENTS, Retention(1))) as saver:

        def timed(call: Callable[[], None]) -> float:
            started = time.perf_counter()
            call()
            return time.perf_counter() - started

        for _ in range(ROUNDS):
            with peak_of() as peak:
                copy, lost = timed(lambda: saver.begin(steps, 0)), 0.0
                while saver.busy:
                    lost += step() - alone
                publish = timed(saver.commit)
                peaks.append(peak())
            step()
            blocking = timed(lambda: saver.begin(steps, 0)) + timed(saver.finish)
            step()
            rounds.append((copy, publish, lost, blocking))
    checkpoint = open_checkpoint(folder)
    saved_step = checkpoint.record.step
    load_training_state(checkpoint, trainer, ema)
    restore = restored(checkpoint, trainer, ema)
    quarters = cut_up(checkpoint, trainer, ema, folder / f"cut-{saved_step}")
    reshard = restored(quarters, trainer, ema)
    copy, publish, lost, blocking = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    shard = max(file.num_bytes for file in quarters.record.files.values())
    largest = 4 * width * width
    return Costs(
        parameters=LAYERS * width * width,
        checkpoint_bytes=sum(file.num_bytes for file in read_checkpoint_record(checkpoint.folder).files.values()),
        largest_tensor_bytes=largest,
        shard_bytes=shard,
        step_seconds=alone,
        first_copy_seconds=rounds[0][0],
        copy_seconds=copy,
        publish_seconds=publish,
        paused_seconds=copy + publish,
        lost_seconds=lost,
        blocking_seconds=blocking,
        pause=(copy + publish) / blocking,
        save_peak_bytes=max(peaks),
        restore=restore,
        reshard=reshard,
        reshard_to_goal=reshard.peak_bytes / (shard + TENSOR_GOAL * largest),
    )


def _measure_in_process(_: int, millions: int, folder: Path, result: Path) -> None:
    def run(worker: Worker) -> None:
        result.write_text(json.dumps(asdict(measure(worker, millions, folder))), encoding="utf-8")

    train_here(run, os.cpu_count() or 1)


def plot(found: list[dict]) -> None:
    """Time and memory against the number of parameters."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    size = [row["parameters"] for row in found]
    times.plot(size, [row["blocking_seconds"] for row in found], "o-", label="save, blocking")
    times.plot(size, [row["paused_seconds"] for row in found], "o-", label="save, training paused")
    times.plot(size, [row["restore"]["seconds"] for row in found], "o-", label="restore")
    times.plot(size, [row["reshard"]["seconds"] for row in found], "o-", label="reshard, 4 to 1")
    times.set(xlabel="parameters", ylabel="seconds", xscale="log", yscale="log")
    memory.plot(size, [row["checkpoint_bytes"] / 1e9 for row in found], "k:", label="checkpoint")
    memory.plot(size, [row["save_peak_bytes"] / 1e9 for row in found], "o-", label="save")
    memory.plot(size, [row["restore"]["peak_bytes"] / 1e9 for row in found], "o-", label="restore")
    memory.plot(size, [row["reshard"]["peak_bytes"] / 1e9 for row in found], "o-", label="reshard, 4 to 1")
    memory.set(xlabel="parameters", ylabel="peak memory beyond the training's, GB", xscale="log", yscale="log")
    for axes in (times, memory):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(IMAGE, dpi=110)


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="millions of parameters")
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a temporary folder unless given")
    parser.add_argument("--dry", action="store_true", help="print only: write neither figures nor the plot")
    options = parser.parse_args()
    found = []
    for millions in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            scratch = Path(name)
            mp.spawn(_measure_in_process, (millions, scratch / "run", scratch / "result.json"))
            row = json.loads((scratch / "result.json").read_text(encoding="utf-8"))
            shutil.rmtree(scratch / "run")
        found.append(row)
        print(
            f"{row['parameters'] / 1e6:5.0f} M, {row['checkpoint_bytes'] / 1e9:.2f} GB: paused "
            f"{row['paused_seconds']:.3f} s of {row['blocking_seconds']:.2f} s ({row['pause']:.1%}; copy "
            f"{row['copy_seconds']:.3f} s, the first {row['first_copy_seconds']:.3f} s), "
            f"steps beside it lost {row['lost_seconds']:.2f} s, "
            f"peak {row['save_peak_bytes'] / 1e9:.2f} GB; restore {row['restore']['seconds']:.2f} s, "
            f"{row['restore']['peak_bytes'] / 1e9:.3f} GB; reshard {row['reshard']['seconds']:.2f} s, "
            f"{row['reshard']['peak_bytes'] / 1e9:.3f} GB ({row['reshard_to_goal']:.2f} of the goal)"
        )
    if not options.dry:
        figures = {
            "sizes": found,
            "goals": {"pause": PAUSE_GOAL, "reshard_to_goal": 1},
            "threads": os.cpu_count(),
            "torch": torch.__version__,
            "load_average": os.getloadavg()[0],
        }
        publish_text(RESULT, json.dumps(figures, indent=1) + "\n")
        plot(found)


if __name__ == "__main__":
    main()
