"""What our training loop costs: beside a bare DeepSpeed loop, on two workers, and by tokens and parameters.

    python -m benchmarks.train

Overhead: the demo's DiT on made-up latents, read from shards by the same loader. The bare loop is what DeepSpeed's own
tutorial shows (forward, backward, step); ours adds the average of the weights, the decisions that all ranks share,
metrics and the watch. Rounds alternate in one process and thread, both as they are started: no checkpoints, no
validation. Scaling: the same global batch on one and on two processes of one thread each.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats
from data.files.publish import publish_text
from data.stream.loader import Stream
from launch.config import load_config
from models.networks.config import DiTConfig, NetworkConfig
from pipeline.distributed.process_group import Worker, leave_process_group
from pipeline.distributed.torchrun import train_here
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.engine.deepspeed_internals import import_deepspeed
from pipeline.engine.ema import ShardedEma
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from testing.records import write_random_latents

DEMO = load_config(Path("demo"))
STEPS, WARM_UP, ROUNDS, GLOBAL_BATCH = 30, 5, 3, 16
WIDTHS = (96, 192, 384)
FRAMES = (5, 17, 33)
RESULT = Path(__file__).parent / "results" / "train.json"


@dataclass(frozen=True)
class Cost:
    """One size of network or clip."""

    width: int
    parameters: int
    tokens_per_clip: int
    seconds_per_step: float
    tokens_per_second: float


def make_task(folder: Path, model: NetworkConfig = DEMO.dit.model, num_frames: int = 17) -> FlowTask:
    """A DiT on random latents of the demo's size."""
    bucket = Bucket(num_frames=num_frames)
    shape = DEMO.autoencoder.model.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    write_random_latents(folder, 64, shape, "train")
    save_file({"x": torch.zeros(1)}, folder / AUTOENCODER_NAME)
    stats = LatentStats(mean=[0.0] * shape[0], std=[1.0] * shape[0])
    return FlowTask(model, DEMO.dit.flow, (bucket,), stats, folder, folder / AUTOENCODER_NAME, seed=0)


def make_config(steps: int = STEPS) -> TrainConfig:
    """Nothing but steps: logged as often as by default."""
    return DEMO.dit.train.model_copy(
        update={"steps": steps, "global_batch": GLOBAL_BATCH, "checkpoint_every_steps": 10**6, "validation_clips": 0}
    )


class Laps:
    """When each step ended, from the moments at which the average of the weights is updated or would be."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def lap(self) -> None:
        """A step has ended."""
        self.times.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        """Mean over the steps after the first few."""
        return (self.times[-1] - self.times[WARM_UP - 1]) / (len(self.times) - WARM_UP)


@contextmanager
def lapped() -> Iterator[Laps]:
    """Count the steps of `train` from outside."""
    laps, update = Laps(), ShardedEma.update

    def updated(self: ShardedEma, num_updates: int) -> None:
        update(self, num_updates)
        laps.lap()

    ShardedEma.update = updated
    try:
        yield laps
    finally:
        ShardedEma.update = update


def our_seconds(worker: Worker, task: FlowTask, run_dir: Path) -> float:
    """A step of the product's loop."""
    with lapped() as laps:
        train(task, make_config(), run_dir, worker)
    return laps.seconds_per_step()


def bare_seconds(worker: Worker, task: FlowTask) -> float:
    """A step of DeepSpeed's loop: the same engine and data, nothing else."""
    config = make_config()
    trainer, _ = build(task, config, worker)
    engine, laps = trainer.engine, Laps()
    subsets = task.subsets()
    sizes = {subsets[0].bucket.name: GLOBAL_BATCH}
    stream = Stream(subsets, sizes, seed=0, rank=worker.rank, world_size=worker.world_size)
    for group in trainer.zero.param_groups:
        group["lr"] = config.learning_rate
    with closing(stream.batches(0, task.collate)) as batches:
        for _ in range(STEPS):
            losses = engine(next(batches).to(worker.device))
            engine.backward(losses["total"])
            engine.step()
            laps.lap()
    return laps.seconds_per_step()


def overhead(worker: Worker, scratch: Path) -> list[tuple[float, float]]:
    """Both loops in turn."""
    task, pairs = make_task(scratch / "data"), []
    for number in range(ROUNDS):
        pairs.append((our_seconds(worker, task, scratch / f"ours-{number}"), bare_seconds(worker, task)))
        print(f"round {number}: ours {pairs[-1][0]:.4f} s, bare DeepSpeed {pairs[-1][1]:.4f} s a step")
    return pairs


def costs(worker: Worker, scratch: Path) -> list[Cost]:
    """Steps of several networks and clips."""
    found = []
    sizes = [(width, 17) for width in WIDTHS] + [(DEMO.dit.model.width, frames) for frames in FRAMES if frames != 17]
    for width, frames in sizes:
        model = DEMO.dit.model.model_copy(update={"width": width, "heads": width // 64 or 1})
        name = f"{width}-{frames}"
        task = make_task(scratch / f"data-{name}", DiTConfig(**model.model_dump()), frames)
        seconds = our_seconds(worker, task, scratch / f"run-{name}")
        tokens = task.num_tokens(task.buckets[0])
        parameters = sum(parameter.numel() for parameter in task.build().parameters())
        found.append(Cost(width, parameters, tokens, seconds, GLOBAL_BATCH * tokens / seconds))
        print(found[-1])
    return found


def _member(rank: int, world_size: int, scratch: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists on it
    store = dist.FileStore(str(scratch / f"store-{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    task = make_task(scratch / f"data-{world_size}-{rank}")
    seconds = our_seconds(Worker(rank, world_size, torch.device("cpu")), task, scratch / f"scaled-{world_size}")
    if rank == 0:
        (scratch / f"seconds-{world_size}").write_text(str(seconds), encoding="utf-8")
    leave_process_group()


def scaling(scratch: Path) -> dict[int, float]:
    """Clips per second and core, by workers."""
    found = {}
    for world_size in (1, 2):
        mp.spawn(_member, (world_size, scratch), nprocs=world_size)
        seconds = float((scratch / f"seconds-{world_size}").read_text(encoding="utf-8"))
        found[world_size] = GLOBAL_BATCH / seconds / world_size
        print(f"{world_size} workers: {found[world_size]:.2f} clips per second and core")
    return found


def main() -> None:
    """Measure, print, write down."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch, pairs, sizes = Path(name), [], []

        def measure(worker: Worker) -> None:
            pairs.extend(overhead(worker, scratch))
            sizes.extend(costs(worker, scratch))

        train_here(measure, num_threads=1)
        per_core = scaling(scratch)
    ratios = [ours / bare for ours, bare in pairs]
    figures = {
        "peer": f"a bare loop over DeepSpeed {import_deepspeed().__version__}, ZeRO stage {make_config().zero_stage}",
        "overhead": {"ratio": statistics.median(ratios), "rounds": pairs},
        "clips_per_second_and_core": per_core,
        "two_workers_to_one_per_core": per_core[2] / per_core[1],
        "costs": [asdict(cost) for cost in sizes],
        "global_batch": GLOBAL_BATCH,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }
    print(f"ours / bare DeepSpeed: {figures['overhead']['ratio']:.3f} ({', '.join(f'{r:.3f}' for r in ratios)})")
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
