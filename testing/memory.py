"""Trainings of several sizes on CPU, with what `plan` predicts of their memory and what they take.

    python -m testing.memory '{"size": "small", "stage": 2, "checkpointing": "none", "workers": 1}'

is one worker of such a training; `measure` starts it. Given several trainings, it runs them one after the other.
"""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from models.flow.spec import FlowSpec
from models.layers import BlockStack, Recompute
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.text.config import TextConfig
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import local_worker
from pipeline.encode.captions import byte_captions
from pipeline.engine.config import ZeroStage
from pipeline.engine.deepspeed_internals import import_deepspeed
from pipeline.engine.ema import ShardedEma
from pipeline.engine.ema_profile import FixedDecay
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.precision import prepare_to_compute
from pipeline.train.memory_plan import MemorySettings, WorkerMemory, worker_memory
from pipeline.train.memory_trace import TraceOptions, trace_step
from pipeline.train.tasks.flow import FlowBatch, FlowMatchingLoss
from testing.peaks import SMALL_BLOCK, above_base
from testing.processes import free_port

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


def measure_each(cases: Sequence[Case]) -> None:
    """As one of the processes of some cases: run each in a fork of this one, which has imported what takes seconds."""
    import_deepspeed()
    importlib.import_module("torch._dynamo")
    for case in cases:
        fork = multiprocessing.get_context("fork").Process(target=measure_here, args=(case,))
        fork.start()
        fork.join()
        if fork.exitcode != 0:
            sys.exit(1)


def measure(cases: Sequence[Case]) -> list[int]:
    """Peak bytes of the first worker of each training; all have the same number of workers."""
    (num_workers,) = {case.workers for case in cases}
    common = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": SMALL_BLOCK, "DS_ACCELERATOR": "cpu"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_workers)}
    command = [sys.executable, "-m", "testing.memory", *(json.dumps(asdict(case)) for case in cases)]
    with tempfile.TemporaryFile("w+") as said:
        processes = [
            subprocess.Popen(
                command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=said, stderr=said
            )
            for rank in range(num_workers)
        ]
        codes = [process.wait() for process in processes]
        said.seek(0)
        text = said.read()
    assert codes == [0] * num_workers, text
    peaks = [int(line.split()[1]) for line in text.splitlines() if line.startswith("PEAK")]
    assert len(peaks) == len(cases), text
    return peaks


if __name__ == "__main__":
    measure_each([Case(**json.loads(text)) for text in sys.argv[1:]])
