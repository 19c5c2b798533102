"""The memory that a worker needs to train, by part, before anything is built.

Activations come from a trace of the step (`memory_trace.py`). What ZeRO keeps beside them, and when, follows from its
stage; the buffers are those of DeepSpeed 0.19 with the settings of `pipeline/engine/zero.py`.
"""

from dataclasses import dataclass

from pipeline.engine.config import Offload, ZeroStage
from pipeline.engine.zero import BUCKET_PARAMETERS, PERSISTENT_PARAMETERS
from pipeline.train.memory_trace import Moment, StepTrace

MASTER = MOMENT = 4  # bytes a value
LIVE_PARAMETERS = 1_000_000_000
"""Values of gathered parameters that stage 3 keeps between their uses, at most (DeepSpeed's default)."""
GATHERED_AT_ONCE = 50_000_000
"""Values that stage 3 gathers in one collective, at most, ahead of their use (DeepSpeed's default)."""
ALL_REDUCED = 500_000_000
"""Values that DeepSpeed copies into one buffer to reduce them at stage 0."""


@dataclass(frozen=True)
class MemorySettings:
    """What the state of a training takes depends on."""

    zero_stage: ZeroStage
    world_size: int
    """Workers that ZeRO partitions over."""
    weight_bytes: int
    """Of a value of the module's weights: 4, or 2 where they are bfloat16."""
    num_averages: int
    """Moving averages of the weights."""
    accumulation_steps: int = 1
    offload: Offload = "none"
    is_gpu: bool = True


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes on one worker when it needs most."""

    weights: int
    """What it computes with: whole, or at stage 3 its part and what it has gathered."""
    gradients: int
    optimizer: int
    """Master weights where they are others than `weights`, and AdamW's two moments."""
    averages: int
    activations: int
    """What the forward pass keeps, and temporary tensors."""
    buffers: int
    """Of ZeRO's collectives."""
    host: int = 0
    """In host memory, with `offload`; not part of `total`."""

    @property
    def total(self) -> int:
        """Of all parts on the device."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.buffers


def worker_memory(trace: StepTrace, settings: MemorySettings) -> WorkerMemory:
    """The memory of a worker at the moment of a step at which it needs most."""
    zero = _Zero(trace, settings)
    weights, optimizer, averages, host = zero.weights, zero.optimizer, zero.averages, 0
    if settings.offload != "none":
        host, optimizer, averages = optimizer + averages, 0, 0
    if settings.offload == "optimizer_and_parameters":
        host, weights = host + zero.part * settings.weight_bytes, weights - zero.part * settings.weight_bytes
    moments = [zero.backward(moment) for moment in trace.moments] + zero.after_backward
    most = max(moments, key=sum)
    gradients, buffers, activations = most
    return WorkerMemory(weights, gradients, optimizer, averages, activations, buffers, host)


class _Zero:
    """What ZeRO keeps at a stage."""

    def __init__(self, trace: StepTrace, settings: MemorySettings) -> None:
        self.settings, self.trace = settings, trace
        self.stage, self.values = settings.zero_stage, trace.num_trained
        self.part = -(-self.values // settings.world_size)
        """Values of a partition."""
        self.bucket = min(self.values, BUCKET_PARAMETERS)

    @property
    def weights(self) -> int:
        """Bytes, frozen weights included."""
        width, everything = self.settings.weight_bytes, self.values + self.trace.num_frozen
        if self.stage < 3:
            return width * everything
        sizes = self.trace.parameter_sizes
        persistent = sum(size for size in sizes if size <= PERSISTENT_PARAMETERS)
        gathered = min(everything, max(LIVE_PARAMETERS, persistent))
        own = -(-everything // self.settings.world_size)
        return width * (own + gathered)

    @property
    def optimizer(self) -> int:
        """Bytes of master weights and moments."""
        if self.stage == 0:
            return 2 * MOMENT * self.values
        return (MASTER + 2 * MOMENT) * self.part

    @property
    def averages(self) -> int:
        """Bytes; also at stage 0, a rank averages its share alone."""
        return self.settings.num_averages * MASTER * self.part

    def backward(self, moment: Moment) -> tuple[int, int, int]:
        """Gradients, buffers and activations while the backward pass runs."""
        width, done = self.settings.weight_bytes, moment.num_finished
        buffers = self._standing_buffers + self._gathering
        return width * self._kept(done) + self._partition, buffers, moment.tensor_bytes

    def _kept(self, done: int) -> int:
        """Values of gradients that wait to be reduced, or that all stay."""
        if self.stage < 2:
            return self.values if self.settings.accumulation_steps > 1 else done
        return 0 if self.settings.is_gpu else min(done, self.bucket)

    @property
    def _partition(self) -> int:
        """Bytes of the gradients of this worker's partition that are there all the time."""
        if self.stage < 2:
            return 0
        if self.settings.accumulation_steps > 1:
            return MASTER * self.part
        return self.settings.weight_bytes * self.part if self.stage == 3 or self.settings.is_gpu else 0

    @property
    def _standing_buffers(self) -> int:
        """On a GPU gradients are copied into contiguous buckets, two of them at stages 1 and 2."""
        if not self.settings.is_gpu or self.stage == 0:
            return 0
        return self.settings.weight_bytes * self.bucket * (1 if self.stage == 3 else 2)

    @property
    def _gathering(self) -> int:
        """Bytes of what Gloo, which there is on a CPU, gathers into before it is copied to the parameters."""
        if self.settings.is_gpu or self.stage < 3 or self.settings.world_size == 1:
            return 0
        return self.settings.weight_bytes * min(self.values, GATHERED_AT_ONCE)

    @property
    def after_backward(self) -> list[tuple[int, int, int]]:
        """Gradients, buffers and activations when the last bucket is reduced, and at the update."""
        width = self.settings.weight_bytes
        if self.stage == 0:
            return [(width * self.values, width * min(self.values, ALL_REDUCED), 0)]
        kept = width * (self.values if self.stage == 1 else self.bucket)
        reduced = (kept + self._partition, self._standing_buffers or width * self.bucket, 0)
        own = width * (self.values if self.stage == 1 else self.part)
        update = (own + MASTER * self.part, self._standing_buffers, 0)
        return [reduced, update]
