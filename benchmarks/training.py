"""What the training loop costs over its own mathematics: python -m benchmarks.training [--steps 40].

Times, interleaved in one process and on one thread, a step of the demo's DiT as (1) forward and backward
alone, (2) a plain PyTorch AdamW loop, (3) our engine (DeepSpeed ZeRO, EMA). The peer is plain PyTorch.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from launch.config import load_config
from models.autoencoder import latent_shape
from models.dit import DiT
from models.text import CaptionTokens
from pipeline import seeds
from pipeline.ema import ShardedEma
from pipeline.train import autocast, autocast_dtype
from pipeline.train_dit import FlowBatch, FlowMatchingLoss
from pipeline.workers import Worker, train_here
from pipeline.zero import ZeroTrainer


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--micro-batch", type=int, default=16)
    arguments = parser.parse_args()
    train_here(lambda worker: measure(worker, arguments.steps, arguments.micro_batch), num_threads=1)


def measure(worker: Worker, steps: int, micro_batch: int) -> None:
    """Time each kind of step in turn, `steps` times, and report medians and ratios."""
    config = load_config(Path("demo"))
    bucket, model = config.data.buckets[0], config.dit.model
    shape = latent_shape(config.autoencoder.model, bucket.num_frames, bucket.height, bucket.width)
    positions = range(micro_batch)
    batch = FlowBatch(
        x_1=seeds.normal(0, "data", positions, shape),
        x_0=seeds.normal(0, "noise", positions, shape),
        t=seeds.uniform(0, "time", positions),
        caption=CaptionTokens.encode(["a red circle moves left"] * micro_batch, model.text.max_bytes),
    ).to(worker.device)
    bare, plain, ours = (FlowMatchingLoss(DiT(model, shape[0]), config.dit.flow).to(worker.device) for _ in range(3))
    adam = torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True)
    trainer = ZeroTrainer(
        ours,
        device=worker.device,
        dtype=autocast_dtype("auto", worker.device),
        stage=2,
        micro_batch=micro_batch,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        clip=1.0,
    )
    ema = ShardedEma(trainer.fragments, 0.99)

    def gradients(module: torch.nn.Module) -> None:
        with autocast("auto", worker.device):
            loss = module(batch)["total"]
        module.zero_grad()
        loss.backward()

    def plain_step() -> None:
        gradients(plain)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adam.step()

    def our_step() -> None:
        trainer.step([batch], 1e-3)
        ema.update(1)

    kinds: dict[str, Callable[[], None]] = {
        "forward_backward": lambda: gradients(bare),
        "pytorch_adamw": plain_step,
        "reelflow": our_step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(steps):
        for name, step in kinds.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values[3:]) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "training",
                "peer": f"plain PyTorch {torch.__version__} AdamW loop",
                "machine": platform.processor() or platform.machine(),
                "load_average": os.getloadavg()[0],
                "device": str(worker.device),
                "micro_batch": micro_batch,
                "median_seconds": {name: round(value, 4) for name, value in medians.items()},
                "ratio_to_peer": round(medians["reelflow"] / medians["pytorch_adamw"], 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
