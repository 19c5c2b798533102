"""The choices of a flow that training, validation and sampling have to share. Nothing here loads torch."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from data.records import AddedLater, Settings, Text

LossWeight = Literal["plain", "velocity"]
Prediction = Literal["velocity", "data", "noise", "score"]
PathName = Literal["straight", "cosine", "vp", "polynomial"]
SampledPathName = Literal["straight", "cosine", "vp", "polynomial", "ve"]
SolverName = Literal[
    "euler", "midpoint", "heun", "rk4", "ab2", "dpmpp_2m", "unipc", "ddim", "dopri5", "flow_map", "renoise", "jumps"
]
JUMPING = ("flow_map", "renoise")
"""Solvers of networks that are told where they jump."""


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


class FlowMapSpec(Settings):
    """How a network learns the flow's map from any time to any later one (`models/flow/flow_map.py`)."""

    consistency_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the training clips, in (0, 1), whose jumps learn from two shorter jumps; the others learn the velocity.
    """
    consistency: Literal["split", "lagrangian"] = "split"
    """What a jump learns from: two jumps with a time between them that is equally likely anywhere (`split`), or a jump
    and a last short step along the velocity (`lagrangian`).
    """
    lagrangian_step: float = Field(default=1 / 64, gt=0, lt=1)
    """Length in time of that last step."""
    max_guidance: float = Field(default=1.0, ge=1)
    """Largest guidance scale that is distilled in: each clip is trained with a scale between 1 and it, which the
    network is told, so that sampling needs no second call. Above 1 it needs a teacher, whose guided velocity it learns.
    """


class DistributionMatchingSpec(Settings):
    """How a student learns to make clips of its teacher's distribution (`models/flow/distribution_matching.py`)."""

    calls: int = Field(default=4, ge=1, le=64)
    """Network calls that it is trained for; it can be sampled in a divisor of them as well."""
    shift: float = Field(default=1.0, gt=0)
    """Time shift of the calls, as `sample.shift`, with which it is then sampled."""
    critic_updates: int = Field(default=5, ge=1)
    """Updates of the critic for each of the student. Every step of the training is one of the critic, so that the
    student has as many as there are steps, divided by this number.
    """
    max_guidance: float = Field(default=1.0, ge=1)
    """Largest guidance scale that is distilled in: each clip is trained with a scale between 1 and it, which the
    network is told, so that sampling needs no second call.
    """

    def times_refusal(self, num_steps: int, shift: float, grid: str) -> str | None:
        """Why it cannot be sampled at these times, which have to be among those of its training; None: it can."""
        fitting = [str(number) for number in range(1, self.calls + 1) if self.calls % number == 0]
        if str(num_steps) not in fitting:
            return f"steps is {num_steps}, but the student is trained for {self.calls}: use {' or '.join(fitting)}"
        if shift != self.shift:
            return f"shift is {shift:g}, but the student is trained with {self.shift:g}: use that"
        if grid != "even":
            return f"grid is {grid!r}, but the student is trained at even times: use even"
        return None


class TokenFlowSpec(Settings):
    """How tokens of latents jump from a source to the data (`models/flow/discrete.py`)."""

    source: Literal["masked", "uniform"] = "masked"
    """What tokens are at time 0: `masked` all of them (masked diffusion), or `uniform`, any token with the same
    probability, so that tokens can change more than once.
    """
    power: float = Field(default=1.0, gt=0, le=10)
    """At time t, a share of t^`power` of the tokens comes from the data."""


