"""Guidance: make samples follow the condition more closely than the data does.

    v = v_uncond + scale (v_cond - v_uncond)        (Ho & Salimans 2022, eq. 6; Holderrieth & Erives 2025, section 4.2)

Scale 1 is no guidance. The rule is linear and its weights add up to one, so it is the same in velocity, data, noise and
score. The unconditional branch may be the null caption, a negative prompt, or another, weaker network (autoguidance,
Karras et al. 2024). The other rules here avoid the oversaturation of large scales.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.field import Field, to_velocity
from models.flow.path import Coefficients, Path, expand, nonzero
from models.flow.spec import Prediction

T = TypeVar("T")


@dataclass(frozen=True)
class PathState:
    """The state, its time and the path's coefficients there, for which two velocities are combined."""

    x: Tensor
    t: Tensor
    at: Coefficients


Combine = Callable[[Tensor, Tensor, PathState], Tensor]  # v_cond, v_uncond, state -> v


@dataclass(frozen=True)
class Guidance(ABC):
    """A guidance rule and its scale."""

    scale: float

    def scale_at(self, t: Tensor) -> float:  # noqa: ARG002 - rules that depend on time override this
        """The scale at a time: at 1 only the conditional branch is computed, at 0 only the other."""
        return self.scale

    @abstractmethod
    def start(self) -> Combine:
        """The rule for one trajectory; the returned function holds any state that is kept between steps."""


def guide(v_cond: Float[Tensor, "b ..."], v_uncond: Float[Tensor, "b ..."], scale: float) -> Float[Tensor, "b ..."]:
    """v_uncond + scale (v_cond - v_uncond)."""
    return v_uncond + scale * (v_cond - v_uncond)


def dot(x: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Inner product of each sample, with trailing axes of size 1 so that it broadcasts over `x`."""
    return expand((x * y).flatten(1).sum(1), x)


@dataclass(frozen=True)
class Plain(Guidance):
    """Classifier-free guidance at one scale, optionally only in an interval of times (Kynkäänniemi et al. 2024)."""

    t_min: float = 0.0
    t_max: float = 1.0

    def scale_at(self, t: Tensor) -> float:
        """The scale inside the interval, 1 outside."""
        if self.t_min <= 0.0 and self.t_max >= 1.0:
            return self.scale
        now = t.flatten()[0].item()
        return self.scale if self.t_min <= now <= self.t_max else 1.0

    def start(self) -> Combine:
        """Stateless."""
        return lambda v_cond, v_uncond, _: guide(v_cond, v_uncond, self.scale)


@dataclass(frozen=True)
class CfgZeroStar(Guidance):
    """CFG-Zero* (Fan et al. 2025, eq. 9 and section 4.2).

    The null velocity is scaled to fit the conditional one by least squares, and the velocity is zero at times before
    `zero_until`.
    """

    zero_until: float = 0.0

    def start(self) -> Combine:
        """Stateless."""

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            fit = dot(v_cond, v_uncond) / nonzero(dot(v_uncond, v_uncond))
            moves = expand((state.t >= self.zero_until).to(v_cond), v_cond)
            return moves * guide(v_cond, fit * v_uncond, self.scale)

        return combine


@dataclass(frozen=True)
class Rescaled(Guidance):
    """The plain rule, rescaled towards the deviation of the conditional data prediction (Lin et al. 2024, section 3.4).

    phi = 0 is the plain rule, 1 the full correction.
    """

    phi: float = 0.7

    def start(self) -> Combine:
        """Stateless."""

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            velocity = guide(v_cond, v_uncond, self.scale)
            data = state.at.data(state.x, velocity)
            wanted, got = (d.flatten(1).std(1) for d in (state.at.data(state.x, v_cond), data))
            return velocity + state.at.velocity_change(self.phi * expand(wanted / nonzero(got) - 1, data) * data)

        return combine


@dataclass(frozen=True)
class Apg(Guidance):
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1), on the data predictions.

    Of the difference between the branches, the component parallel to the conditional prediction, which mainly
    saturates colours, is multiplied by `eta`. The difference is averaged with `momentum` over steps and cut at the
    norm `threshold` (0: never).
    """

    eta: float = 0.0
    momentum: float = -0.5
    threshold: float = 0.0

    def start(self) -> Combine:
        """Keeps the running average of the difference."""
        running: list[Tensor] = []

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            data = state.at.data(state.x, v_cond)
            difference = data - state.at.data(state.x, v_uncond)
            if running:
                difference = difference + self.momentum * running.pop()
            running.append(difference)
            if self.threshold > 0:
                difference = difference * (self.threshold / nonzero(dot(difference, difference).sqrt())).clamp(max=1)
            along = dot(difference, data) / nonzero(dot(data, data)) * data
            change = (difference - along) + self.eta * along
            return v_cond + (self.scale - 1) * state.at.velocity_change(change)

        return combine


Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Branches:
    """The conditional and the unconditional prediction, alone or together.

    `both` may make one network call of a double batch; without it the two are called one after the other, which
    takes half the memory.
    """

    cond: Predict
    uncond: Predict
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def together(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both predictions."""
        return (self.cond(x, t), self.uncond(x, t)) if self.both is None else self.both(x, t)


def batched(network: Callable[[Tensor, Tensor, T], Tensor], cond: T, uncond: T, both: T) -> Branches:
    """One network under two conditions; `both` is the batch of the one followed by the other."""

    def together(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v_cond, v_uncond = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return v_cond, v_uncond

    return Branches(lambda x, t: network(x, t, cond), lambda x, t: network(x, t, uncond), together)


def guided(branches: Branches, path: Path, prediction: Prediction, guidance: Guidance) -> Field:
    """The guided velocity as a field, for one trajectory."""
    combine = guidance.start()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        scale = guidance.scale_at(t)
        if scale in (0.0, 1.0):
            alone = Field(branches.cond if scale == 1.0 else branches.uncond, path, prediction)
            return alone.velocity(x, t)
        at = path.at(t, x)
        v_cond, v_uncond = (to_velocity(at, prediction, x, branch.to(x)) for branch in branches.together(x, t))
        return combine(v_cond, v_uncond, PathState(x, t, at))

    return Field(velocity, path, "velocity", open_end=prediction != "velocity")
