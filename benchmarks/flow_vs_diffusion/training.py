"""Training of a network by one of the objectives, and of a student of it that jumps along its flow."""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.flow_vs_diffusion.latents import Latents
from benchmarks.flow_vs_diffusion.objectives import FLOW, Objective
from data.stream.plan import ShuffledEpochs
from models.flow.flow_map import drawn_jumps
from models.flow.objective import matching_loss, stratified
from models.flow.spec import FlowMapSpec, FlowSpec
from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.text.caption import Caption
from models.text.config import TextConfig, WordsConfig
from models.text.encoder import read
from pipeline.run import randomness
from pipeline.run.precision import autocast
from pipeline.train.tasks.flow_batch import FlowBatch
from pipeline.train.tasks.flow_map_loss import FlowMapLoss

BATCH, WARMUP, EMA_DECAY, CAPTION_DROP = 32, 50, 0.99, 0.1
TEXT = TextConfig(
    width=64, depth=1, heads=2, normalization="nfkc_casefold", words=WordsConfig(max_words=12, buckets=8192)
)
NETWORK = DiTConfig(width=96, depth=3, heads=2, text=TEXT)
MAP = FlowSpec(map=FlowMapSpec())
"""Of the student: the product's defaults."""


@dataclass(frozen=True)
class Trained:
    """A training's result."""

    network: DiT
    """With the average of the weights."""
    final_loss: float
    """Mean of the last hundred steps."""
    cpu_seconds: float


@dataclass(frozen=True)
class Batch:
    """What a step learns from."""

    x_1: Tensor
    x_0: Tensor
    uniform: Tensor
    """Numbers in (0, 1) for the training times, evenly spread."""
    positions: list[int]
    """In the stream of all samples, counted from the first step's."""
    caption: Caption


def encode(captions: list[str]) -> Caption:
    """Captions for the network."""
    return read(TEXT, captions)


def batches(data: Latents, seed: int, num_steps: int) -> Iterator[Batch]:
    """The same samples, noise and order for every objective."""
    order, offset = ShuffledEpochs([len(data.x)], seed, "train"), randomness.uniform(seed, "time", [0]).item()
    for step in range(num_steps):
        positions = list(range(step * BATCH, (step + 1) * BATCH))
        chosen = order.samples(np.array(positions)).tolist()
        dropped = (randomness.uniform(seed, "caption-drop", positions) < CAPTION_DROP).tolist()
        yield Batch(
            data.x[chosen],
            randomness.normal(seed, "noise", positions, tuple(data.x.shape[1:])),
            stratified(torch.tensor(positions), offset),
            positions,
            encode(["" if drop else data.captions[i] for i, drop in zip(chosen, dropped, strict=True)]),
        )


def trained(data: Latents, objective: Objective, law: str, learning_rate: float, seed: int, num_steps: int) -> Trained:
    """Train a network from the start."""
    torch.manual_seed(seed)
    network = DiT(NETWORK, data.x.shape[1])

    def loss_of(batch: Batch) -> Tensor:
        t = objective.training_times(law, batch.uniform).float()
        x_t = objective.path.at(t, batch.x_1).point(batch.x_0, batch.x_1)
        predicted = objective.call(network, x_t, t, batch.caption)
        return matching_loss(objective.path, objective.regresses, predicted, batch.x_0, batch.x_1, t).mean()

    return _optimized(network, loss_of, batches(data, seed, num_steps), learning_rate, num_steps)


def distilled(teacher: DiT, data: Latents, law: str, learning_rate: float, seed: int, num_steps: int) -> Trained:
    """Train a student that starts with a flow's weights and learns its jumps (`train distill` without guidance)."""
    assert MAP.map is not None
    torch.manual_seed(seed)
    student = DiT(NETWORK.model_copy(update={"flow_map": True}), data.x.shape[1])
    student.load_state_dict(student.state_dict() | teacher.state_dict())
    loss, spec = FlowMapLoss(student, MAP, deepcopy(teacher)), MAP.map

    def loss_of(batch: Batch) -> Tensor:
        t = FLOW.training_times(law, batch.uniform).float()
        jump = drawn_jumps(spec, t, randomness.uniform(seed, "jump", batch.positions, (3,)))
        ones = torch.ones(len(t))
        return loss(FlowBatch(batch.x_1, batch.x_0, t, batch.caption, ones, jump=jump, guidance=ones))["total"]

    return _optimized(student, loss_of, batches(data, seed + 1000, num_steps), learning_rate, num_steps)


def _optimized(
    network: DiT, loss_of: Callable[[Batch], Tensor], steps: Iterator[Batch], learning_rate: float, num_steps: int
) -> Trained:
    """AdamW with warmup and a cosine to a tenth."""
    begun, losses = time.process_time(), []
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.55 + 0.45 * math.cos(math.pi * step / num_steps))
    )
    for batch in steps:
        with autocast("auto", torch.device("cpu")):
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(loss.item())
    averaged = average.module.eval().requires_grad_(False)
    assert isinstance(averaged, DiT)
    return Trained(averaged, sum(losses[-100:]) / len(losses[-100:]), time.process_time() - begun)
