"""What training, validation and sampling of a flow have to agree on: its record, and the scale of the latents."""

from typing import Literal

from pydantic import Field, model_validator

from data.records import Settings

LossWeight = Literal["plain", "velocity"]
Prediction = Literal["velocity", "data", "noise", "score"]
PathName = Literal["straight", "cosine", "vp"]
OdeSolver = Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp_2m", "unipc", "ddim"]


class TimeLaw(Settings):
    """The law of training times, as a map from uniform numbers (its quantile function).

    logit-normal: t = sigmoid(mean + std n), n ~ N(0, 1): the middle of the path, where noise and data are hardest to
    tell apart, is learnt most often. mode: heavy in the middle, but positive at the ends. (Esser et al. 2024, section
    3.1, where time runs the other way.) `shift` > 1 then moves times towards noise, for larger clips.
    """

    law: Literal["logit-normal", "uniform", "mode"] = "logit-normal"
    """TODO"""
    mean: float = 0.0
    """TODO"""
    std: float = Field(default=1.0, gt=0)
    """TODO"""
    mode_scale: float = Field(default=1.29, ge=-1, le=1.75)
    """Within these the law has a density."""
    shift: float = Field(default=1.0, gt=0)
    """TODO"""


class FlowSpec(Settings):
    """Every choice of the diffusion that training, validation and sampling have to share."""

    path: PathName = "straight"
    """TODO"""
    prediction: Literal["velocity", "data", "noise"] = "velocity"
    """TODO"""
    loss_weight: LossWeight = "plain"
    """TODO"""
    times: TimeLaw = TimeLaw()
    """TODO"""
    times_per: Literal["clip", "frame"] = "clip"
    """"frame": each latent frame at its own time (Chen et al. 2024)."""
    caption_drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples trained without their caption."""
    null_caption: str = ""
    """TODO"""

    @model_validator(mode="after")
    def _check(self) -> "FlowSpec":
        if self.prediction == "noise" and self.path != "vp":
            raise ValueError(
                f"prediction is 'noise', but on the {self.path} path sampling starts where x is nothing but noise, "
                "and its prediction says nothing of the data: use path 'vp', or prediction 'velocity' or 'data'"
            )
        return self
