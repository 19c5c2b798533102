"""Settings of the engine."""

from typing import Literal

from pydantic import Field

from data.errors import ReelflowError
from data.records import Settings
from models.networks.config import NetworkConfig, nearest_heads
from pipeline.run.config import Precision

SMALLEST_SCALE = 1.0  # a gradient that is not finite at this scale is an error of the training, not of the scale


class LossScaling(Settings):
    """How the factor that float16 losses are multiplied by changes during training."""

    initial: float = Field(default=2.0**16, ge=SMALLEST_SCALE)
    """The scale of the first step, at least 1."""
    window: int = Field(default=1000, ge=1)
    """Number of steps without overflow after which the scale is doubled."""
    hysteresis: int = Field(default=2, ge=1)
    """Number of overflows after which the scale is halved; the count restarts whenever the scale is doubled."""


TRAINING = "train.sequence_parallel"
"""The setting that messages name, where it is that of a training."""


class SplitError(ReelflowError, ValueError):
    """A network or a clip that a sequence-parallel group of ranks cannot share; the message names what would fit."""


def check_heads(heads: int, width: int, size: int, setting: str = TRAINING) -> None:
    """Refuse attention heads that `size` ranks cannot share evenly.

    Raises:
        SplitError: names the nearest number of heads that fits, or the nearest size of a group.
    """
    if heads % size:
        fitting = nearest_heads(width, heads, multiple=size)
        sizes = [number for number in range(1, min(heads, 2 * size) + 1) if heads % number == 0]
        nearest = min(sizes, key=lambda number: abs(number - size))
        is_trained = setting != TRAINING
        way_out = f"{setting}={nearest}" if fitting is None or is_trained else f"{fitting} heads"
        raise SplitError(
            f"dit.model.heads is {heads}, but {size} workers share each sample ({setting}) and must "
            f"divide the heads: use {way_out}"
        )


def check_can_share(network: NetworkConfig, size: int, setting: str = TRAINING) -> None:
    """Refuse a network that `size` ranks cannot share evenly.

    Raises:
        SplitError: it has no tokens to share, or `size` does not divide its heads.
    """
    if size > 1 and not network.shares_tokens:
        raise SplitError(
            f"{setting} is {size}, but dit.model.architecture is {network.architecture}, which has no "
            "tokens to share: leave it at 1, or use a transformer"
        )
    check_heads(network.heads, network.width, size, setting)


def check_tokens(bucket: str, tokens_per_frame: int, size: int, setting: str = TRAINING) -> None:
    """Refuse frames whose tokens `size` ranks cannot share evenly.

    Raises:
        SplitError: names the bucket and the nearest size of a group.
    """
    if tokens_per_frame % size:
        sizes = [number for number in range(1, min(tokens_per_frame, 2 * size) + 1) if tokens_per_frame % number == 0]
        nearest = min(sizes, key=lambda number: abs(number - size))
        raise SplitError(
            f"a frame of bucket {bucket} has {tokens_per_frame} tokens, but {size} workers share each sample "
            f"({setting}) and must divide them: use {setting}={nearest}"
        )


ZeroStage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "optimizer_and_parameters"]
WeightPrecision = Literal["auto", "fp32", "bf16"]


class WeightPrecisionError(ReelflowError, ValueError):
    """Weights that cannot be bfloat16 on this machine; the message says why, and the way out."""


def half_weights_problem(precision: Precision, zero_stage: ZeroStage, accumulation_steps: int) -> str | None:
    """Why weights cannot be bfloat16, and the way out; None: they can where "auto" is bf16."""
    if precision not in ("auto", "bf16"):
        return f"precision is {precision}: set precision to bf16, or weight_precision to fp32"
    if zero_stage == 0:
        return (
            "zero_stage is 0, where there are no other master weights: set zero_stage to 1, or weight_precision to fp32"
        )
    if zero_stage == 1 and accumulation_steps > 1:
        return (
            f"zero_stage is 1, where gradients of {accumulation_steps} accumulation steps would be added in bf16: set "
            "zero_stage to 2, or weight_precision to fp32"
        )
    return None
