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
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.peaks import SMALL_BLOCK, above_base
from data.files.publish import publish_text
from models.flow.spec import FlowSpec
from models.layers import BlockStack, Recompute
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.text.config import TextConfig
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import local_worker
from pipeline.encode.captions import byte_captions
from pipeline.engine.config import ZeroStage
from pipeline.engine.ema import ShardedEma
from pipeline.engine.ema_profile import FixedDecay
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.precision import prepare_to_compute
from pipeline.train.memory_plan import MemorySettings, WorkerMemory, worker_memory
from pipeline.train.memory_trace import TraceOptions, trace_step
from pipeline.train.tasks.flow import FlowBatch, FlowMatchingLoss

RESULT = Path(__file__).parent / "results" / "plan.json"
GOAL = 0.10
CHANNELS, STEPS = 8, 3
GRID = (4, 16, 16)
MODES: dict[str, Recompute] = {"none": False, "selective": "selective", "all": True}


@dataclass(frozen=True)
class Size:
    """A network and its batch."""

    width: int
    depth: int
    heads: int
    clips: int

    @property
    def network(self) -> DiTConfig:
        """Its configuration."""
        return DiTConfig(
            width=self.width, depth=self.depth, heads=self.heads, text=TextConfig(width=128, depth=1, heads=2)
        )


SIZES = {
    "tiny": Size(64, 1, 1, 1),
    "small": Size(384, 6, 6, 4),
    "deep": Size(384, 14, 6, 8),
    "wide": Size(1024, 4, 16, 2),
    "heavy": Size(1024, 8, 16, 1),
}


@dataclass(frozen=True)
class Case:
    """One training."""

    size: str
    stage: ZeroStage
    checkpointing: str
    """A key of `MODES`."""
    workers: int


@dataclass(frozen=True)
class Row:
    """What was predicted and measured, in bytes."""

    case: Case
    predicted: WorkerMemory
    predicted_bytes: int
    measured_bytes: int
    error: float
    """(predicted - measured) / measured."""


def build(size: Size) -> FlowMatchingLoss:
    """The network in its loss."""
    return FlowMatchingLoss(build_network(size.network, CHANNELS), FlowSpec())


def batch(size: Size) -> FlowBatch:
    """Latents, noise, times and captions."""
    shape = (size.clips, CHANNELS, *GRID)
    captions = byte_captions(size.network.caption_text)(["a caption"] * size.clips)
    return FlowBatch(
        torch.zeros(shape), torch.zeros(shape), torch.full((size.clips,), 0.5), captions, torch.ones(size.clips)
    )


def predict(case: Case) -> WorkerMemory:
    """Before anything is built, in a process that computes as the measured ones do."""
    prepare_to_compute(torch.device("cpu"))
    size = SIZES[case.size]
    trace = trace_step(lambda: build(size), lambda: batch(size), TraceOptions(recompute=MODES[case.checkpointing]))
    settings = MemorySettings(case.stage, case.workers, weight_bytes=4, num_averages=1, is_gpu=False)
    return worker_memory(trace, settings)


def train(worker: Worker, case: Case, name: str) -> None:
    """A few steps."""
    size = SIZES[name]
    module = build(size)
    for part in module.modules():
        if isinstance(part, BlockStack):
            part.recompute = MODES[case.checkpointing]
    groups = [ParameterGroup(weight_decay=0.0, betas=(0.9, 0.99))]
    trainer = ZeroTrainer(
        module, groups, device=worker.device, dtype=None, stage=case.stage, micro_batch=size.clips, clip_norm=1.0
    )
    ema = ShardedEma(trainer.fragments, [FixedDecay(decay=0.99)])
    for number in range(STEPS):
        trainer.step([batch(size)], 1e-4)
        ema.update(number + 1)
    assert torch.isfinite(next(iter(ema.of().values()))).all()


def measure_here(case: Case) -> None:
    """As one of the processes of a case: print what the first took."""
    with local_worker(num_threads=1) as worker:
        train(worker, case, "tiny")
        peak = above_base(lambda: train(worker, case, case.size))
        if worker.rank == 0:
            print(f"\nPEAK {peak}", flush=True)


def measure(case: Case) -> int:
    """Peak bytes of the first worker of a training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": SMALL_BLOCK, "DS_ACCELERATOR": "cpu"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(case.workers)}
    command = [sys.executable, "-m", "benchmarks.plan", "--measure", json.dumps(asdict(case))]
    with tempfile.TemporaryFile("w+") as said:
        processes = [
            subprocess.Popen(
                command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=said, stderr=said
            )
            for rank in range(case.workers)
        ]
        codes = [process.wait() for process in processes]
        said.seek(0)
        text = said.read()
    assert codes == [0] * case.workers, text
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("PEAK"))


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
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_here(Case(**json.loads(arguments.measure)))
        return
    measured = earlier(arguments.output)
    for case in () if arguments.predict else cases(arguments):
        measured[case] = measure(case)
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
