"""What training, validation and sampling of a flow have to agree on: its record, and the scale of the latents."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from data.shards import LatentStats
from models.flow.objective import LossWeight, TimeLaw
from models.flow.path import PathName


class FlowSpec(BaseModel):
    """Every choice of the diffusion that training, validation and sampling have to share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: PathName = "straight"
    prediction: Literal["velocity", "data", "noise"] = "velocity"
    loss_weight: LossWeight = "plain"
    times: TimeLaw = TimeLaw()
    times_per: Literal["clip", "frame"] = "clip"  # "frame": each latent frame at its own time (Chen et al. 2024)
    caption_drop: float = Field(default=0.1, ge=0, lt=1)  # share of samples trained without their caption
    null_caption: str = ""

    @model_validator(mode="after")
    def _check(self) -> "FlowSpec":
        if self.prediction == "noise" and self.path != "vp":
            raise ValueError(
                f"prediction is 'noise', but on the {self.path} path sampling starts where x is nothing but noise, "
                "and its prediction says nothing of the data: use path 'vp', or prediction 'velocity' or 'data'"
            )
        return self


def normalize(latents: Float[Tensor, "b c t h w"], stats: LatentStats) -> Float[Tensor, "b c t h w"]:
    """Zero mean and unit variance per channel."""
    mean, std = (torch.tensor(values, device=latents.device)[:, None, None, None] for values in (stats.mean, stats.std))
    return (latents - mean) / std


def denormalize(latents: Float[Tensor, "b c t h w"], stats: LatentStats) -> Float[Tensor, "b c t h w"]:
    """The inverse of `normalize`."""
    mean, std = (torch.tensor(values, device=latents.device)[:, None, None, None] for values in (stats.mean, stats.std))
    return latents * std + mean
