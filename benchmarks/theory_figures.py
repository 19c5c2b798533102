"""The figures of docs/reference/theory.md, drawn from the functions it describes.

python -m benchmarks.theory_figures
"""

import json
import statistics
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from benchmarks.checkerboard import exact_field, reference, start
from models.flow.field import Field
from models.flow.path import CosinePath, StraightPath, VariancePreservingPath
from models.flow.solver import euler, euler_maruyama
from testing.gaussians import constant_diffusion

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images"
FEW_STEPS = Path(__file__).resolve().parent / "results" / "few_steps.json"
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def two_points(path: StraightPath | CosinePath | VariancePreservingPath) -> Field:
    """Data at -1 and 1 with a little spread: the marginal field in closed form."""
    spread = 0.1

    def data(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        at = path.at(t, x)
        variance = (at.a * spread) ** 2 + at.b**2
        means = torch.tensor([-1.0, 1.0]).double()
        weights = (-((x - at.a * means) ** 2) / (2 * variance)).softmax(1)
        towards = means + at.a * spread**2 / variance * (x - at.a * means)
        return (weights * towards).sum(1, keepdim=True)

    return Field(data, path, "data")


def draw_paths() -> None:
    """Conditional paths of single pairs above, the marginal flow's trajectories below."""
    paths = {"straight": StraightPath(), "cosine": CosinePath(), "variance preserving": VariancePreservingPath()}
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharex=True, sharey=True)
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    noise = normal(40, 1)
    data = torch.sign(normal(40, 1)) + 0.1 * normal(40, 1)
    for (name, path), (above, below) in zip(paths.items(), axes.T, strict=True):
        lines = torch.cat([path.sample(noise, data, t.expand(40)).x_t for t in grid], 1)
        above.plot(grid, lines.T, color="tab:blue", alpha=0.35, linewidth=0.8)
        above.set_title(name)
        field = two_points(path)
        states = [noise]
        for t, t_next in zip(grid[:-1], grid[1:], strict=True):
            states.append(euler(field, states[-1], torch.stack([t, t_next])))
        below.plot(grid, torch.cat(states, 1).T, color="tab:orange", alpha=0.5, linewidth=0.8)
        below.set_xlabel("t")
    axes[0, 0].set_ylabel("conditional paths")
    axes[1, 0].set_ylabel("marginal flow")
    figure.tight_layout()
    figure.savefig(OUTPUT / "paths.png", dpi=80)


def draw_sdes() -> None:
    """A Brownian motion, an Ornstein-Uhlenbeck process, and sampling with more and more noise."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.6))
    num, count = 400, 12
    grid = torch.linspace(0, 1, num + 1, dtype=torch.float64)
    brownian = torch.cat([torch.zeros(1, count), (normal(num, count) / num**0.5).cumsum(0)])
    axes[0].plot(grid, brownian, linewidth=0.7)
    axes[0].set_title("Brownian motion")
    x = 3 * normal(count)
    process = [x]
    for kick in normal(num, count):
        x = x - 4 * x / num + (8 / num) ** 0.5 * kick
        process.append(x)
    axes[1].plot(grid, torch.stack(process), linewidth=0.7)
    axes[1].set_title("Ornstein-Uhlenbeck")
    field = two_points(StraightPath())
    for axis, sigma in zip(axes[2:], (0.5, 2.0), strict=True):
        states = [normal(count, 1)]
        for t, t_next in zip(grid[:-2], grid[1:-1], strict=True):
            # two steps, of which the second is too short to matter: the first is then not the noise-free last one
            pair = torch.stack([t, t_next, t_next + 1e-9])
            states.append(
                euler_maruyama(field, states[-1], pair, constant_diffusion(sigma), lambda _: normal(count, 1))
            )
        axis.plot(grid[:-1], torch.cat(states, 1).T, linewidth=0.7)
        axis.set_title(f"sampling, sigma = {sigma:g}")
    for axis in axes:
        axis.set_xlabel("t")
    figure.tight_layout()
    figure.savefig(OUTPUT / "sdes.png", dpi=80)


def draw_checkerboard() -> None:
    """Where 10 Euler steps and the exact flow take the same noise."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharex=True, sharey=True)
    noise = start(3000)
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    pictures = {
        "exact flow": reference(StraightPath(), noise, 200),
        "straight, 10 calls": euler(exact_field(StraightPath()), noise, grid),
        "cosine, 10 calls": euler(exact_field(CosinePath()), noise, grid),
        "VP, 10 calls": euler(exact_field(VariancePreservingPath()), noise, grid),
    }
    for axis, (name, points) in zip(axes, pictures.items(), strict=True):
        axis.scatter(*points.T, s=1, linewidths=0)
        axis.set(title=name, xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal")
    figure.tight_layout()
    figure.savefig(OUTPUT / "checkerboard.png", dpi=80)


def draw_few_steps() -> None:
    """Quality against network calls on the checkerboard, of what `benchmarks/few_steps.py` measured."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True)
    rows = [row for row in json.loads(FEW_STEPS.read_text(encoding="utf-8")) if "Karras" not in row["sampler"]]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        mine = [row for row in rows if row["sampler"] == name]
        calls = sorted({row["network_calls"] for row in mine})
        for axis, figure_of in zip(axes, ("share_inside", "energy_distance"), strict=True):
            means = [statistics.mean(row[figure_of] for row in mine if row["network_calls"] == each) for each in calls]
            style = "o-" if name.startswith("student") else ".--"
            axis.plot(calls, means, style, label=name, linewidth=1.6 if name.startswith("student") else 0.9)
    axes[0].set(ylabel="share in the right squares", xscale="log", xlabel="network calls")
    axes[1].set(ylabel="energy distance", xscale="log", yscale="log", xlabel="network calls")
    axes[0].set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(OUTPUT / "few_steps.png", dpi=80)


def main() -> None:
    """Draw all of them."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    draw_paths()
    draw_sdes()
    draw_checkerboard()
    draw_few_steps()


if __name__ == "__main__":
    main()
