"""Flow matching against diffusion: one network, one dataset, the same steps and seeds, four objectives.

    python -m benchmarks.checkerboard        the training-free half: only the sampler's error
    python -m benchmarks.flow_vs_diffusion   the trained half, on the latents of a finished `make demo`

Each objective is trained as its own paper says, with the settings it is known for; learning rate, network, data,
noise and order of the samples are shared. Then each model makes clips for the captions of the validation split,
without guidance, by ODE (DDIM, which on the straight path is Euler) and by SDE (ancestral: DDIM with eta = 1), from
the same noises, at 4 to 64 network calls. Measured: the share of clips that show what their caption says (the demo's
judge, on decoded pixels), the Fréchet distance of the latents to the training latents in their first principal
components, and bits per dimension of held-out latents along the flow. Finished (objective, seed) pairs are kept in
the work folder, so the experiment can be stopped and started again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import torch
import yaml
from jaxtyping import Float
from safetensors.torch import load as load_safetensors
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.dataset.index import IndexRow, read_index
from data.dataset.manifest import read_manifest
from data.dataset.reader import PayloadReader
from data.files.publish import publish_text
from data.stream.plan import ShuffledEpochs
from data.synthetic import Combination, random_scene, training_combinations
from models.flow.field import Field
from models.flow.grid import karras_grid, uniform_grid
from models.flow.likelihood import bits_per_dimension, log_likelihood, probed_divergence, rademacher
from models.flow.objective import matching_loss, stratified, training_times
from models.flow.path import CosinePath, Path, StraightPath, VarianceExplodingPath, VariancePreservingPath
from models.flow.solver import ddim, ddim_eta
from models.flow.spec import Prediction, TimeLaw
from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from pipeline.encode.codec import load_autoencoder, to_frames
from pipeline.encode.statistics import denormalize, normalize
from pipeline.evaluate.judge import judge_clip
from pipeline.run import randomness
from pipeline.run.precision import autocast

CALLS = (4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)
STEPS, BATCH, LEARNING_RATE, WARMUP, EMA_DECAY, CAPTION_DROP = 1500, 32, 2e-3, 50, 0.99, 0.1
NETWORK = DiTConfig(width=128, depth=4, heads=2, text=TextConfig(width=64, depth=1, heads=2, max_bytes=47))
NUM_CLIPS, SAMPLE_BATCH = 80, 40
COMPONENTS = 32
LIKELIHOOD_CLIPS, LIKELIHOOD_STEPS, LIKELIHOOD_NOISE = 32, 24, 0.05
RESULT = FilePath(__file__).parent / "results" / "flow_vs_diffusion.json"
PLOT = FilePath(__file__).parent.parent / "docs" / "images" / "flow_vs_diffusion.png"

Network = Callable[[Tensor, Tensor, CaptionTokens], Tensor]


@dataclass(frozen=True)
class Objective:
    """What is trained and how it is sampled."""

    name: str
    path: Path
    regresses: Prediction
    times: TimeLaw
    grid: Callable[[int], Tensor]

    def input_scale(self, x: Tensor, t: Tensor) -> Tensor:
        """1 / sqrt(a² + b²) where the noise explodes: the network then sees numbers of order one."""
        if not isinstance(self.path, VarianceExplodingPath):
            return torch.ones((), device=x.device)
        at = self.path.at(t, x)
        return (at.a**2 + at.b**2).rsqrt()

    def call(self, network: Network, x: Tensor, t: Tensor, caption: CaptionTokens) -> Tensor:
        """The network's prediction."""
        return network(x * self.input_scale(x, t), t, caption)

    def field(self, network: Network, caption: CaptionTokens) -> Field:
        """The trained network as a field under a caption."""
        return Field(lambda x, t: self.call(network, x, t, caption), self.path, self.regresses)


