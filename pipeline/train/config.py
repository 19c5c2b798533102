"""Settings of the train stages."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.records import Runtime, Settings
from data.stream.config import CacheConfig
from pipeline.checkpoint.config import LoraConfig
from pipeline.engine.config import LossScaling, Offload, ZeroStage
from pipeline.engine.ema_profile import EmaProfiles, FixedDecay, profile_names
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST, RAW


class WatchConfig(Settings):
    """What to watch. May change from one start to the next."""

    validate_every_steps: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """None: before the first step and after the last."""
    validate_weights: Annotated[tuple[str, ...], Runtime] = (RAW, FIRST)
    """As trained, the first average, or an average by name."""
    validation_clips: Annotated[int, Runtime] = Field(default=64, ge=0)
    """At most; 0 turns validation off."""
    sample_every_steps: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """Of the DiT; None: never."""
    sample_weights: Annotated[str, Runtime] = FIRST
    """The first average, or one by name."""
    wandb_project: Annotated[str | None, Runtime] = Field(default=None, min_length=1)
    """None: nothing goes to Weights & Biases."""


class TrainConfig(WatchConfig):
    """How a network is trained."""

    steps: Annotated[int, Runtime] = Field(default=1000, ge=1)
    """TODO"""
    global_batch: int = Field(default=32, ge=1)
    """Samples per step over all workers, of the largest bucket."""
    batch_multiple: int = Field(default=4, ge=1)
    """Batches of smaller buckets are multiples of it: workers must divide it."""
    accumulate: Annotated[int, Runtime] = Field(default=1, ge=1)
    """Each worker computes its part of a batch in so many pieces."""
    sequence_parallel: Annotated[int, Runtime] = Field(default=1, ge=1)
    """Workers that share each sample of the DiT: a part of its tokens each."""
    readers: Annotated[int, Runtime] = Field(default=1, ge=0)
    """Threads that read ahead, of each worker."""
    cache: Annotated[CacheConfig | None, Runtime] = None
    """Copies of shards on a fast disk of each machine."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """TODO"""
    warmup_steps: int = Field(default=50, ge=0)
    """TODO"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """TODO"""
    weight_decay: float = Field(default=0.01, ge=0)
    """TODO"""
    betas: tuple[float, float] = (0.9, 0.99)
    """TODO"""
    clip_norm: float = Field(default=1.0, gt=0)
    """TODO"""
    bad_steps: Annotated[Literal["stop", "skip"], Runtime] = "stop"
    """Whose loss or gradient is not finite, or beyond `max_norm`."""
    max_norm: Annotated[float | None, Runtime] = Field(default=None, gt=0)
    """Of a gradient before clipping, over all workers."""
    ema: EmaProfiles = (FixedDecay(decay=0.995),)
    """Averages of the weights; a number is a fixed decay."""
    precision: Precision = "auto"
    """TODO"""
    loss_scaling: LossScaling = LossScaling()
    """Of fp16."""
    activation_checkpointing: Annotated[bool, Runtime] = False
    """The DiT's blocks are computed again in backward, for their memory."""
    compile: Annotated[bool, Runtime] = False
    """By torch.compile, once for each bucket; needs a compiler on every worker."""
    zero_stage: Annotated[ZeroStage, Runtime] = 2
    """TODO"""
    offload: Annotated[Offload, Runtime] = "none"
    """What lies in host memory; at ZeRO 2 and 3, the parameters at 3."""
    checkpoint_every_steps: Annotated[int, Runtime] = Field(default=250, ge=1)
    """TODO"""
    checkpoint_every_minutes: Annotated[float | None, Runtime] = Field(default=None, gt=0)
    """Also, where steps are slow."""
    keep_checkpoints: Annotated[int, Runtime] = Field(default=2, ge=2)
    """The newest."""
    keep_every_steps: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """And for good those at multiples of this."""
    log_every_steps: Annotated[int, Runtime] = Field(default=10, ge=1)
    """TODO"""
    stall_minutes: Annotated[float | None, Runtime] = Field(default=4, gt=0)
    """Without a step: every rank writes its stacks to stalls/; before the collectives' timeout ends a rank that waits.
    """

    @model_validator(mode="before")
    @classmethod
    def _take_old_name(cls, fields: Any) -> Any:  # noqa: ANN401 - what a configuration may hold
        if isinstance(fields, dict) and "ema_decay" in fields:
            old = fields["ema_decay"]
            return {name: value for name, value in fields.items() if name != "ema_decay"} | {"ema": old}
        return fields

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        least = {"none": 0, "optimizer": 2, "optimizer_and_parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload is {self.offload!r}, which takes ZeRO {least}{' or 3' if least < 3 else ''}, but zero_stage "
                f"is {self.zero_stage}: set zero_stage to {least}, or offload to none"
            )
        return self

    @model_validator(mode="after")
    def _check_averages(self) -> Self:
        names = [FIRST, *profile_names(self.ema)]
        for field, known in (("validate_weights", [RAW, *names]), ("sample_weights", names)):
            chosen = getattr(self, field)
            for name in (chosen,) if isinstance(chosen, str) else chosen:
                if name not in known:
                    raise ValueError(f"{field} names {name!r}, but ema gives {', '.join(known)}")
        return self


class FlowTrainConfig(TrainConfig):
    """How a DiT is trained, and from which weights."""

    start_from: Annotated[Path | None, Runtime] = None
    """A DiT's checkpoint, or a folder with checkpoints: its averaged weights."""
    lora: LoraConfig | None = None
    """Learn adapters on those, and nothing else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora adapts a trained network: name its checkpoint in start_from, such as runs/NAME/dit")
        return self
