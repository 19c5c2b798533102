"""The checkerboard: data whose exact flow is known on every Gaussian path, so that a sampler's error is its own.

    python -m benchmarks.checkerboard

Data are uniform on the eight dark squares of a 4 x 4 board. The posterior mean E[x_1 | x_t], from which everything
follows, is a mixture of truncated normals, one per square. No network is trained.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr

from models.flow.field import Field
from models.flow.path import CosinePath, Path, StraightPath, VariancePreservingPath
from models.flow.solver import Solver, euler, heun, rk4

SQUARES = torch.tensor([(i - 2.0, j - 2.0) for i in range(4) for j in range(4) if (i + j) % 2 == 0]).double()
CALLS = (4, 8, 10, 16, 20, 32, 64)


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), also far out in the tails."""
    flip = low > 0  # the left tail is the accurate one
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    return log_ndtr(high) + torch.log1p(-(log_ndtr(low) - log_ndtr(high)).exp().clamp(max=1 - 1e-16))


def posterior_mean(path: Path, x: Float[Tensor, "n 2"], t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """E[x_1 | x_t = x] for the checkerboard, exactly."""
    at = path.at(t, x)
    a = at.a.clamp_min(1e-4)  # at the very start the posterior is the data's own mean to eight digits
    mean, std = (x / a)[:, None], (at.b.clamp_min(1e-12) / a)[:, None]  # of x_1 given x_t, before truncation
    low, high = (SQUARES - mean) / std, (SQUARES + 1 - mean) / std  # n squares 2
    log_mass = log_interval(low, high)
    density = [(-(edge**2) / 2 - 0.5 * math.log(2 * math.pi) - log_mass).exp() for edge in (low, high)]
    inside = (mean + std * (density[0] - density[1])).clamp(SQUARES, SQUARES + 1)
    weights = log_mass.sum(-1, keepdim=True).softmax(1)
    return (weights * inside).sum(1)


def exact_field(path: Path) -> Field:
    """The marginal field of the checkerboard on a path."""
    return Field(lambda x, t: posterior_mean(path, x, t), path, "data")


def share_inside(x: Float[Tensor, "n 2"]) -> float:
    """Share of samples that lie in the right squares."""
    cell = x.floor()
    return float((((cell >= -2) & (cell < 2)).all(1) & (cell.sum(1) % 2 == 0)).double().mean())


@dataclass(frozen=True)
class Row:
    """One sampler at one price."""

    path: str
    solver: str
    network_calls: int
    rms_error: float  # distance to where the exact flow takes the same noise
    share_inside: float


def start(num_samples: int) -> Float[Tensor, "n 2"]:
    """The same noise for every sampler."""
    return torch.randn(num_samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def measure(path: Path, solver: Solver, calls_per_step: int, num_calls: int, exact: Float[Tensor, "n 2"]) -> Row:
    """Sample and compare with where the exact flow ends."""
    num_steps = num_calls // calls_per_step
    got = solver(exact_field(path), start(len(exact)), torch.linspace(0, 1, num_steps + 1, dtype=torch.float64))
    return Row(
        path=type(path).__name__,
        solver=solver.__name__,
        network_calls=num_calls,
        rms_error=float((got - exact).square().sum(1).mean().sqrt()),
        share_inside=share_inside(got),
    )


def reference(path: Path, noise: Float[Tensor, "n 2"], num_steps: int = 300) -> Float[Tensor, "n 2"]:
    """Where the flow takes noise, by a solver fine enough to be called exact.

    Steps shrink towards the data, where the flow of a density with edges is stiff; the last thousandth is a straight
    step to the posterior mean.
    """
    grid = 1 - (1 - torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)) ** 2 * 0.999 - 0.001
    field = exact_field(path)
    return field.data(rk4(field, noise, grid), grid[-1].expand(len(noise)))


def main() -> None:
    """Print the table and write it beside this file."""
    rows = []
    for path in (StraightPath(), CosinePath(), VariancePreservingPath()):
        exact = reference(path, start(1000))
        for solver, per_step in ((euler, 1), (heun, 2)):
            rows += [measure(path, solver, per_step, calls, exact) for calls in CALLS]
    for row in rows:
        print(
            f"{row.path:24s} {row.solver:6s} {row.network_calls:3d} calls  "
            f"error {row.rms_error:.4f}  inside {row.share_inside:6.1%}"
        )
    result = FilePath(__file__).parent / "results" / "checkerboard.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
