"""Settings of the evaluate stage."""

from pydantic import Field

from data.records import Settings


class EvaluateConfig(Settings):
    """What is measured."""

    max_reconstructions: int = Field(default=64, ge=1)
    """Held-out clips the autoencoder's figure is averaged over."""
    judge_clips: int = Field(default=192, ge=1)
    """Freshly drawn clips the judge is validated on."""
    prompts_per_combination: int = Field(default=6, ge=1)
    """Held-out combinations of the demo."""
