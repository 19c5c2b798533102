"""Throughput of a training: tokens and operations per second, hardware utilisation, and the slowest rank."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.dataset.buckets import Bucket
from data.stream.plan import BatchPlan
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer

# Peak dense bfloat16 operations per second, from the vendors' data sheets. The first entry whose name is part of the
# device's name applies.
PEAK_FLOPS = (
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
)


class ThroughputTask(Protocol):
    """What the measurement of throughput needs from a task."""

    def num_tokens(self, bucket: Bucket) -> int:
        """Number of positions of one clip that the network computes with."""
        ...

    def flops_probe(self, bucket: Bucket) -> Tensor:
        """A scalar that the network computes from one clip; called under torch.device("meta"), so without data."""
        ...


def peak_flops_per_second(device_name: str) -> float | None:
    """The device's peak in bfloat16, in operations per second; None for unknown devices."""
    return next((peak for name, peak in PEAK_FLOPS if name in device_name), None)


def flops_per_clip(task: ThroughputTask, bucket: Bucket) -> int:
    """Operations of a forward and a backward pass for one clip, counting matrix products and convolutions only."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        task.flops_probe(bucket).backward()
    return counter.get_total_flops()


class ForwardClock:
    """Seconds of this rank's forward passes in training. Below ZeRO stage 3 they contain no waiting for other ranks."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds, self._started = 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def take(self) -> float:
        """The seconds since the last call; synchronizes with the GPU."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _begin(self, *_: Any) -> None:  # noqa: ANN401 - a hook
        if torch.is_grad_enabled() and self._cuda:
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
        self._started = time.monotonic()

    def _end(self, *_: Any) -> None:  # noqa: ANN401 - a hook
        if torch.is_grad_enabled():
            if self._cuda:
                self._events[-1][1].record()
            else:
                self._seconds += time.monotonic() - self._started


@dataclass(frozen=True)
class RankTiming:
    """Time and memory of one rank since the last logged step."""

    step_seconds: float
    own_seconds: float  # per step: waiting for its data and its forward pass, without waiting for other ranks
    memory_bytes: int


def slowest(ranks: list[RankTiming]) -> dict[str, float]:
    """The rank with the longest own work per step, which the others wait for at the end of each step."""
    number = max(range(len(ranks)), key=lambda rank: ranks[rank].own_seconds)
    return {
        "step_seconds": max(rank.step_seconds for rank in ranks),
        "slowest_rank": number,
        "slowest_own_seconds": ranks[number].own_seconds,
        "memory_bytes": max(rank.memory_bytes for rank in ranks),
    }


@torch.no_grad()
def ema_distance(trainer: ZeroTrainer, ema: ShardedEma) -> float:
    """|first average - weights| / |weights| over all parameters. Collective."""
    squares, average = torch.zeros(2, dtype=torch.float64, device=trainer.device), ema.of()
    for fragment in trainer.fragments:
        squares[0] += torch.linalg.vector_norm(average[fragment.name] - fragment.master).double().square()
        squares[1] += torch.linalg.vector_norm(fragment.master).double().square()
    dist.all_reduce(squares)
    difference, size = squares.sqrt().tolist()
    return difference / size if size else 0.0


class Throughput:
    """Measures throughput between logged steps. Constructed and called by all ranks."""

    def __init__(
        self,
        task: ThroughputTask,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        plan: BatchPlan,
        buckets: Mapping[str, Bucket],
        first_step: int,
    ) -> None:
        self._trainer, self._ema, self._plan = trainer, ema, plan
        self._tokens = {name: task.num_tokens(bucket) for name, bucket in buckets.items()}
        self._flops: dict[str, int] = {}
        if trainer.rank == 0:
            self._flops = {name: flops_per_clip(task, bucket) for name, bucket in buckets.items()}
        on_gpu = trainer.device.type == "cuda"
        self._peak = peak_flops_per_second(torch.cuda.get_device_name(trainer.device)) if on_gpu else None
        self._clock = ForwardClock(trainer.engine.module, trainer.device)
        self._step, self._waited, self._since, self._elsewhere = first_step, 0.0, time.monotonic(), 0.0

    def start(self) -> None:
        """Call immediately before the first step."""
        self._since, self._elsewhere = time.monotonic(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, which is not training."""
        if self._trainer.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.device)  # kernels in flight belong to training
        started = time.monotonic()
        yield
        self._elsewhere += time.monotonic() - started

    def measure(self, step: int, waited_seconds: float) -> dict[str, float]:
        """The throughput since the last call, up to `step`; operations per second on rank 0 only. Collective.

        Args:
            waited_seconds: how long this rank has waited for its data since training started.
        """
        forward = self._clock.take()
        now, steps = time.monotonic(), range(self._step, step)
        seconds = now - self._since - self._elsewhere
        own = RankTiming(
            step_seconds=seconds / len(steps),
            own_seconds=(forward + waited_seconds - self._waited) / len(steps),
            memory_bytes=memory_in_use(self._trainer.device),
        )
        clips: Counter[str] = Counter()
        for number in steps:
            clips.update(self._plan.num_samples(number))
        values = {"tokens_per_second": sum(self._tokens[bucket] * size for bucket, size in clips.items()) / seconds}
        if self._flops:
            rate = sum(self._flops[bucket] * size for bucket, size in clips.items()) / seconds
            values["flops_per_second"] = rate
            if self._peak is not None:
                values["mfu"] = rate / (self._peak * self._trainer.world_size)
        values["ema_distance"] = ema_distance(self._trainer, self._ema)
        values |= slowest(from_every_rank(own))
        self._step, self._waited, self._since, self._elsewhere = step, waited_seconds, now, 0.0
        return values


def memory_in_use(device: torch.device) -> int:
    """Bytes: on a GPU the peak of allocated tensors since the last call, on a CPU the process's resident memory."""
    if device.type != "cuda":
        return psutil.Process().memory_info().rss
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
