"""The checkerboard: data whose exact flow is known on every Gaussian path, so that a sampler's error is its own.

    python -m benchmarks.checkerboard

Data are uniform on the eight dark squares of a 4 x 4 board. The posterior mean E[x_1 | x_t], from which everything
follows, is a mixture of truncated normals, one per square. No network is trained.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.path import CosinePath, Path, StraightPath, VariancePreservingPath
from models.flow.solver import Solver, euler, heun, rk4
from testing.checkerboard import exact_field, share_inside

CALLS = (4, 8, 10, 16, 20, 32, 64)


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