VP, VE = VariancePreservingPath(), VarianceExplodingPath()
OBJECTIVES = (
    Objective("flow matching, straight", StraightPath(), "velocity", TimeLaw(), uniform_grid),
    Objective("noise prediction, VP", VP, "noise", TimeLaw(law="uniform"), uniform_grid),
    # score = -noise / b, and Song's weight is b²: denoising score matching is this regression.
    Objective(
        "score matching, VE", VE, "noise", TimeLaw(law="uniform"), partial(karras_grid, path=VE, sigma_max=VE.sigma_max)
    ),
    Objective("velocity, cosine", CosinePath(), "velocity", TimeLaw(law="uniform"), uniform_grid),
)


@dataclass(frozen=True)
class Latents:
    """Normalised latents with their captions and what they show."""

    x: Float[Tensor, "n c t h w"]
    captions: list[str]
    wanted: list[Combination]


@dataclass(frozen=True)
class Cell:
    """One sampler at one price."""

    sampler: str
    network_calls: int
    adherence: float  # share of clips right in colour, shape and direction
    frechet: float


@dataclass(frozen=True)
class Outcome:
    """One objective and seed."""

    objective: str
    seed: int
    final_loss: float
    bits_per_dimension: float
    cells: list[Cell]


def read_latents(run_dir: FilePath, split: str) -> Latents:
    """A split of the demo's latents; what a clip shows follows from its number, as it was drawn."""
    folder = run_dir / "latents"
    stats = read_manifest(folder).latent_stats
    assert stats is not None
    seed = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))["seed"]
    rows = [row for row in read_index(folder) if row.split == split]
    reader = PayloadReader(folder)
    x = torch.stack([load_safetensors(reader.read(row))["mean"] for row in rows]).float()
    reader.close()

    def shown(row: IndexRow) -> Combination:
        number = int(FilePath(row.source).stem.removeprefix("shapes-"))
        scene = random_scene(seed, number, training_combinations())
        assert scene.caption == row.caption, f"{row.source} is not the clip of its number"
        return scene.combination

    return Latents(normalize(x, stats), [row.caption for row in rows], [shown(row) for row in rows])


def encode(captions: list[str]) -> CaptionTokens:
    """Captions for the network."""
    return CaptionTokens.encode(captions, NETWORK.text.max_bytes)


def train(objective: Objective, data: Latents, seed: int) -> tuple[DiT, float]:
    """The averaged network, and the mean loss of the last hundred steps."""
    shape = tuple(data.x.shape[1:])
    torch.manual_seed(seed)
    network = DiT(NETWORK, shape[0])
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.55 + 0.45 * math.cos(math.pi * step / STEPS))
    )
    order = ShuffledEpochs([len(data.x)], seed, "train")
    offset, losses = randomness.uniform(seed, "time", [0]).item(), []
    for step in range(STEPS):
        positions = list(range(step * BATCH, (step + 1) * BATCH))
        chosen = order.samples(np.array(positions)).tolist()
        dropped = (randomness.uniform(seed, "caption-drop", positions) < CAPTION_DROP).tolist()
        caption = encode(["" if drop else data.captions[i] for i, drop in zip(chosen, dropped, strict=True)])
        x_1, x_0 = data.x[chosen], randomness.normal(seed, "noise", positions, shape)
        t = training_times(objective.times, stratified(torch.tensor(positions), offset)).float()
        with autocast("auto", torch.device("cpu")):
            predicted = objective.call(network, objective.path.at(t, x_1).point(x_0, x_1), t, caption)
        loss = matching_loss(objective.path, objective.regresses, predicted, x_0, x_1, t).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(loss.item())
    averaged = average.module.eval().requires_grad_(False)
    assert isinstance(averaged, DiT)
    return averaged, statistics.mean(losses[-100:])


def principal_components(x: Float[Tensor, "n ..."]) -> Float[Tensor, "d k"]:
    """The directions in which the training latents vary most."""
    centred = x.flatten(1) - x.flatten(1).mean(0)
    return torch.linalg.svd(centred, full_matrices=False).Vh[:COMPONENTS].T


