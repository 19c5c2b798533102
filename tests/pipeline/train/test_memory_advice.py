"""Advice where a GPU has too little memory."""

import pytest
import torch

from pipeline.distributed.process_group import Worker
from pipeline.train.config import TrainConfig
from pipeline.train.memory_advice import memory_advice


def test_too_little_memory_names_the_knobs():
    worker = Worker(1, 2, torch.device("cpu"))
    with (
        pytest.raises(
            torch.OutOfMemoryError,
            match=r"rank 1 .* 16 clips .* stage 2; set train\.gradient_accumulation_steps=2 or .*=true or",
        ),
        memory_advice(TrainConfig(), worker, 32),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
