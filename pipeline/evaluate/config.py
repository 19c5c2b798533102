"""Settings of the evaluate stage."""

from pydantic import BaseModel, ConfigDict, Field


class EvaluateConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_reconstructions: int = Field(default=64, ge=1)  # held-out clips the autoencoder's figure is averaged over
    judge_clips: int = Field(default=192, ge=1)  # freshly drawn clips the judge is validated on
    prompts_per_combination: int = Field(default=6, ge=1)  # held-out combinations of the demo
