"""The network in its engine, before the first step."""

import math
from itertools import chain

import torch
from torch import nn

from models.layers import BlockStack
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.engine.ema import ShardedEma
from pipeline.engine.sequence_parallel import split_tokens
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.precision import autocast_dtype
from pipeline.train.config import TrainConfig
from pipeline.train.task import TrainTask


def build(task: TrainTask, config: TrainConfig, worker: Worker) -> tuple[ZeroTrainer, ShardedEma]:
    """The network in its engine and its average, as they are before the first step.

    Raises:
        SplitError: the workers of a sequence group cannot share the network.
        WorldSizeError: the workers cannot share the global batch evenly.
    """
    num_shares, remainder = divmod(worker.world_size, config.sequence_parallel)
    if remainder:
        sizes = [size for size in range(1, worker.world_size + 1) if worker.world_size % size == 0]
        nearest = min(sizes, key=lambda size: abs(size - config.sequence_parallel))
        raise WorldSizeError(
            f"train.sequence_parallel is {config.sequence_parallel}, but {worker.world_size} workers do not form "
            f"groups of that many: use {nearest}"
        )
    num_pieces = num_shares * config.accumulate
    micro_batch, remainder = divmod(config.global_batch, num_pieces)
    if remainder:
        nearest = max(1, round(config.global_batch / num_pieces)) * num_pieces
        pieces = f", in {config.accumulate} pieces each (train.accumulate)" if config.accumulate > 1 else ""
        groups = " groups of" if config.sequence_parallel > 1 else ""
        raise WorldSizeError(
            f"train.global_batch is {config.global_batch}, but {num_shares}{groups} workers must divide it{pieces}: "
            f"use {nearest}"
        )
    torch.manual_seed(task.seed)  # initial weights; everything later is addressed
    module = task.build().to(worker.device)
    for stack in (part for part in module.modules() if isinstance(part, BlockStack)):
        stack.recompute = config.activation_checkpointing
    if config.sequence_parallel > 1:
        split_tokens(module, worker.rank, worker.world_size, config.sequence_parallel)
    if config.compile:
        compile_network(module)
    trainer = ZeroTrainer(
        module,
        device=worker.device,
        dtype=autocast_dtype(config.precision, worker.device),
        stage=config.zero_stage,
        offload=config.offload,
        micro_batch=micro_batch,
        accumulate=config.accumulate,
        sequence_parallel=config.sequence_parallel,
        max_norm=(config.max_norm or math.inf) if config.bad_steps == "skip" else None,
        loss_scaling=config.loss_scaling if config.precision == "fp16" else None,
        weight_decay=config.weight_decay,
        betas=config.betas,
        clip=config.clip_norm,
    )
    return trainer, ShardedEma(trainer.fragments, config.ema)


def compile_network(module: nn.Module) -> None:
    """Compile the blocks of a stack, which are alike and compiled once for all; a module without stacks as a whole.

    What lies around the blocks is little work, and looks at values, which a compiled graph cannot.
    """
    stacks = [part for part in module.modules() if isinstance(part, BlockStack)]
    for part in chain.from_iterable(stacks) if stacks else [module]:
        part.compile()
