"""Settings of the train stages."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from data.records import AddedLater, Runtime, Settings
from data.stream.config import CacheConfig
from models.attention.config import AttentionBackend
from pipeline.checkpoint.config import LoraConfig
from pipeline.engine.config import LossScaling, Offload, WeightPrecision, ZeroStage, half_weights_problem
from pipeline.engine.ema_profile import EmaProfiles, FixedDecay, profile_names
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST_AVERAGE, MASTER_IN_VALIDATION, ValidatedWeights

OLD_NAMES = {
    "accumulate": "gradient_accumulation_steps",
    "bad_steps": "non_finite_steps",
    "ema_decay": "ema",
}
"""Names that older configurations use -> today's names. Both are read."""


class MonitorConfig(Settings):
    """Validation, previews and dashboards during training. None of them changes what is trained."""

    validate_every_steps: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """Steps between two validations; None validates only before the first step and after the last one."""
    validate_weights: Annotated[ValidatedWeights, Runtime] = (MASTER_IN_VALIDATION, FIRST_AVERAGE)
    """The weights to validate: "master" (or "raw") as trained, "ema" for the first average, or an average's name."""
    validation_clips: Annotated[int, Runtime] = Field(default=64, ge=0)
    """The largest number of held-out clips to validate on; 0 turns validation off."""
    sample_every_steps: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """Steps between two previews, which are clips of four fixed prompts, sampled as section `sample` says; None
    makes no previews."""
    sample_weights: Annotated[str, Runtime] = FIRST_AVERAGE
    """The averaged weights that previews are sampled with: "ema" for the first average, or an average's name."""
    wandb_project: Annotated[str | None, Runtime] = Field(default=None, min_length=1)
    """The Weights & Biases project that also receives metrics and previews; None sends nothing to W&B."""


