"""Solvers: from noise to data along a field, over a grid of times.

    dx = v(x, t) dt                                        the probability flow (Holderrieth & Erives 2025, alg. 1-2)
    dx = [v + sigma_t² / 2 score] dt + sigma_t dW          any diffusion keeps the same marginals (SDE extension)

A solver is a plain function (field, x, grid) -> x. The state keeps the type of `x`, whatever the network computes
in; only the states of the last few steps are kept. A grid (n) moves all frames together; a schedule (n, frames)
gives each frame of a (b c frames h w) or (b 1 frames) state its own times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.field import Field
from models.flow.grid import check_grid
from models.flow.path import Coefficients, Path, expand, nonzero, posterior
from models.flow.spec import SolverName

BLOCK_STEPS = 64
FEW_STEPS = 16
Solver = Callable[[Field, Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]  # step number -> standard normal of the state's shape
Diffusion = Callable[[Tensor], Tensor]  # time -> sigma_t


class Counted:
    """A network or a function (x, t) that counts its calls."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:  # noqa: ANN401 - whatever the function takes
        """Call and count."""
        self.calls += 1
        return self._function(*inputs, **named)


@dataclass(frozen=True)
class Step:
    """One step of a grid: two times that broadcast from the left over the state, and their distance."""

    number: int
    """From 0."""
    t: Tensor
    t_next: Tensor
    h: Tensor
    """t_next - t, with axes that multiply the state; 0 for a frame that waits or has ended."""
    is_per_frame: bool


Advance = Callable[[Tensor, Step], Tensor]


def _steps(grid: Tensor, x: Tensor) -> Iterator[Step]:
    """The steps of a grid.

    Computed in blocks: the cost per step is small, and memory does not grow with their number.
    """
    check_grid(grid)
    if grid.ndim > 1 and (x.ndim < 3 or x.shape[2] != grid.shape[1]):
        raise ValueError(f"a schedule of {grid.shape[1]} frames does not fit a state of shape {tuple(x.shape)}")
    for start in range(0, len(grid) - 1, BLOCK_STEPS):
        block = grid[start : start + BLOCK_STEPS + 1].to(device=x.device, dtype=x.dtype)
        if grid.ndim == 1:
            times = block[:, None].expand(-1, len(x)).unbind()  # (b) each
            lengths = block.diff().unbind()
        else:
            times = block[:, None, None].expand(-1, len(x), 1, -1).unbind()  # (b 1 frames) each
            lengths = [expand(h[None, None], x) for h in block.diff(dim=0)]
        for number, (t, t_next, h) in enumerate(zip(times[:-1], times[1:], lengths, strict=True), start):
            yield Step(number, t, t_next, h, is_per_frame=grid.ndim > 1)


def integrate(advance: Advance, field: Field, x: Tensor, grid: Tensor) -> Tensor:
    """Take every step of the grid; a frame whose step has no length keeps its state."""
    for step in _steps(grid, x):
        moving = step.h > 0 if step.is_per_frame else None
        field.begin_step(moving)
        moved = advance(x, step)
        x = field.settle(moved if moving is None else torch.where(moving, moved, x), step.t_next)
    return x


