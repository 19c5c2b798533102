"""What a solver costs beside the network: 50 Euler steps with a network that does nothing, against a bare loop.

    python -m benchmarks.solver_overhead

Both run in turn, many times; the figure is the ratio of the medians.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from models.flow.field import Field
from models.flow.grid import uniform_grid
from models.flow.path import StraightPath
from models.flow.solver import euler

NUM_STEPS, REPEATS, SHAPE = 50, 200, (2, 8, 5, 8, 8)


def bare_loop(x: Tensor, grid: Tensor) -> Tensor:
    """What one would write by hand, with a time per sample for the network."""
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        x = x + (t_next - t) * nothing(x, t.expand(len(x)))
    return x


def nothing(x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
    """A network for free."""
    return x


def main() -> None:
    """Print the ratio and write it down."""
    torch.set_num_threads(1)
    x, grid, field = torch.randn(SHAPE), uniform_grid(NUM_STEPS).float(), Field(nothing, StraightPath())
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(REPEATS):
        for name, run in (("bare", lambda: bare_loop(x, grid)), ("ours", lambda: euler(field, x, grid))):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "steps": NUM_STEPS,
        "bare_loop_us_per_step": 1e6 * medians["bare"] / NUM_STEPS,
        "euler_us_per_step": 1e6 * medians["ours"] / NUM_STEPS,
        "ratio": medians["ours"] / medians["bare"],
        "torch": torch.__version__,
    }
    print(json.dumps(figures, indent=1))
    result = Path(__file__).parent / "results" / "solver_overhead.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
