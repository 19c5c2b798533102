"""Advice where a GPU has too little memory for a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.distributed.process_group import Worker
from pipeline.train.config import TrainConfig


@contextmanager
def memory_advice(config: TrainConfig, worker: Worker, batch_size: int) -> Iterator[None]:
    """Name the settings that reduce the memory of a step where the block runs out of it.

    Args:
        batch_size: number of clips in the global batch of the step.

    Raises:
        OutOfMemoryError: with these settings, and how many clips were computed at a time.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        accumulation = config.gradient_accumulation_steps
        num_clips = batch_size * config.sequence_parallel // worker.world_size // accumulation
        settings = [f"train.gradient_accumulation_steps={2 * accumulation}"] if num_clips > 1 else []
        settings += ["train.activation_checkpointing=true"] if config.activation_checkpointing is not True else []
        settings += [f"train.zero_stage={config.zero_stage + 1}"] if config.zero_stage < 3 else []
        settings += ["train.offload=optimizer"] if config.zero_stage >= 2 and config.offload == "none" else []
        settings += ["a smaller bucket or model"] if not settings else []
        raise torch.OutOfMemoryError(
            f"rank {worker.rank} has too little memory for {num_clips} clips at a time at ZeRO stage "
            f"{config.zero_stage}; set {' or '.join(settings)} ({str(error).splitlines()[0]})"
        ) from error
