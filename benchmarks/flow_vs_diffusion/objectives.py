"""What is compared: four objectives, and the settings among which each may choose.

Noise levels are ratios b / a of noise to data. Every path reaches every one of them at a time of its own, so that
training times and grids that were made for one path mean the same on the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flow.field import Field
from models.flow.grid import karras_grid, shift_time, uniform_grid
from models.flow.objective import training_times
from models.flow.path import CosinePath, Path, StraightPath, VarianceExplodingPath, VariancePreservingPath
from models.flow.spec import Prediction, TimeLaw
from models.text.caption import Caption

STRAIGHT = StraightPath()
LEARNING_RATES = (2e-3, 4e-3, 8e-3)
SHIFT, SHIFTED_LAW = 3.0, TimeLaw(std=1.2, shift=3.0)
"""The demo's, which were chosen on the straight path: b / a is log-normal with median 3 and deviation 1.2 of its
logarithm (a log-normal law as Karras et al. 2022, moved towards noise as Esser et al. 2024 and Hoogeboom et al. 2023).
"""

Network = Callable[[Tensor, Tensor, Caption], Tensor]


def same_noise_levels(path: Path, straight_times: Tensor) -> Tensor:
    """The times at which `path` has the noise levels that the straight path has at `straight_times`."""
    if isinstance(path, StraightPath):
        return straight_times
    return path.time_of_log_ratio(STRAIGHT.log_ratio(straight_times))


def shifted_grid(path: Path, num_steps: int) -> Tensor:
    """The noise levels of the straight path's even times with the demo's shift, from the largest that `path` has."""
    largest = (-path.log_ratio(torch.zeros((), dtype=torch.float64))).exp().item()
    even = torch.linspace(SHIFT / (SHIFT + largest), 1, num_steps + 1, dtype=torch.float64)
    inner = same_noise_levels(path, shift_time(even[1:-1], SHIFT))
    return torch.cat([even.new_zeros(1), inner, even.new_ones(1)])


@dataclass(frozen=True)
class Objective:
    """What is trained, and what is known to go with it."""

    name: str
    path: Path
    regresses: Prediction
    own_law: TimeLaw
    """Of the training times in the paper that the objective is from."""
    largest_ratio: float = 80.0
    """Noise level at which Karras' grid begins."""

    def training_times(self, law: str, uniform: Tensor) -> Tensor:
        """Times that follow a law of `LAWS`, from numbers in (0, 1)."""
        if law == "own":
            return training_times(self.own_law, uniform)
        return same_noise_levels(self.path, training_times(SHIFTED_LAW, uniform))

    def grid(self, name: str, num_steps: int) -> Tensor:
        """A grid of `GRIDS`."""
        return GRIDS[name](self, num_steps).float()

    def input_scale(self, x: Tensor, t: Tensor) -> Tensor:
        """1 / sqrt(a² + b²) where the noise explodes: the network then sees numbers of order one."""
        if not isinstance(self.path, VarianceExplodingPath):
            return torch.ones((), device=x.device)
        at = self.path.at(t, x)
        return (at.a**2 + at.b**2).rsqrt()

    def call(self, network: Network, x: Tensor, t: Tensor, caption: Caption) -> Tensor:
        """The network's prediction."""
        return network(x * self.input_scale(x, t), t, caption)

    def field(self, network: Network, caption: Caption) -> Field:
        """The trained network as a field under a caption."""
        return Field(lambda x, t: self.call(network, x, t, caption), self.path, self.regresses)


VE = VarianceExplodingPath()
FLOW = Objective("flow matching, straight", STRAIGHT, "velocity", TimeLaw())
OBJECTIVES = (
    FLOW,
    Objective("velocity, cosine", CosinePath(), "velocity", TimeLaw(law="uniform")),
    Objective("noise prediction, VP", VariancePreservingPath(), "noise", TimeLaw(law="uniform")),
    # score = -noise / b, and Song's weight is b²: denoising score matching is this regression.
    Objective("score matching, VE", VE, "noise", TimeLaw(law="uniform"), VE.sigma_max),
)

LAWS = ("own", "shifted")
"""Of training times: the paper's, or the demo's noise levels."""
GRIDS: Mapping[str, Callable[[Objective, int], Tensor]] = {
    "even": lambda _, num_steps: uniform_grid(num_steps),
    "shifted": lambda objective, num_steps: shifted_grid(objective.path, num_steps),
    "karras": lambda objective, num_steps: karras_grid(num_steps, objective.path, sigma_max=objective.largest_ratio),
}
"""Times of a sampler: even in the path's own time, at the noise levels of the straight path's even times with the
demo's shift, or by Karras et al. 2022 (eq. 5)."""
