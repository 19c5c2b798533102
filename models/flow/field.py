"""A network as a flow: velocity, data, noise and score from whichever of them it was trained to predict.

The four are related by the linear map of `path` (Lipman et al. 2022, eq. 15;
Holderrieth & Erives 2025, on training targets).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.path import Coefficients, Path, expand, nonzero
from models.flow.spec import Prediction

Function = Callable[[Tensor, Tensor], Tensor]


def check_prediction(prediction: str) -> None:
    """Raise ValueError unless `prediction` is one of the four."""
    if prediction not in get_args(Prediction):
        raise ValueError(f"unknown prediction {prediction!r}: expected one of {', '.join(get_args(Prediction))}")


def from_velocity(at: Coefficients, prediction: Prediction, x_t: Tensor, velocity: Tensor) -> Tensor:
    """The value of `prediction` at x_t where the velocity is `velocity`."""
    check_prediction(prediction)
    if prediction == "data":
        return at.data(x_t, velocity)
    if prediction == "noise":
        return at.noise(x_t, velocity)
    return at.score(x_t, velocity) if prediction == "score" else velocity


def to_velocity(at: Coefficients, prediction: Prediction, x_t: Tensor, predicted: Tensor) -> Tensor:
    """The velocity at x_t where the network predicts `predicted`; the inverse of `from_velocity`."""
    check_prediction(prediction)
    if prediction == "data":
        return at.velocity_of_data(x_t, predicted)
    if prediction == "noise":
        return at.velocity_of_noise(x_t, predicted)
    return at.velocity_of_score(x_t, predicted) if prediction == "score" else predicted


SMALLEST_NOISE = 0.05
"""Noise level b below which no loss weighs an error more than there (as Li & He 2025, section 4.3, for 1 - t)."""


def velocity_weight(at: Coefficients, prediction: Prediction) -> Tensor:
    """(dv / d prediction)²: a squared error of this prediction, times the weight, is the velocity's squared error.

    Near the data factors of 1 / b are bounded by those at `SMALLEST_NOISE`, also for a velocity whose b' is infinite:
    without a bound the loss has no mean where training times come near 1.
    """
    check_prediction(prediction)
    b = at.b.clamp(min=SMALLEST_NOISE)
    scale = torch.where(at.scale == at.b, b, at.scale)
    determinant = at.scaled_determinant / scale
    if prediction == "data":
        return (determinant / b) ** 2
    if prediction == "noise":
        return (determinant / nonzero(at.a)) ** 2
    return (determinant * at.b / nonzero(at.a)) ** 2 if prediction == "score" else (at.scale / scale) ** 2


def _ignore(_: Tensor | None) -> None:
    pass


def _keep(x: Tensor, _: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Field:
    """A function (x_t, t) that predicts one of the four on a path, and the other three from it.

    The state and all arithmetic here have the type of `x`; the function may compute in another type.
    """

    function: Function
    path: Path
    prediction: Prediction = "velocity"
    open_end: bool = False
    """The velocity is undefined at t = 1, although it is what the function gives."""
    begin_step: Callable[[Tensor | None], None] = _ignore
    """Solvers call it at the start of every step, with the mask over the state of the frames that move in it; None:
    all do.
    """
    settle: Callable[[Tensor, Tensor], Tensor] = _keep
    """Solvers apply it to the state at the end of every step, with the time there."""

    def __post_init__(self) -> None:
        check_prediction(self.prediction)

    def predict(self, x: Float[Tensor, "b ..."], t: Tensor) -> Float[Tensor, "b ..."]:
        """The function's prediction, in the type of `x`."""
        return self.function(x, t).to(x)

    def velocity(self, x: Float[Tensor, "b ..."], t: Tensor) -> Float[Tensor, "b ..."]:
        """The velocity dx/dt of the probability flow."""
        predicted = self.predict(x, t)
        if self.prediction == "velocity":
            return predicted
        return to_velocity(self.path.at(t, x), self.prediction, x, predicted)

    @property
    def has_open_end(self) -> bool:
        """Whether the velocity is undefined at t = 1, where a data prediction gives 0 / 0."""
        return self.open_end or self.prediction != "velocity"

    def undefined_at(self, t: Tensor) -> Tensor | None:
        """At which of the times `t` the velocity is undefined; None: it never is."""
        return t == 1 if self.has_open_end else None

    def data(self, x: Float[Tensor, "b ..."], t: Tensor) -> Float[Tensor, "b ..."]:
        """E[x_1 | x_t = x], the denoised sample."""
        return self._as("data", x, t)

    def noise(self, x: Float[Tensor, "b ..."], t: Tensor) -> Float[Tensor, "b ..."]:
        """E[x_0 | x_t = x]."""
        return self._as("noise", x, t)

    def score(self, x: Float[Tensor, "b ..."], t: Tensor) -> Float[Tensor, "b ..."]:
        """Gradient of log p_t(x), for a standard normal source."""
        return self._as("score", x, t)

    def _as(self, wanted: Prediction, x: Tensor, t: Tensor) -> Tensor:
        predicted = self.predict(x, t)
        if wanted == self.prediction:
            return predicted
        at = self.path.at(t, x)
        if {wanted, self.prediction} == {"noise", "score"}:  # -x_0 / b, more exact than through the velocity
            return -predicted / nonzero(at.b) if wanted == "score" else -predicted * at.b
        return from_velocity(at, wanted, x, to_velocity(at, self.prediction, x, predicted))

    def on(self, path: Path) -> "Field":
        """The same network on another path, after training.

        Two paths meet where their signal-to-noise ratios agree, up to a factor on x (Karras et al. 2022,
        section 4): x on the new path at time t is x a_old(t') / a_new(t) on the old one.
        """

        def data(x: Tensor, t: Tensor) -> Tensor:
            new_t = t.to(x)
            old_t = self.path.time_of_log_ratio(path.log_ratio(new_t))
            old, new = self.path.coefficients(old_t), path.coefficients(new_t)
            # the larger of the two coefficients never vanishes
            by_data = old.a / nonzero(new.a)
            by_noise = old.b / nonzero(new.b)
            factor = torch.where(new.a >= new.b, by_data, by_noise)
            return self.data(x * expand(factor, x), old_t)

        if self.settle is not _keep:
            raise ValueError("the known part of a clamped field follows its own path: change the path before clamping")
        return Field(data, path, "data", begin_step=self.begin_step)
