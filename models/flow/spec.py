"""The choices of a flow that training, validation and sampling have to share. Nothing here loads torch."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from data.records import AddedLater, Settings, Text

LossWeight = Literal["plain", "velocity"]
Prediction = Literal["velocity", "data", "noise", "score"]
PathName = Literal["straight", "cosine", "vp"]
OdeSolver = Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp_2m", "unipc", "ddim", "dopri5"]


class TimeLaw(Settings):
    """The distribution of training times t in [0, 1], from noise (0) to data (1).

    logit-normal: t = sigmoid(mean + std n) with n ~ N(0, 1). Most times are in the middle of the path, where noise and
    data are hardest to tell apart. mode: most times are in the middle, with a positive density at both ends (Esser et
    al. 2024, section 3.1, where time runs in the other direction). `shift` is applied after either.
    """

    law: Literal["logit-normal", "uniform", "mode"] = "logit-normal"
    """Name of the distribution."""
    mean: float = 0.0
    """Mean of the normal variable of `logit-normal`; negative values move times towards noise."""
    std: float = Field(default=1.0, gt=0)
    """Standard deviation of the normal variable of `logit-normal`."""
    mode_scale: float = Field(default=1.29, ge=-1, le=1.75)
    """Scale s of `mode`, in [-1, 1.75] (where it is a distribution); larger values prefer the middle of the path."""
    shift: float = Field(default=1.0, gt=0)
    """Time shift: values above 1 move times towards noise, which larger clips need; 1 leaves them as they are."""


class GivenFrames(Settings):
    """Shares of the training clips, in [0, 1], with other latent frames than the first given, at time 1, without loss.

    With `first_frame_share` they add up to at most 1. Images, which have one frame, are never given.
    """

    prefix: float = Field(default=0.0, ge=0, le=1)
    """Share with the first k frames given, k uniform between 1 and all but one: clips are extended, and windows of long
    clips follow one another."""
    ends: float = Field(default=0.0, ge=0, le=1)
    """Share with both ends given, around a gap of any length and place: what is between two images or clips is made.
    Of clips of two latent frames, the first is given."""
    subset: float = Field(default=0.0, ge=0, le=1)
    """Share with k frames given at any places, k uniform between 1 and all but one: also the last frame alone."""


class FlowSpec(Settings):
    """Every choice of the flow that training, validation and sampling have to share; saved in every checkpoint."""

    path: PathName = "straight"
    """Probability path from noise to data: `straight` (alpha = t), `cosine`, or `vp` (variance preserving)."""
    prediction: Literal["velocity", "data", "noise"] = "velocity"
    """What the network predicts; `noise` needs the path `vp`."""
    loss_weight: LossWeight = "plain"
    """Weight of the squared error: `plain` (1), or `velocity` (as if the velocity were predicted)."""
    times: TimeLaw = TimeLaw()
    """Distribution of the training times."""
    times_per: Literal["clip", "frame"] = "clip"
    """Whether all frames of a clip share a time, or each latent frame has its own (Chen et al. 2024)."""
    first_frame_share: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0, le=1)
    """Share of the training clips, in [0, 1], whose first latent frame is given as it is, at time 1, and has no loss:
    for image to video. Images, which have one frame, are never given."""
    given: Annotated[GivenFrames, AddedLater(GivenFrames())] = GivenFrames()
    """Training clips with other frames given: to extend clips, to interpolate, and for windows of long clips."""
    caption_dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("caption_dropout", "caption_drop"),
        serialization_alias="caption_drop",
    )
    """Share of the samples, in [0, 1), that are trained with the null caption, for classifier-free guidance."""
    null_caption: Text = ""
    """Caption that replaces a dropped one, and stands for "no caption" in guidance."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
        if isinstance(fields, dict) and {"caption_dropout", "caption_drop"} <= fields.keys():
            raise ValueError("caption_drop is the old name of caption_dropout: give caption_dropout only")
        return fields

    @property
    def given_share(self) -> float:
        """Share of the training clips of which any frames are given."""
        return self.first_frame_share + self.given.prefix + self.given.ends + self.given.subset

    @model_validator(mode="after")
    def _check(self) -> "FlowSpec":
        if self.given_share > 1 + 1e-9:
            raise ValueError(
                f"first_frame_share and the shares of given add up to {self.given_share:g}: at most all clips can have "
                "given frames, so lower them to 1 together"
            )
        if self.prediction == "noise" and self.path != "vp":
            raise ValueError(
                f"prediction is 'noise', but on the {self.path} path sampling starts where x is nothing but noise, "
                "and its prediction says nothing of the data: use path 'vp', or prediction 'velocity' or 'data'"
            )
        return self