def frechet(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Squared Fréchet distance of two Gaussians fitted to x and y: |mean difference|² + tr(A + B - 2 (AB)^½)."""
    a, b = (torch.cov(points.double().T) for points in (x, y))
    root = np.real(np.trace(np.asarray(sqrtm((a @ b).numpy()))))
    return float((x.double().mean(0) - y.double().mean(0)).square().sum() + (a + b).trace()) - 2 * float(root)


def bits(objective: Objective, network: DiT, held_out: Latents) -> float:
    """Bits per dimension of held-out latents with a little noise, the same for every objective.

    The noise (b / a at the end of the grid) keeps off the singular end; its density is finite and comparable.
    """
    x_1, caption = held_out.x[:LIKELIHOOD_CLIPS], encode(held_out.captions[:LIKELIHOOD_CLIPS])
    inner = karras_grid(LIKELIHOOD_STEPS, objective.path, LIKELIHOOD_NOISE, 40.0)[:-1]
    grid = torch.cat([torch.zeros(1), inner[inner > 0]]).float()
    a = objective.path.coefficients(grid[-1:]).a
    noisy = a * (x_1 + LIKELIHOOD_NOISE * randomness.normal(0, "likelihood", range(len(x_1)), tuple(x_1.shape[1:])))
    probe = rademacher(x_1, torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH):
        log_density = log_likelihood(objective.field(network, caption), noisy, grid, probed_divergence(probe))
    num_dimensions = x_1[0].numel()
    return bits_per_dimension(log_density + num_dimensions * a.log(), num_dimensions).mean().item()


@torch.inference_mode()
def run(run_dir: FilePath, work_dir: FilePath, objective: Objective, seed: int) -> Outcome:
    """Train, sample and measure one objective with one seed, or read what was measured before."""
    kept = work_dir / f"{objective.name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf-8"))
        return Outcome(**content | {"cells": [Cell(**cell) for cell in content["cells"]]})
    torch.set_num_threads(1)
    training, held_out = read_latents(run_dir, "train"), read_latents(run_dir, "validation")
    stats = read_manifest(run_dir / "latents").latent_stats
    assert stats is not None
    autoencoder = load_autoencoder(run_dir / "latents" / "autoencoder.safetensors")
    with torch.inference_mode(mode=False):
        network, final_loss = train(objective, read_latents(run_dir, "train"), seed)
        figure = bits(objective, network, read_latents(run_dir, "validation"))
    components = principal_components(training.x)
    known = training.x.flatten(1) @ components
    shape = tuple(training.x.shape[1:])
    cells = []
    for sampler in ("ode", "sde"):
        for num_calls in CALLS:
            made = []
            for first in range(0, NUM_CLIPS, SAMPLE_BATCH):
                addresses = range(first, first + SAMPLE_BATCH)
                field = objective.field(network, encode([held_out.captions[i] for i in addresses]))
                grid = objective.grid(num_calls)
                start = objective.path.coefficients(grid[:1]).b.float() * randomness.normal(
                    seed, "start", addresses, shape
                )
                with autocast("auto", torch.device("cpu")):
                    if sampler == "ode":
                        made.append(ddim(field, start, grid))
                    else:
                        made.append(ddim_eta(field, start, grid, 1.0, partial(step_noise, seed, addresses, shape)))
            x = torch.cat(made)
            right = [
                judge_clip(to_frames(clip)).agrees(wanted)["all"]
                for clips, wanted_ones in zip(x.split(8), batches(held_out.wanted[:NUM_CLIPS], 8), strict=True)
                for clip, wanted in zip(decode(autoencoder, denormalize(clips, stats)), wanted_ones, strict=True)
            ]
            cells.append(
                Cell(sampler, num_calls, statistics.mean(map(float, right)), frechet(x.flatten(1) @ components, known))
            )
    outcome = Outcome(objective.name, seed, final_loss, figure, cells)
    publish_text(kept, json.dumps(asdict(outcome)))
    return outcome


def step_noise(seed: int, addresses: range, shape: tuple[int, ...], step: int) -> Tensor:
    """Fresh noise for one step of an SDE, each clip's its own."""
    return randomness.normal(seed, "sde", [f"{address}/{step}" for address in addresses], shape)


def batches(items: list[Combination], size: int) -> list[list[Combination]]:
    """Slices of a list."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def decode(autoencoder: nn.Module, latents: Tensor) -> Tensor:
    """Latents to pixels."""
    with autocast("auto", torch.device("cpu")):
        return autoencoder.decode(latents)  # type: ignore[operator]


def plot(outcomes: list[Outcome], floor: float) -> None:
    """Adherence and Fréchet distance against network calls, mean and spread over seeds."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, sharey="row", constrained_layout=True)
    for row, measure in enumerate(("adherence", "frechet")):
        for column, sampler in enumerate(("ode", "sde")):
            ax = axes[row][column]
            for objective in OBJECTIVES:
                mean, spread = zip(
                    *(of_seeds(outcomes, objective.name, sampler, calls, measure) for calls in CALLS), strict=True
                )
                ax.errorbar(CALLS, mean, spread, marker="o", capsize=3, label=objective.name)
            ax.set_xscale("log", base=2)
            ax.set_xticks(CALLS, [str(calls) for calls in CALLS])
            ax.grid(alpha=0.3)
            if row == 0:
                ax.set_title({"ode": "ODE (DDIM)", "sde": "SDE (ancestral)"}[sampler])
            else:
                ax.set_xlabel("network calls")
                ax.set_yscale("log")
                ax.axhline(floor, color="grey", linestyle=":", label="held-out clips themselves")
            if column == 0:
                ax.set_ylabel({"adherence": "clips as their caption says", "frechet": "Fréchet distance"}[measure])
    axes[1][0].legend(fontsize=8)
    figure.savefig(PLOT, dpi=80)
    plt.close(figure)


def of_seeds(outcomes: list[Outcome], objective: str, sampler: str, calls: int, measure: str) -> tuple[float, float]:
    """Mean and standard deviation of a measure over seeds."""
    values = [
        getattr(cell, measure)
        for outcome in outcomes
        if outcome.objective == objective
        for cell in outcome.cells
        if (cell.sampler, cell.network_calls) == (sampler, calls)
    ]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def show(outcomes: list[Outcome], floor: float) -> None:
    """The table."""
    for objective in OBJECTIVES:
        mine = [outcome.bits_per_dimension for outcome in outcomes if outcome.objective == objective.name]
        print(f"{objective.name}: {statistics.mean(mine):.3f} bits per dimension ({min(mine):.3f} to {max(mine):.3f})")
        for sampler in ("ode", "sde"):
            adherence, distance = (
                "  ".join(
                    "{:6.3f} ± {:.3f}".format(*of_seeds(outcomes, objective.name, sampler, calls, measure))
                    for calls in CALLS
                )
                for measure in ("adherence", "frechet")
            )
            print(f"  {sampler}  adherence {adherence}\n       Fréchet   {distance}")
    print(f"Fréchet distance of the held-out clips themselves: {floor:.3f}")


def main() -> None:
    """Run what is missing, then print the table, write the JSON and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=FilePath, default=FilePath("runs/demo"), help="a finished demo")
    parser.add_argument("--work", type=FilePath, default=FilePath("runs/flow_vs_diffusion"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    training, held_out = read_latents(options.run, "train"), read_latents(options.run, "validation")
    components = principal_components(training.x)
    floor = frechet(held_out.x[:NUM_CLIPS].flatten(1) @ components, training.x.flatten(1) @ components)
    options.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        tasks: list[partial[Outcome]] = [
            partial(run, options.run, options.work, objective, seed) for seed in SEEDS for objective in OBJECTIVES
        ]
        outcomes = [future.result() for future in [pool.submit(task) for task in tasks]]
    settings = {
        "steps": STEPS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "network": NETWORK.model_dump(),
        "clips": NUM_CLIPS,
        "torch": torch.__version__,
    }
    result = {
        "settings": settings,
        "frechet_of_held_out_clips": floor,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    publish_text(RESULT, json.dumps(result, indent=1) + "\n")
    show(outcomes, floor)
    plot(outcomes, floor)


if __name__ == "__main__":
    main()
