"""Settings of the sample stage."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.flow.spec import OdeSolver
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST, Weights

GuidanceRule = Literal["plain", "cfg-zero-star", "apg", "rescaled"]
NOT_OF_A_CLIP = {"batch", "text_encoder"}  # settings that change no clip
Schedule = Literal["full_sequence", "pyramid", "autoregressive"]


class SampleConfig(BaseModel):
    """How clips are sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    solver: OdeSolver = "heun"
    steps: int = Field(default=20, ge=1)
    shift: float = Field(default=1.0, gt=0)
    bucket: str | None = None  # shape of the clips, such as 17x64x64@8; None: that with most training clips
    schedule: Schedule = "full_sequence"  # others need a DiT trained with flow.times_per: frame
    guidance_scale: float = 3.0
    guidance: GuidanceRule = "plain"
    negative_prompt: str | None = None  # takes the null caption's place
    sde_sigma: float = Field(default=0.0, ge=0)  # above 0: noise of this strength per unit of time, instead of `solver`
    batch: int = Field(default=24, ge=1)
    weights: Weights = FIRST  # or "master", those as trained, or the name of an average
    precision: Precision = "auto"
    text_encoder: Path | None = None  # where the one that the DiT was trained with is now; None: where it was then
