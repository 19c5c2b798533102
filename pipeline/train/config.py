"""Settings of the train stages."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data.records import Settings
from data.stream.config import CacheConfig
from pipeline.checkpoint.config import LoraConfig
from pipeline.engine.config import LossScaling, Offload, ZeroStage
from pipeline.engine.ema_profile import EmaProfiles, FixedDecay, profile_names
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST, RAW


class WatchConfig(Settings):
    """What to watch. May change from one start to the next."""

    validate_every_steps: int | None = Field(default=None, ge=1)
    """None: before the first step and after the last."""
    validate_weights: tuple[str, ...] = (RAW, FIRST)
    """As trained, the first average, or an average by name."""
    validation_clips: int = Field(default=64, ge=0)
    """At most; 0 turns validation off."""
    sample_every_steps: int | None = Field(default=None, ge=1)
    """Of the DiT; None: never."""
    sample_weights: str = FIRST
    """The first average, or one by name."""
    wandb_project: str | None = Field(default=None, min_length=1)
    """None: nothing goes to Weights & Biases."""


class TrainConfig(WatchConfig):
    """How a network is trained."""

    steps: int = Field(default=1000, ge=1)
    """TODO"""
    global_batch: int = Field(default=32, ge=1)
    """Samples per step over all workers, of the largest bucket."""
    batch_multiple: int = Field(default=4, ge=1)
    """Batches of smaller buckets are multiples of it: workers must divide it."""
    accumulate: int = Field(default=1, ge=1)
    """Each worker computes its part of a batch in so many pieces."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Workers that share each sample of the DiT: a part of its tokens each."""
    readers: int = Field(default=1, ge=0)
    """Threads that read ahead, of each worker."""
    cache: CacheConfig | None = None
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
    bad_steps: Literal["stop", "skip"] = "stop"
    """Whose loss or gradient is not finite, or beyond `max_norm`."""
    max_norm: float | None = Field(default=None, gt=0)
    """Of a gradient before clipping, over all workers."""
    ema: EmaProfiles = (FixedDecay(decay=0.995),)
    """Averages of the weights; a number is a fixed decay."""
    precision: Precision = "auto"
    """TODO"""
    loss_scaling: LossScaling = LossScaling()
    """Of fp16."""
    activation_checkpointing: bool = False
    """The DiT's blocks are computed again in backward, for their memory."""
    compile: bool = False
    """By torch.compile, once for each bucket; needs a compiler on every worker."""
    zero_stage: ZeroStage = 2
    """TODO"""
    offload: Offload = "none"
    """What lies in host memory; at ZeRO 2 and 3, the parameters at 3."""
    checkpoint_every_steps: int = Field(default=250, ge=1)
    """TODO"""
    checkpoint_every_minutes: float | None = Field(default=None, gt=0)
    """Also, where steps are slow."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """The newest."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """And for good those at multiples of this."""
    log_every_steps: int = Field(default=10, ge=1)
    """TODO"""
    stall_minutes: float | None = Field(default=4, gt=0)
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

    @classmethod
    def pacing(cls) -> set[str]:
        """Fields that may differ from one start to the next: what is learnt is the same, but for the order of sums.

        Of `steps` that holds with a constant rate; a cosine is drawn anew over the whole length, so a training that was
        finished goes on at a higher rate than it ended with.
        """
        prefixes = ("checkpoint_", "keep_", "log_", "stall_")
        pacing = {
            "steps",
            "zero_stage",
            "offload",
            "accumulate",
            "activation_checkpointing",
            "compile",
            "readers",
            "cache",
            "sequence_parallel",
        }
        pacing |= {"bad_steps", "max_norm"}  # steps that went well stay as they were
        return pacing | {*WatchConfig.model_fields} | {name for name in cls.model_fields if name.startswith(prefixes)}


class DiTTrainConfig(TrainConfig):
    """How a DiT is trained, and from which weights."""

    start_from: Path | None = None
    """A DiT's checkpoint, or a folder with checkpoints: its averaged weights."""
    lora: LoraConfig | None = None
    """Learn adapters on those, and nothing else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora adapts a trained network: name its checkpoint in start_from, such as runs/NAME/dit")
        return self
