"""Time grids: the times of a solver from noise (0) to data (1), and schedules that differ by frame."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.path import Path

SCHEDULER_STEPS = 1000  # noise levels that the schedulers of diffusers are trained with


def shift_time(t: Float[Tensor, "*n"], shift: float) -> Float[Tensor, "*n"]:
    """Add log(shift) to the logit of the noise level 1 - t: t / (t + shift (1 - t)) (Esser et al. 2024, eq. 23).

    Shift 1 changes nothing, shift > 1 moves towards the noise, and shifting by a, then b, is shifting by a b.
    """
    return t / (t + shift * (1 - t))


def check_grid(grid: Tensor) -> None:
    """Raise ValueError unless `grid` (n) rises strictly, or `grid` (n, frames) rises for every frame, within [0, 1]."""
    good = grid.ndim in (1, 2) and len(grid) >= 2 and bool(((grid >= 0) & (grid <= 1)).all())
    steps = grid.diff(dim=0)
    if not good or bool((steps <= 0).any() if grid.ndim == 1 else (steps < 0).any() or (steps == 0).all(1).any()):
        raise ValueError(f"expected a strictly increasing grid of at least two times in [0, 1], got {grid.tolist()}")


def _steps(num_steps: int) -> Float[Tensor, " n"]:
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {num_steps}")
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)


def uniform_grid(num_steps: int, shift: float = 1.0) -> Float[Tensor, " n"]:
    """num_steps + 1 times from 0 to 1, float64. `shift` > 1 takes smaller steps near the noise, as `TimeLaw` does.

    Raises:
        ValueError: less than one step.
    """
    return shift_time(_steps(num_steps), shift)


def euler_scheduler_grid(num_steps: int, shift: float = 1.0) -> Float[Tensor, " n"]:
    """The times of FlowMatchEulerDiscreteScheduler of diffusers: num_steps + 1 times from 0 to 1, float64.

    Its noise levels are even from 1 to the smallest one that it was trained with, 1 / 1000, which has the shift
    already; then all are shifted, and 0 follows.

    Raises:
        ValueError: less than one step.
    """
    largest = float(shift_time(torch.tensor(1 - 1 / SCHEDULER_STEPS, dtype=torch.float64), shift))
    even = torch.linspace(0, largest, len(_steps(num_steps)) - 1, dtype=torch.float64)
    return torch.cat([shift_time(even, shift), even.new_ones(1)])


def unipc_scheduler_grid(num_steps: int, shift: float = 1.0) -> Float[Tensor, " n"]:
    """The times of UniPCMultistepScheduler of diffusers with flow noise levels: num_steps + 1 times to 1, float64.

    Its noise levels are even from 1 down to almost 1 / 1000, then shifted; the first is less than 1 by 1e-6.

    Raises:
        ValueError: less than one step.
    """
    even = torch.linspace(0, 1 - 1 / SCHEDULER_STEPS, len(_steps(num_steps)), dtype=torch.float64)[:-1]
    return torch.cat([even.new_full((1,), 1e-6), shift_time(even[1:], shift), even.new_ones(1)])


def whole_thousandths(t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Times whose noise level is rounded down to thousandths, as a network sees them under that scheduler."""
    # The noise levels of float32 times may lie below a thousandth that they stand for.
    return 1 - (SCHEDULER_STEPS * (1 - t) + 1e-4).floor() / SCHEDULER_STEPS


def linear_quadratic_grid(num_steps: int, num_linear: int, linear_until: float = 0.025) -> Float[Tensor, " n"]:
    """`num_linear` equal steps up to `linear_until`, then steps that grow linearly (Polyak et al. 2024, section 3.4.2).

    Raises:
        ValueError: not 0 < num_linear < num_steps.
    """
    if not 0 < num_linear < num_steps:
        raise ValueError(f"expected between 1 and {num_steps - 1} linear steps, got {num_linear}")
    pitch, rest = linear_until / num_linear, num_steps - num_linear
    k = torch.arange(1, rest + 1, dtype=torch.float64)
    bend = (1 - linear_until - pitch * rest) / rest**2  # the slope is continuous, and the last time is 1
    return torch.cat(
        [pitch * torch.arange(num_linear + 1, dtype=torch.float64), linear_until + pitch * k + bend * k**2]
    )


def karras_grid(
    num_steps: int, path: Path, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " n"]:
    """Noise-to-data ratios b / a spaced evenly in their rho-th root, and 0 at the end (Karras et al. 2022, eq. 5).

    Between the ratios that the path has: where it starts below `sigma_max` or ends above `sigma_min`, its own ends.

    Raises:
        ValueError: the grid has fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {num_steps}")
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    largest, smallest = (-path.log_ratio(ends)).exp().tolist()
    starts_at_0, ends_above = sigma_max >= largest, smallest >= sigma_min
    ramp = torch.linspace(0, 1, num_steps + ends_above, dtype=torch.float64)
    low, high = max(sigma_min, smallest) ** (1 / rho), min(sigma_max, largest) ** (1 / rho)
    times = path.time_of_log_ratio(-((high + ramp * (low - high)) ** rho).log())
    times = torch.cat([times[:num_steps], ends[1:]])
    return torch.cat([ends[:1], times[1:]]) if starts_at_0 else times


def full_sequence(grid: Float[Tensor, " n"], num_frames: int) -> Float[Tensor, "n frames"]:
    """A schedule with all frames at the same time."""
    return grid[:, None].expand(-1, num_frames)


def pyramid(grid: Float[Tensor, " n"], num_frames: int, delay: int = 1) -> Float[Tensor, "m frames"]:
    """Each frame starts `delay` steps after the one before it (Chen et al. 2024, "Diffusion Forcing", section 3.3)."""
    last = len(grid) - 1
    row = torch.arange(last + delay * (num_frames - 1) + 1)[:, None]
    return grid[(row - delay * torch.arange(num_frames)).clamp(0, last)]


def autoregressive(grid: Float[Tensor, " n"], num_frames: int) -> Float[Tensor, "m frames"]:
    """One frame after the other: a pyramid whose delay is the whole grid."""
    return pyramid(grid, num_frames, delay=len(grid) - 1)


def starting_at(schedule: Float[Tensor, "n frames"], starts: Float[Tensor, " frames"]) -> Float[Tensor, "m frames"]:
    """A schedule in which each frame starts at a time of its own: it waits there until the schedule passes that time.

    Args:
        starts: times in [0, 1]; a frame that starts at 1 is given.

    Raises:
        ValueError: all frames start at 1.
    """
    starts = starts.to(schedule)
    if bool((starts == 1).all()):
        raise ValueError("all frames are known: nothing is left to sample")
    changed = schedule.maximum(starts)
    moves = (changed.diff(dim=0) > 0).any(1)  # in the other rows only frames would have moved that have not started
    return changed[torch.cat([moves.new_ones(1), moves])]