def euler(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """First order, one network call per step."""

    def advance(x: Tensor, step: Step) -> Tensor:
        return x + step.h * field.velocity(x, step.t)

    return integrate(advance, field, x, grid)


def midpoint(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Second order, two calls: the slope half-way of an Euler step."""

    def advance(x: Tensor, step: Step) -> Tensor:
        half = x + step.h / 2 * field.velocity(x, step.t)
        return x + step.h * field.velocity(half, (step.t + step.t_next) / 2)

    return integrate(advance, field, x, grid)


def heun(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Second order, two calls: the slopes at both ends of an Euler step, averaged.

    Where the velocity is undefined at the end, for each frame by itself, the step is Euler's (Karras et al. 2022,
    algorithm 1).
    """

    def advance(x: Tensor, step: Step) -> Tensor:
        slope, undefined = field.velocity(x, step.t), field.undefined_at(step.t_next)
        if undefined is not None and bool(undefined.all()):
            return x + step.h * slope
        at_end = field.velocity(x + step.h * slope, step.t_next)
        if undefined is not None:
            at_end = torch.where(expand(undefined, x), slope, at_end)
        return x + step.h / 2 * (slope + at_end)

    return integrate(advance, field, x, grid)


def rk4(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Fourth order, four calls: the classical Runge-Kutta step.

    Where the velocity is undefined at the end, for each frame by itself, the step is that of `midpoint`.
    """

    def advance(x: Tensor, step: Step) -> Tensor:
        h, middle = step.h, (step.t + step.t_next) / 2
        k_1 = field.velocity(x, step.t)
        k_2 = field.velocity(x + h / 2 * k_1, middle)
        undefined = field.undefined_at(step.t_next)
        if undefined is not None and bool(undefined.all()):
            return x + h * k_2
        k_3 = field.velocity(x + h / 2 * k_2, middle)
        k_4 = field.velocity(x + h * k_3, step.t_next)
        moved = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        return moved if undefined is None else torch.where(expand(undefined, x), x + h * k_2, moved)

    return integrate(advance, field, x, grid)


def ab2(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Adams-Bashforth: second order at one call per step, with the slope of the step before.

    A frame's first step, which has none before it, is Euler's. So is its last one on a grid of fewer than `FEW_STEPS`
    steps: near t = 1 the velocity bends within a step, and what it was before says little about where it goes.
    """
    has_few_steps, last = int((grid.diff(dim=0) > 0).sum(0).max()) < FEW_STEPS, grid[-1].to(x)
    before: tuple[Tensor, Tensor] | None = None  # length of the step before, 0 where there was none, and its slope

    def advance(x: Tensor, step: Step) -> Tensor:
        nonlocal before
        slope = field.velocity(x, step.t)
        if before is None:
            before = (step.h, slope)
            return x + step.h * slope
        change = step.h / (2 * nonzero(before[0])) * (slope - before[1])
        if has_few_steps:
            change = torch.where(expand(step.t_next == last, x), 0.0, change)
        if step.is_per_frame:
            change = torch.where(before[0] > 0, change, 0.0)
            before = (_where_moving(step, step.h, before[0]), _where_moving(step, slope, before[1]))
        else:
            before = (step.h, slope)
        return x + step.h * (slope + change)

    return integrate(advance, field, x, grid)


def _where_moving(step: Step, new: Tensor, old: Tensor) -> Tensor:
    """What a multi-step method remembers: `new` for frames that move in this step, `old` for the others."""
    return torch.where(step.h > 0, new, old) if step.is_per_frame else new


def ddim(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """x_s = a_s data + b_s noise (Song et al. 2020, eq. 12, eta = 0): exact where the data prediction is constant."""
    return ddim_eta(field, x, grid, 0.0, lambda _: torch.zeros(()))


def ddim_eta(field: Field, x: Float[Tensor, "b ..."], grid: Tensor, eta: float, noise: Noise) -> Float[Tensor, "b ..."]:
    """DDIM with fresh noise: eta = 1 is ancestral (DDPM) sampling, eta = 0 the deterministic flow.

    Args:
        noise: gives the standard normal numbers of each step.
    """

    def advance(x: Tensor, step: Step) -> Tensor:
        at, to = field.path.at(step.t, x), field.path.at(step.t_next, x)
        data = field.data(x, step.t)
        old_noise = (x - at.a * data) / nonzero(at.b)
        if eta == 0:
            return to.a * data + to.b * old_noise
        variance = eta**2 * posterior(at, to).variance
        kept = (to.b**2 - variance).clamp_min(0).sqrt() * old_noise
        return to.a * data + kept + variance.sqrt() * noise(step.number).to(x)

    return integrate(advance, field, x, grid)


def _log_ratio(at: Coefficients) -> Tensor:
    return nonzero(at.a).log() - nonzero(at.b).log()


def _data_step(x: Tensor, at: Coefficients, to: Coefficients, data: Tensor) -> Tensor:
    """The exact step for a data prediction that does not change: DDIM's, also where b vanishes at its end."""
    return to.b / nonzero(at.b) * x + (to.a - to.b * at.a / nonzero(at.b)) * data


def dpmpp_2m(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """DPM-Solver++(2M): second order in log(a / b), one call per step (Lu et al. 2022, algorithm 2).

    A frame's first and last steps are of first order: before the first there is no other, and log(a / b) is infinite
    at t = 1.
    """
    before: tuple[Tensor, Tensor] | None = None  # length of the step before, 0 where there was none, and its data

    def advance(x: Tensor, step: Step) -> Tensor:
        nonlocal before
        at, to = field.path.at(step.t, x), field.path.at(step.t_next, x)
        data = field.data(x, step.t)
        length = _log_ratio(to) - _log_ratio(at)
        mean = data
        if before is not None:
            change = length / (2 * nonzero(before[0])) * (data - before[1])
            mean = torch.where((to.b > 0) & (before[0] > 0), data + change, data)
        if before is None:
            before = (_where_moving(step, length, torch.zeros_like(length)), data)
        else:
            before = (_where_moving(step, length, before[0]), _where_moving(step, data, before[1]))
        return _data_step(x, at, to, mean)

    return integrate(advance, field, x, grid)


@dataclass(frozen=True)
class _DataStep:
    """A step of UniPC: where it started, the data prediction there, and those of the step before it."""

    x: Tensor
    at: Coefficients
    to: Coefficients
    data: Tensor
    data_before: Tensor
    length_before: Tensor
    """0 where there was no step before."""

    @property
    def length(self) -> Tensor:
        return _log_ratio(self.to) - _log_ratio(self.at)

    def taken(self, data_after: Tensor | None = None) -> Tensor:
        """The state at the end: predicted, or with the data prediction there corrected."""
        h = self.length
        phi = torch.expm1(-h)
        r = -nonzero(self.length_before) / h
        past = (self.data_before - self.data) / r
        if data_after is None:
            first, second = torch.zeros_like(past), 0.5 * past
        else:
            b_1 = (phi / -h - 1) / phi
            b_2 = ((phi / -h - 1) / -h - 0.5) * 2 / phi
            on_after = (b_2 - r * b_1) / (1 - r)
            first = 0.5 * (data_after - self.data)
            second = (b_1 - on_after) * past + on_after * (data_after - self.data)
        differences = torch.where(self.length_before > 0, second, first)
        first_order = self.to.b / nonzero(self.at.b) * self.x - self.to.a * phi * self.data
        return first_order - self.to.a * phi * differences


def unipc(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """UniPC of order 2, data prediction, B(h) = e^h - 1 (Zhao et al. 2023, algorithms 1-2).

    Each network call is used twice, to correct the step before it and to predict the next: one call per step. A
    frame's last step is of first order, and is not corrected.
    """
    last: _DataStep | None = None

    def advance(x: Tensor, step: Step) -> Tensor:
        nonlocal last
        at, to = field.path.at(step.t, x), field.path.at(step.t_next, x)
        data = field.data(x, step.t)
        if last is None:
            data_before, length_before = data, torch.zeros_like(at.a)
        else:
            moved = (last.to.a > last.at.a) | (last.to.b < last.at.b)
            x = torch.where(moved & (last.to.b > 0), last.taken(data), x)
            data_before = torch.where(moved, last.data, last.data_before)
            length_before = torch.where(moved, last.length, last.length_before)
        last = _DataStep(x, at, to, data, data_before, length_before)
        return torch.where(to.b > 0, last.taken(), _data_step(x, at, to, data))

    return integrate(advance, field, x, grid)


def dopri5(field: Field, x: Float[Tensor, "b ..."], grid: Tensor, tolerance: float = 1e-6) -> Float[Tensor, "b ..."]:
    """Adaptive Dormand-Prince 5(4) through torchdiffeq, from the first time of the grid to the last.

    Where the velocity is undefined at t = 1, an Euler step of length sqrt(tolerance) ends there.
    """
    from torchdiffeq import odeint

    check_grid(grid)
    if grid.ndim > 1:
        raise ValueError("an adaptive solver takes one time for all frames: use a solver of fixed steps, such as heun")
    start, end = grid[[0, -1]].to(x)
    undefined = field.undefined_at(end)
    stop = end if undefined is None or not bool(undefined) else torch.maximum(end - tolerance**0.5, (start + end) / 2)

    def slope(t: Tensor, state: Tensor) -> Tensor:
        # The guess of the first step may lie beyond the end, for slopes that are small beside the state.
        return field.velocity(state, torch.minimum(t.to(state), stop).expand(len(state)))

    options = {"step_t": stop[None].double()}  # it does not step beyond it, where there is no path
    times = torch.stack([start, stop])
    x = cast(Tensor, odeint(slope, x, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options))[-1]
    if stop < end:
        x = x + (end - stop) * field.velocity(x, stop.expand(len(x)))
    return field.settle(x, end.expand(len(x)))


def solver_of(name: SolverName) -> Solver:
    """The solver of that name."""
    match name:
        case "euler":
            return euler
        case "midpoint":
            return midpoint
        case "heun":
            return heun
        case "rk4":
            return rk4
        case "ab2":
            return ab2
        case "dpmpp_2m":
            return dpmpp_2m
        case "unipc":
            return unipc
        case "ddim":
            return ddim
        case "dopri5":
            return dopri5
        case "flow_map":
            raise ValueError("the jumps of a flow map are those of its network: see flow_map.flow_map_solver")
        case "renoise":
            raise ValueError("it jumps as its network does: see distribution_matching.renoising_solver")
        case "jumps":
            raise ValueError("tokens jump, and follow no velocity: see discrete.sample_tokens")


def falling_diffusion(path: Path, sigma: float) -> Diffusion:
    """sigma sqrt(b / (a + b)): it falls with the noise level, so that steps need not be shorter for narrower data.

    On the straight path it is sigma sqrt(1 - t). A constant one is stable for steps of h < 4 variance / sigma² only.
    """

    def diffusion(t: Tensor) -> Tensor:
        at = path.coefficients(t)
        return sigma * (at.b / nonzero(at.a + at.b)).sqrt()

    return diffusion


def euler_maruyama(
    field: Field, x: Float[Tensor, "b ..."], grid: Tensor, diffusion: Diffusion, noise: Noise
) -> Float[Tensor, "b ..."]:
    """Steps of dx = [v + sigma² / 2 score] dt + sigma dW; each frame's last step is the flow's, without noise.

    Args:
        diffusion: sigma of a time, finite on the grid. noise: gives the standard normal numbers of each step.
    """
    final, last = len(grid) - 2, grid[-1].to(x)

    def advance(x: Tensor, step: Step) -> Tensor:
        velocity = field.velocity(x, step.t)
        if step.number == final:
            return x + step.h * velocity
        sigma = expand(diffusion(step.t), x)
        score = field.path.at(step.t, x).score(x, velocity)
        moved = x + step.h * (velocity + sigma**2 / 2 * score) + sigma * step.h.sqrt() * noise(step.number).to(x)
        if not step.is_per_frame:
            return moved
        return torch.where(expand(step.t_next == last, x), x + step.h * velocity, moved)

    return integrate(advance, field, x, grid)


def clamped(field: Field, known: Float[Tensor, "b ..."], mask: Tensor, x_0: Float[Tensor, "b ..."]) -> Field:
    """A field whose masked part follows the path to `known`, for inpainting by a network with one time for all frames.

    After every step the known part is replaced by its point on the path, whatever the solver made of it, so that it
    ends at `known`. The other part is not a sample of the conditional distribution: it sees the known part with as
    much noise as itself, and is biased towards the unconditional one. A network with times per frame conditions
    exactly: see `grid.starting_at`.

    Args:
        mask: 1 where the data are known, 0 elsewhere; broadcasts to the state. x_0: the noise the state starts from.
    """
    is_known = mask.bool()

    def settle(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(is_known, field.path.at(t, x).point(x_0, known), field.settle(x, t))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        held = torch.where(is_known, field.path.at(t, x).point(x_0, known), x)
        return torch.where(is_known, 0.0, field.velocity(held, t))

    return replace(field, function=velocity, prediction="velocity", open_end=field.has_open_end, settle=settle)


def reversed_in_time(field: Field) -> Field:
    """The field of the reversed flow: time s = 1 - t, velocity -v. Only its velocity is defined, not its path."""
    return Field(
        lambda x, s: -field.velocity(x, 1 - s),
        field.path,
        begin_step=field.begin_step,
        settle=lambda x, s: field.settle(x, 1 - s),
    )


def check_velocity_solver(solver: Solver) -> None:
    """Raise ValueError for a solver that uses more than the velocity: it cannot run backwards in time."""
    function = solver.func if isinstance(solver, partial) else solver
    if function in (euler_maruyama, ddim_eta):
        raise ValueError(f"expected a deterministic solver such as rk4 or dopri5, got {function.__name__}, an SDE's")
    if function in (ddim, dpmpp_2m, unipc):
        raise ValueError(f"expected a solver of velocities such as rk4 or dopri5, got {function.__name__}, of data")


def check_defined_at_end(field: Field, grid: Tensor) -> None:
    """Raise ValueError where a path that is followed backwards would start at an undefined velocity."""
    undefined = field.undefined_at(grid[-1])
    if undefined is not None and bool(undefined.any()):
        raise ValueError(
            "the velocity of this field is undefined at t = 1, where this starts: use a network that predicts "
            "velocities, or a grid that ends before 1"
        )


def invert(field: Field, x: Float[Tensor, "b ..."], grid: Tensor, solver: Solver = rk4) -> Float[Tensor, "b ..."]:
    """Data back to the noise it comes from, by a velocity solver over the grid run backwards.

    Raises:
        ValueError: the solver is stochastic, or follows data predictions; or the velocity is undefined at t = 1.
    """
    check_velocity_solver(solver)
    check_defined_at_end(field, grid)
    return solver(reversed_in_time(field), x, 1 - grid.flip(0))
