"""Settings of the evaluate stage."""

from pydantic import Field

from data.records import Settings


class EvaluateConfig(Settings):
    """What is measured."""

    max_reconstructions: int = Field(default=64, ge=1)
    """The reconstruction error of the autoencoder is averaged over at most this many clips of the validation split."""
    judge_clips: int = Field(default=192, ge=1)
    """Number of newly drawn synthetic clips on which the judge of prompt adherence is validated."""
    prompts_per_combination: int = Field(default=6, ge=1)
    """Number of clips sampled for each combination of colour, shape and direction that is held out of training; only
    for synthetic videos, and without a prompts file.
    """