class FlowSpec(Settings):
    """Every choice of the flow that training, validation and sampling have to share; saved in every checkpoint."""

    path: PathName = "straight"
    """Probability path from noise to data: `straight` (alpha = t), `cosine`, `vp` (variance preserving), or
    `polynomial` (alpha = t^`power`).
    """
    sigma_min: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0, lt=1)
    """Standard deviation of the noise that is left at the end of the path `straight` (Lipman et al. 2022, eq. 20)."""
    vp_betas: Annotated[tuple[float, float], AddedLater((0.1, 20.0))] = (0.1, 20.0)
    """Rates of noise of the path `vp` at the data and at the noise, which rise linearly (Song et al. 2021, eq. 32)."""
    power: Annotated[float, AddedLater(2.0)] = Field(default=2.0, ge=1)
    """Power of time of the path `polynomial`: above 1 it leaves the noise slowly."""
    prediction: Prediction = "velocity"
    """What the network predicts: `noise` and `score` need the path `vp`, and `score` the loss weight `velocity`."""
    loss_weight: LossWeight = "plain"
    """Weight of the squared error: `plain` (1), or `velocity` (as if the velocity were predicted). Near the data, where
    a weight or a target grows without bound, it is what it is at a noise level of 0.05.
    """
    times: TimeLaw = TimeLaw()
    """Distribution of the training times."""
    times_per: Literal["clip", "frame"] = "clip"
    """Whether all frames of a clip share a time, or each latent frame has its own (Chen et al. 2024)."""
    first_frame_share: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0, le=1)
    """Share of the training clips, in [0, 1], whose first latent frame is given as it is, at time 1, and has no loss:
    for image to video. Images, which have one frame, are never given."""
    given: Annotated[GivenFrames, AddedLater(GivenFrames())] = GivenFrames()
    """Training clips with other frames given: to extend clips, to interpolate, and for windows of long clips."""
    noise: Annotated[Literal["drawn", "paired"], AddedLater("drawn")] = "drawn"
    """Noise of the training clips: `drawn` for each, or `paired`: what each clip, a sampled one, was made from (reflow,
    Liu et al. 2022, algorithm 1). Between the pairs of a flow paths hardly cross, and few steps follow them.
    """
    coupled_clips: Annotated[int, AddedLater(1)] = Field(default=1, ge=1)
    """Consecutive training clips among which noise is exchanged so that it lies nearest to their latents (minibatch
    optimal transport, also called immiscible noise). Only clips of the same caption and frame rate, or without caption,
    exchange noise, and none with given frames: sampling starts from noise that knows nothing of them. 1: no exchange.
    """
    map: Annotated[FlowMapSpec | None, AddedLater(None)] = None
    """Train a flow map, for clips in 1 to 8 network calls: the network is told a second time, and `dit.model.flow_map`
    has to be true. With `dit.train.start_from` its network is the teacher, whose velocities are learned. None: a flow.
    """
    matching: Annotated[DistributionMatchingSpec | None, AddedLater(None)] = None
    """A student that learned its teacher's distribution. The section `distill` sets it, with
    `kind: distribution_matching`; it is not for `dit`.
    """
    tokens: Annotated[TokenFlowSpec | None, AddedLater(None)] = None
    """Train a network that predicts tokens in place of latents, by discrete flow matching: it needs the section
    `tokenizer`, and `sample.solver: jumps`. The choices of a flow of latents are then not for it. None: latents.
    """
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
    def few_steps(self) -> FlowMapSpec | DistributionMatchingSpec | None:
        """How its network, which is told where jumps end, learned to jump; None: it does not."""
        return self.map or self.matching

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
        if self.prediction in ("noise", "score") and self.path != "vp":
            raise ValueError(
                f"prediction is {self.prediction!r}, but on the {self.path} path sampling starts where x is nothing "
                "but noise, and its prediction says nothing of the data: use path 'vp', or prediction 'velocity' or "
                "'data'"
            )
        if self.prediction == "score" and self.loss_weight != "velocity":
            raise ValueError(
                "prediction is 'score', whose error grows without bound towards the data: set loss_weight to velocity"
            )
        return self

    @model_validator(mode="after")
    def _check_noise(self) -> "FlowSpec":
        if self.noise == "paired" and self.coupled_clips > 1:
            raise ValueError(
                f"noise is 'paired', so that every clip has its own, but coupled_clips is {self.coupled_clips}: set it "
                "to 1"
            )
        if self.noise == "paired" and self.given_share > 0:
            raise ValueError(
                "noise is 'paired', with clips that are made of noise alone, but frames are given: set "
                "first_frame_share and the shares of given to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_few_steps(self) -> "FlowSpec":
        if self.few_steps is None:
            return self
        named = "map" if self.matching is None else "matching"
        if self.map is not None and self.matching is not None:
            raise ValueError("map and matching are both set, but a student learns in one way: leave one of them out")
        if self.prediction != "velocity":
            raise ValueError(
                f"{named} is set, whose network predicts velocities, but prediction is {self.prediction!r}"
            )
        if self.path == "vp":
            raise ValueError(
                f"{named} is set, but on the path vp the velocity at the end is infinite: use another path"
            )
        if self.times_per == "frame":
            raise ValueError(
                f"{named} is set, and jumps are those of whole clips, but times_per is 'frame': set it to clip"
            )
        if self.matching is not None and self.sigma_min > 0:
            raise ValueError(
                f"matching is set, whose student jumps to the data, but sigma_min is {self.sigma_min:g}, and noise is "
                "left there: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> "FlowSpec":
        if self.tokens is None:
            return self
        kept = ("times", "tokens", "caption_dropout", "null_caption")
        for name, field in type(self).model_fields.items():
            if name not in kept and getattr(self, name) != field.default:
                raise ValueError(
                    f"tokens is set, whose states jump, but {name} is of a flow of latents: leave {name} out"
                )
        return self

    @model_validator(mode="after")
    def _check_path(self) -> "FlowSpec":
        for name, path in (("sigma_min", "straight"), ("vp_betas", "vp"), ("power", "polynomial")):
            if self.path != path and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of the path {path}, and path is {self.path}: leave {name} out")
        low, high = self.vp_betas
        if not 0 < low <= high:
            raise ValueError(f"vp_betas is {low:g} to {high:g}: expected two rates above 0, the smaller one first")
        return self
