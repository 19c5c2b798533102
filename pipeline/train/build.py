"""Construction of the network and its engine, as they are before the first step."""

import logging
import math

import torch

from models.layers import BlockStack
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.engine.compilation import compile_network
from pipeline.engine.config import WeightPrecisionError, half_weights_problem
from pipeline.engine.ema import ShardedEma
from pipeline.engine.placement import Placement
from pipeline.engine.sequence_parallel import parallelize_sequence
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.precision import autocast_dtype
from pipeline.train.config import TrainConfig
from pipeline.train.task import TrainTask

logger = logging.getLogger(__name__)


def build(task: TrainTask, config: TrainConfig, worker: Worker) -> tuple[ZeroTrainer, ShardedEma]:
    """The network in its engine with initial weights, and the averages of its weights. Collective.

    Raises:
        CheckpointError: the weights that the training starts from are damaged.
        SplitError: the workers of a sequence group cannot share the network.
        WeightPrecisionError: weights in bf16 are set, and this machine does not compute in it.
        WorldSizeError: the workers cannot share the global batch evenly.
    """
    size = micro_batch_size(config, worker.world_size)
    torch.manual_seed(task.seed)  # for initial weights only: all later randomness is addressed
    placement = Placement(worker.device, config.zero_stage, config.offload)
    module = task.build(placement).to(worker.device)
    for stack in (part for part in module.modules() if isinstance(part, BlockStack)):
        stack.recompute, stack.attention = config.activation_checkpointing, config.attention
    if config.sequence_parallel > 1:
        parallelize_sequence(module, worker.rank, worker.world_size, config.sequence_parallel)
    if config.compile:
        # DeepSpeed's hooks, which gather the parameters of ZeRO 3, and its exchange of tokens cannot be traced.
        compile_network(module, has_breaks=config.zero_stage == 3 or config.sequence_parallel > 1)
    dtype, half_weights = autocast_dtype(config.precision, worker.device), uses_half_weights(config, worker.device)
    logger.debug(
        "computing in %s, with weights in %s", dtype or torch.float32, dtype if half_weights else torch.float32
    )
    trainer = ZeroTrainer(
        module,
        task.parameter_groups(config),
        device=worker.device,
        dtype=dtype,
        stage=config.zero_stage,
        offload=config.offload,
        micro_batch=size,
        accumulation_steps=config.gradient_accumulation_steps,
        sequence_parallel=config.sequence_parallel,
        max_norm=(config.max_norm or math.inf) if config.non_finite_steps == "skip" else None,
        loss_scaling=config.loss_scaling if config.precision == "fp16" else None,
        clip_norm=config.clip_norm,
        half_weights=half_weights,
    )
    return trainer, ShardedEma(trainer.fragments, config.ema)


def uses_half_weights(config: TrainConfig, device: torch.device) -> bool:
    """Whether the weights that workers compute with and exchange are bfloat16.

    Raises:
        WeightPrecisionError: they are set to be, and this machine does not compute in it.
    """
    computes_in_half = autocast_dtype(config.precision, device) == torch.bfloat16
    if config.weight_precision == "bf16" and not computes_in_half:
        raise WeightPrecisionError(
            f"train.weight_precision is bf16, but train.precision is auto, which is fp32 on this machine ({device}): "
            "set train.precision to bf16, or train.weight_precision to fp32"
        )
    if config.weight_precision != "auto":
        return config.weight_precision == "bf16"
    problem = half_weights_problem(config.precision, config.zero_stage, config.gradient_accumulation_steps)
    return device.type == "cuda" and computes_in_half and problem is None


def micro_batch_size(config: TrainConfig, world_size: int) -> int:
    """Number of clips that each forward pass of a worker computes, for the bucket with the most tokens.

    Raises:
        WorldSizeError: the global batch, or the workers in sequence groups, do not divide evenly; names what would fit.
    """
    num_shares, remainder = divmod(world_size, config.sequence_parallel)
    if remainder:
        sizes = [size for size in range(1, world_size + 1) if world_size % size == 0]
        nearest = min(sizes, key=lambda size: abs(size - config.sequence_parallel))
        raise WorldSizeError(
            f"train.sequence_parallel is {config.sequence_parallel}, but {world_size} workers do not form "
            f"groups of that many: use {nearest}"
        )
    accumulation = config.gradient_accumulation_steps
    size, remainder = divmod(config.global_batch, num_shares * accumulation)
    if remainder:
        multiple = num_shares * accumulation
        nearest = max(1, round(config.global_batch / multiple)) * multiple
        steps = f", with train.gradient_accumulation_steps {accumulation} on each" if accumulation > 1 else ""
        groups = " groups of" if config.sequence_parallel > 1 else ""
        raise WorldSizeError(
            f"train.global_batch is {config.global_batch}, but {num_shares}{groups} workers must divide it{steps}: "
            f"use {nearest}"
        )
    return size
