"""The settings nearest to those given with which a training fits into memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from pydantic import ValidationError

from data.errors import ReelflowError
from launch.plan_hardware import Hardware
from launch.plan_training import Trained, memory_settings, trace, weight_bytes
from pipeline.engine.config import SplitError, check_can_share, check_tokens
from pipeline.train.batches import turn_sizes
from pipeline.train.build import micro_batch_size
from pipeline.train.config import TrainConfig
from pipeline.train.memory_plan import worker_memory
from pipeline.train.memory_trace import Moment, StepTrace
from pipeline.train.tasks.captioned import CaptionedTask

SLOWER = {
    "activation_checkpointing": {False: 1.0, "selective": 1.07, True: 1.33},
    "zero_stage": {0: 1.0, 1: 1.0, 2: 1.01, 3: 1.1},
    "offload": {"none": 1.0, "optimizer": 1.5, "optimizer_and_parameters": 2.5},
}
"""How many times as long a step takes, about: the order in which settings are tried, nothing else."""
PER_ACCUMULATION, PER_SPLIT = 1.01, 1.06  # for each doubling


@dataclass(frozen=True)
class Candidate:
    """Other settings of a training, and how much slower they are."""

    changes: tuple[tuple[str, object], ...]
    slower: float


def nearest_fit(trained: Trained, hardware: Hardware) -> tuple[str, ...]:
    """Settings to change, such as "dit.train.zero_stage=3", so that it fits; empty if nothing was found."""
    section = trained.name.removeprefix("train ")
    traces, state = _traces(trained), _state_alone(trained)
    for candidate in sorted(_candidates(trained, hardware.num_gpus), key=lambda each: each.slower):
        train = _changed(trained, candidate, hardware.num_gpus)
        if train is None:
            continue
        settings = memory_settings(train, hardware.num_gpus)
        clips = micro_batch_size(train, hardware.num_gpus)
        if worker_memory(state, settings).total > hardware.usable_bytes:
            continue
        if worker_memory(traces(train, clips), settings).total > hardware.usable_bytes:
            continue
        if clips <= 2 or worker_memory(trace(trained, train, clips), settings).total <= hardware.usable_bytes:
            return tuple(f"{section}.train.{name}={_text(value)}" for name, value in candidate.changes)
    return ()


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _candidates(trained: Trained, world: int) -> Iterator[Candidate]:
    """Settings that take no more memory than those given, each with its price in time."""
    train = trained.train
    doublings = range((train.global_batch // train.gradient_accumulation_steps).bit_length())
    accumulation = [train.gradient_accumulation_steps * 2**number for number in doublings]
    splits = (
        [train.sequence_parallel * 2**number for number in range(7)] if isinstance(trained.task, CaptionedTask) else [1]
    )
    grid = product(
        [stage for stage in SLOWER["zero_stage"] if stage >= train.zero_stage],
        SLOWER["activation_checkpointing"],
        SLOWER["offload"],
        accumulation,
        [size for size in splits if world % size == 0],
    )
    names = ("zero_stage", "activation_checkpointing", "offload", "gradient_accumulation_steps", "sequence_parallel")
    for values in grid:
        chosen: dict[str, Any] = dict(zip(names, values, strict=True))
        slower = PER_ACCUMULATION ** (values[3] / accumulation[0]) * PER_SPLIT ** (values[4].bit_length() - 1)
        for name, prices in SLOWER.items():
            slower *= prices[chosen[name]]
        changes = tuple((name, value) for name, value in chosen.items() if value != getattr(train, name))
        yield Candidate(changes, slower)


def _changed(trained: Trained, candidate: Candidate, world: int) -> TrainConfig | None:
    """The settings with the changes; None where they do not go together, or the workers cannot share the work."""
    try:
        train = type(trained.train).model_validate(trained.train.model_dump() | dict(candidate.changes))
        micro_batch_size(train, world)
        _check_split(trained, train.sequence_parallel)
        if any(size % (world // train.sequence_parallel) for size in turn_sizes(train, trained.buckets).values()):
            return None
    except (ValidationError, ReelflowError, SplitError):
        return None
    return train


def _check_split(trained: Trained, size: int) -> None:
    if isinstance(trained.task, CaptionedTask):
        check_can_share(trained.task.model, size)
        for bucket in trained.buckets:
            grid = bucket.latent_grid(trained.task.compression)
            check_tokens(bucket.name, trained.task.model.num_tokens(grid) // grid[0], size)


def _traces(trained: Trained) -> Callable[[TrainConfig, int], StepTrace]:
    """Traces by settings; what a step keeps grows linearly with its clips, so two of each kind serve."""

    @cache
    def of(kind: str, clips: int) -> StepTrace:
        return trace(trained, type(trained.train).model_validate_json(kind), clips)

    def of_clips(train: TrainConfig, clips: int) -> StepTrace:
        precision = {2: "bf16", 4: "fp32"}[weight_bytes(train)]
        same = {"zero_stage": 2, "gradient_accumulation_steps": 1, "offload": "none", "weight_precision": precision}
        kind = train.model_copy(update=same).model_dump_json()
        one = of(kind, 1)
        if clips == 1:
            return one
        pairs = zip(one.moments, of(kind, 2).moments, strict=True)
        moments = [
            Moment(a.tensor_bytes + (clips - 1) * (b.tensor_bytes - a.tensor_bytes), a.num_finished) for a, b in pairs
        ]
        return StepTrace(one.num_trained, one.num_frozen, one.largest_parameter, one.parameter_sizes, tuple(moments))

    return of_clips


def _state_alone(trained: Trained) -> StepTrace:
    """As if nothing were computed: what does not fit without activations does not fit."""
    sizes = trained.parameter_sizes
    return StepTrace(sum(sizes), 0, max(sizes), sizes, (Moment(0, 0),))
