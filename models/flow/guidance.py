"""Guidance: make samples follow the condition more closely than the data does.

    v = v_uncond + scale (v_cond - v_uncond)        (Ho & Salimans 2022, eq. 6; Holderrieth & Erives 2025, section 4.2)

Scale 1 is no guidance. The rule is linear and its weights add up to one, so it is the same in velocity, data, noise and
score. The unconditional branch may be the null caption, a negative prompt, or another, weaker network (autoguidance,
Karras et al. 2024). The other rules here avoid the oversaturation of large scales.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

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
    moving: Tensor | None = None
    """Mask over the state of the frames that move in this step, of which alone statistics are taken; None: all."""

    def among_moving(self, x: Tensor) -> Tensor:
        """`x`, and 0 in the frames that do not move."""
        return x if self.moving is None else torch.where(self.moving, x, 0.0)

    def dot(self, x: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Inner product of each sample, with trailing axes of size 1 so that it broadcasts over the state."""
        return expand(self.among_moving(x * y).flatten(1).sum(1), x)

    def std(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Standard deviation of each sample, with trailing axes of size 1."""
        if self.moving is None:
            return expand(x.flatten(1).std(1), x)
        count = self.moving.expand_as(x).flatten(1).sum(1)
        mean = expand(self.among_moving(x).flatten(1).sum(1) / count, x)
        squares = self.among_moving((x - mean).square()).flatten(1).sum(1)
        return expand((squares / (count - 1).clamp(min=1)).sqrt(), x)


Combine = Callable[[Tensor, Tensor, PathState], Tensor]  # v_cond, v_uncond, state -> v
Branch = Literal["conditional", "unconditional"]


def _ignore() -> None:
    pass


@dataclass(frozen=True)
class Trajectory:
    """A guidance rule along one trajectory."""

    combine: Combine
    begin_step: Callable[[], None] = _ignore
    """Called at the start of every step of the solver."""


@dataclass(frozen=True)
class Guidance(ABC):
    """A guidance rule and its scale."""

    scale: float

    def enough(self, t: Tensor) -> Branch | None:  # noqa: ARG002 - rules that depend on time override this
        """The one branch that gives the guided velocity at these times, so that the other need not be computed."""
        return "conditional" if self.scale == 1 else None

    @abstractmethod
    def start(self) -> Trajectory:
        """The rule for one trajectory; it holds what is kept between steps."""


def guide(
    v_cond: Float[Tensor, "b ..."], v_uncond: Float[Tensor, "b ..."], scale: float | Tensor
) -> Float[Tensor, "b ..."]:
    """v_uncond + scale (v_cond - v_uncond)."""
    return v_uncond + scale * (v_cond - v_uncond)


@dataclass(frozen=True)
class Plain(Guidance):
    """Classifier-free guidance at one scale, optionally only in an interval of times (Kynkäänniemi et al. 2024).

    Frames with times of their own are guided by these.
    """

    t_min: float = 0.0
    t_max: float = 1.0

    @property
    def _is_everywhere(self) -> bool:
        return self.t_min <= 0.0 and self.t_max >= 1.0

    def _is_guided(self, t: Tensor) -> Tensor:
        return (t >= self.t_min) & (t <= self.t_max)

    def enough(self, t: Tensor) -> Branch | None:
        """The conditional branch at scale 1 and outside the interval, the other at scale 0."""
        if self.scale == 1 or not (self._is_everywhere or bool(self._is_guided(t).any())):
            return "conditional"
        everywhere = self._is_everywhere or bool(self._is_guided(t).all())
        return "unconditional" if self.scale == 0 and everywhere else None

    def start(self) -> Trajectory:
        """Stateless."""

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            if self._is_everywhere:
                return guide(v_cond, v_uncond, self.scale)
            scale = torch.where(self._is_guided(state.t), self.scale, 1.0)
            return guide(v_cond, v_uncond, expand(scale.to(v_cond), v_cond))

        return Trajectory(combine)


@dataclass(frozen=True)
class CfgZeroStar(Guidance):
    """CFG-Zero* (Fan et al. 2025, eq. 9 and section 4.2).

    The null velocity is scaled to fit the conditional one by least squares, and the velocity is zero at times before
    `zero_until`.
    """

    zero_until: float = 0.0

    def enough(self, t: Tensor) -> Branch | None:
        """The conditional branch at scale 1, once the velocity is not zero any more."""
        return super().enough(t) if self.zero_until <= 0 or bool((t >= self.zero_until).all()) else None

    def start(self) -> Trajectory:
        """Stateless."""

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            fit = state.dot(v_cond, v_uncond) / nonzero(state.dot(v_uncond, v_uncond))
            starts = expand((state.t >= self.zero_until).to(v_cond), v_cond)
            return starts * guide(v_cond, fit * v_uncond, self.scale)

        return Trajectory(combine)


@dataclass(frozen=True)
class Rescaled(Guidance):
    """The plain rule, rescaled towards the deviation of the conditional data prediction (Lin et al. 2024, section 3.4).

    phi = 0 is the plain rule, 1 the full correction.
    """

    phi: float = 0.7

    def start(self) -> Trajectory:
        """Stateless."""

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            velocity = guide(v_cond, v_uncond, self.scale)
            data = state.at.data(state.x, velocity)
            wanted, got = (state.std(d) for d in (state.at.data(state.x, v_cond), data))
            ratio = torch.where(got > 0, wanted / nonzero(got), 1.0)
            return velocity + state.at.velocity_change(self.phi * (ratio - 1) * data)

        return Trajectory(combine)


@dataclass(frozen=True)
class Apg(Guidance):
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1), on the data predictions.

    Of the difference between the branches, the component parallel to the conditional prediction, which mainly
    saturates colours, is multiplied by `eta`. The difference is averaged with `momentum` over the steps of the solver,
    by its first evaluation in each, and cut at the norm `threshold` (0: never).
    """

    eta: float = 0.0
    momentum: float = -0.5
    threshold: float = 0.0

    def start(self) -> Trajectory:
        """Keeps the running average of the difference."""
        average: Tensor | None = None  # up to the step before
        current: Tensor | None = None  # with the first evaluation of this step

        def begin_step() -> None:
            nonlocal average, current
            average, current = current, None

        def combine(v_cond: Tensor, v_uncond: Tensor, state: PathState) -> Tensor:
            nonlocal current
            data = state.at.data(state.x, v_cond)
            difference = data - state.at.data(state.x, v_uncond)
            if average is not None:
                difference = difference + self.momentum * average
            if current is None:
                current = state.among_moving(difference)  # a frame that waits has no average yet
            if self.threshold > 0:
                norm = state.dot(difference, difference).sqrt()
                difference = difference * (self.threshold / nonzero(norm)).clamp(max=1)
            along = state.dot(difference, data) / nonzero(state.dot(data, data)) * data
            change = (difference - along) + self.eta * along
            return v_cond + (self.scale - 1) * state.at.velocity_change(change)

        return Trajectory(combine, begin_step)


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
    trajectory = guidance.start()
    moving: Tensor | None = None
    is_stepped = False  # by a solver, which says which frames move

    def begin_step(mask: Tensor | None) -> None:
        nonlocal moving, is_stepped
        moving, is_stepped = mask, True
        trajectory.begin_step()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        enough = guidance.enough(t)
        if enough is not None:
            alone = Field(branches.cond if enough == "conditional" else branches.uncond, path, prediction)
            return alone.velocity(x, t)
        at = path.at(t, x)
        v_cond, v_uncond = (to_velocity(at, prediction, x, branch.to(x)) for branch in branches.together(x, t))
        mask = moving if is_stepped or t.ndim == 1 else expand(t < 1, x)
        return trajectory.combine(v_cond, v_uncond, PathState(x, t, at, mask))

    return Field(velocity, path, "velocity", open_end=prediction != "velocity", begin_step=begin_step)
