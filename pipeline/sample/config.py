"""Settings of the sample stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data.records import Runtime, Settings
from models.flow.spec import OdeSolver
from pipeline.run.config import Precision
from pipeline.run.weight_names import FIRST, Weights

GuidanceRule = Literal["plain", "cfg-zero-star", "apg", "rescaled"]
Schedule = Literal["full_sequence", "pyramid", "autoregressive"]


class SampleConfig(Settings):
    """How clips are sampled."""

    solver: OdeSolver = "heun"
    """TODO"""
    steps: int = Field(default=20, ge=1)
    """TODO"""
    shift: float = Field(default=1.0, gt=0)
    """TODO"""
    bucket: str | None = None
    """Shape of the clips, such as 17x64x64@8; None: that with most training clips."""
    schedule: Schedule = "full_sequence"
    """Others need a DiT trained with flow.times_per: frame."""
    guidance_scale: float = 3.0
    """TODO"""
    guidance: GuidanceRule = "plain"
    """TODO"""
    negative_prompt: str | None = None
    """Takes the null caption's place."""
    sde_sigma: float = Field(default=0.0, ge=0)
    """Above 0: noise of this strength per unit of time, instead of `solver`."""
    batch: Annotated[int, Runtime] = Field(default=24, ge=1)
    """TODO"""
    weights: Weights = FIRST
    """Or "master", those as trained, or the name of an average."""
    precision: Precision = "auto"
    """TODO"""
    text_encoder: Annotated[Path | None, Runtime] = None
    """Where the one that the DiT was trained with is now; None: where it was then."""


class SampleSection(SampleConfig):
    """How clips are sampled, and which."""

    prompts: Path | None = None
    """One a line, or JSONL; None: held-out combinations, or captions of the data."""
    compare_unguided: bool = False
    """Also make every clip at guidance scale 1."""

    def sampler(self) -> SampleConfig:
        """The part a sampler needs."""
        return SampleConfig(**self.model_dump(exclude={"prompts", "compare_unguided"}))

    @property
    def guidance_scales(self) -> list[float]:
        """The scales to sample at."""
        return sorted({self.guidance_scale, 1.0}, reverse=True) if self.compare_unguided else [self.guidance_scale]