class TrainConfig(MonitorConfig):
    """How a network is trained.

    Fields marked `Runtime` may change when a training resumes. The result is then the same up to the order in which
    floating-point numbers are added. For `steps` that holds with a constant learning rate: a cosine schedule spans all
    steps, so a training that is extended continues at a higher rate than it ended with.
    """

    steps: Annotated[int, Runtime] = Field(default=1000, ge=1)
    """Number of training steps in total, over all starts; each step is one update of the weights."""
    global_batch: int = Field(default=32, ge=1)
    """Clips per step over all workers, for the bucket with the most tokens; other buckets get as many tokens."""
    batch_multiple: int = Field(default=4, ge=1)
    """Batch sizes of the other buckets are multiples of this number; the number of workers must divide it."""
    mixed_buckets: Annotated[bool, AddedLater(False)] = False
    """Clips of all buckets in every step, packed without padding, instead of one bucket a step (DiT only). A step has
    the tokens of `global_batch` clips of the largest bucket, in turns of `batch_multiple` clips, and the loss is the
    mean over its tokens.
    """
    gradient_accumulation_steps: Annotated[int, Runtime] = Field(
        default=1, ge=1, validation_alias=AliasChoices("gradient_accumulation_steps", "accumulate")
    )
    """Forward and backward passes per step on each worker; raise it if a worker runs out of memory."""
    sequence_parallel: Annotated[int, Runtime] = Field(default=1, ge=1)
    """Workers that compute each clip together, each with a part of its tokens; for long clips, DiT only."""
    readers: Annotated[int, Runtime] = Field(default=1, ge=0)
    """Threads per worker that read and decode samples ahead of training; 0 reads in the training thread."""
    cache: Annotated[CacheConfig | None, Runtime] = None
    """Copies of shards on a local disk of each machine, for datasets on slow storage; None makes no copies."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW, reached after the warm-up."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """The learning rate after the warm-up: constant, or half a cosine down to a tenth of the peak at the last step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of AdamW; applied to matrices and kernels, not to biases and norms."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's averages of the gradient and of its square, each in [0, 1)."""
    clip_norm: float = Field(default=1.0, gt=0)
    """The gradient is scaled down to this norm, taken over all parameters and workers, where it is longer."""
    non_finite_steps: Annotated[Literal["stop", "skip"], Runtime] = Field(
        default="stop", validation_alias=AliasChoices("non_finite_steps", "bad_steps")
    )
    """What to do at a step with an infinite or undefined loss or gradient: stop the training, or skip the update."""
    max_unreadable_share: Annotated[float, Runtime] = Field(default=0.01, ge=0, le=1)
    """Largest share of the training samples that may be unreadable, in [0, 1]: others take their place, and above it
    the training stops."""
    max_norm: Annotated[float | None, Runtime] = Field(default=None, gt=0)
    """Longer gradients, before clipping, are handled as `non_finite_steps` says; None allows any finite gradient."""
    ema: EmaProfiles = Field(default=(FixedDecay(decay=0.995),), validation_alias=AliasChoices("ema", "ema_decay"))
    """Exponential moving averages of the weights that are kept; a number stands for one average of that decay."""
    precision: Precision = "auto"
    """The type that networks compute in: auto is bf16 where the hardware multiplies in it, otherwise fp32."""
    weight_precision: Annotated[WeightPrecision, AddedLater("auto")] = "auto"
    """The type of the weights that workers compute with and exchange, at ZeRO 1 to 3: with bf16, ZeRO moves and keeps
    half the bytes; master weights, their averages and checkpoints are fp32 with either. auto is bf16 on a GPU that
    computes in bf16, where `zero_stage` and `gradient_accumulation_steps` allow it, otherwise fp32."""
    loss_scaling: LossScaling = LossScaling()
    """How the loss is scaled while `precision` is fp16; unused with the other types."""
    activation_checkpointing: Annotated[bool | Literal["selective"], Runtime] = False
    """Recompute the activations of a network's blocks in the backward pass: all (true) for the least memory and about a
    third more time, or all but those of linear layers, convolutions and attention (`selective`), which repeats no
    matrix product."""
    compile: Annotated[bool, Runtime] = False
    """Compile the network with torch.compile, once per bucket; every worker needs a C++ compiler."""
    attention: Annotated[AttentionBackend, Runtime] = "auto"
    """The kernel that computes attention in the blocks of a DiT, Wan or U-Net: auto chooses one for each call and logs
    why; any other ends the training, with the reason, at a call that it does not take."""
    zero_stage: Annotated[ZeroStage, Runtime] = 2
    """What ZeRO partitions over the workers: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    offload: Annotated[Offload, Runtime] = "none"
    """What is kept in host memory: the optimizer state (ZeRO 2 or 3), or also the parameters (ZeRO 3)."""
    checkpoint_every_steps: Annotated[int, Runtime] = Field(default=250, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    checkpoint_every_minutes: Annotated[float | None, Runtime] = Field(default=None, gt=0)
    """Minutes after which a checkpoint is saved even between those steps; None saves by steps only."""
    keep_checkpoints: Annotated[int, Runtime] = Field(default=2, ge=2)
    """Number of newest checkpoints that are kept; older ones are deleted."""
    keep_every_steps: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """Checkpoints at multiples of this step are never deleted; None keeps only the newest ones."""
    log_every_steps: Annotated[int, Runtime] = Field(default=10, ge=1)
    """Steps between two lines of metrics.jsonl; with `non_finite_steps: stop` they are also checked this often."""
    stall_minutes: Annotated[float | None, Runtime] = Field(default=4, gt=0)
    """Minutes without a step after which every rank writes its stack traces to stalls/; None turns that off.

    Keep it below 5, the time after which a collective that waits for a missing rank ends with an error.
    """

    @model_validator(mode="before")
    @classmethod
    def _refuse_both_names(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
        for old, new in OLD_NAMES.items():
            if isinstance(fields, dict) and old in fields and new in fields:
                raise ValueError(f"{old} is the old name of {new}, and both are given: remove {old}")
        return fields

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        least = {"none": 0, "optimizer": 2, "optimizer_and_parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload is {self.offload!r}, which needs ZeRO {least}{' or 3' if least < 3 else ''}, but zero_stage "
                f"is {self.zero_stage}: set zero_stage to {least}, or offload to none"
            )
        return self

    @model_validator(mode="after")
    def _check_mixed_buckets(self) -> Self:
        if not self.mixed_buckets:
            return self
        if self.sequence_parallel > 1:
            raise ValueError(
                f"mixed_buckets is true, but sequence_parallel is {self.sequence_parallel}, and packed clips cannot be "
                "shared by several workers: set sequence_parallel to 1, or mixed_buckets to false"
            )
        if self.global_batch % self.batch_multiple:
            nearest = max(1, round(self.global_batch / self.batch_multiple)) * self.batch_multiple
            raise ValueError(
                f"global_batch is {self.global_batch}, but with mixed_buckets it must be a multiple of batch_multiple "
                f"{self.batch_multiple}: use {nearest}"
            )
        return self

    @model_validator(mode="after")
    def _check_recomputation(self) -> Self:
        if self.activation_checkpointing != "selective":
            return self
        if self.compile:
            raise ValueError(
                "activation_checkpointing is 'selective', but compile is true, and a compiled block is recomputed as a "
                "whole: set activation_checkpointing to true, or compile to false"
            )
        if self.zero_stage == 3:  # its linear layers add the bias in place to the product, which is what was stored
            raise ValueError(
                "activation_checkpointing is 'selective', but zero_stage is 3, where DeepSpeed's linear layers change "
                "the products that are to be kept: set activation_checkpointing to true, or zero_stage to 2"
            )
        return self

    @model_validator(mode="after")
    def _check_averages(self) -> Self:
        names = [FIRST_AVERAGE, *profile_names(self.ema)]
        for field, known in (("validate_weights", [MASTER_IN_VALIDATION, *names]), ("sample_weights", names)):
            chosen = getattr(self, field)
            for name in (chosen,) if isinstance(chosen, str) else chosen:
                if name not in known:
                    raise ValueError(f"{field} names {name!r}, but ema gives {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        problem = half_weights_problem(self.precision, self.zero_stage, self.gradient_accumulation_steps)
        if self.weight_precision == "bf16" and problem is not None:
            raise ValueError(f"weight_precision is bf16, but {problem}")
        return self


class AutoencoderTrainConfig(TrainConfig):
    """How the autoencoder is trained."""

    image_share: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0, le=1)
    """Share of the clips of which a single frame is trained on, as an image; which ones and which frame are functions
    of the seed and of the sample's position."""


class FlowTrainConfig(TrainConfig):
    """How a DiT is trained, and from which weights."""

    start_from: Annotated[Path | None, Runtime] = None
    """A DiT's checkpoint, or a folder of checkpoints, whose averaged weights training starts from; or a published
    transformer, or a published pipeline that has one. None starts anew.
    """
    lora: LoraConfig | None = None
    """Train low-rank adapters on the network of `start_from` and nothing else; None trains all weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora adapts a trained network: name its checkpoint in start_from, such as runs/NAME/dit")
        return self
