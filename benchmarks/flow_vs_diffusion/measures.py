"""Samples of a trained network by several samplers, and how good they are."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import sqrtm
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.flow_vs_diffusion.latents import Demo, Latents
from benchmarks.flow_vs_diffusion.objectives import Objective
from benchmarks.flow_vs_diffusion.training import encode
from data.synthetic import Combination
from models.flow.field import Field
from models.flow.flow_map import flow_map_steps
from models.flow.grid import karras_grid
from models.flow.likelihood import bits_per_dimension, log_likelihood, probed_divergence, rademacher
from models.flow.solver import ab2, ddim, ddim_eta, heun, unipc
from models.networks.dit import DiT
from models.networks.protocol import Conditions, JumpEnd
from models.text.caption import Caption
from pipeline.encode.codec import to_frames
from pipeline.encode.statistics import denormalize
from pipeline.evaluate.judge import judge_clip
from pipeline.run import randomness
from pipeline.run.precision import autocast

SAMPLE_BATCH, DECODE_BATCH = 40, 8
LIKELIHOOD_CLIPS, LIKELIHOOD_STEPS, LIKELIHOOD_NOISE = 32, 24, 0.05
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cell:
    """One sampler at one price."""

    sampler: str
    grid: str
    network_calls: int
    adherence: float
    """Share of the clips that are right in colour, shape and direction."""
    attributes: float
    """Mean share of the clips that are right in one of the three."""
    frechet: float | None
    """None: samples were not finite."""


@dataclass(frozen=True)
class Asked:
    """Clips that are sampled: the first ones of a split, each from its own noise."""

    latents: Latents
    num_clips: int
    seed: int


@dataclass(frozen=True)
class Sampled:
    """What a sampler is given: a network under the captions of clips `addresses`."""

    network: DiT
    field: Field
    caption: Caption
    start: Float[Tensor, "b c t h w"]
    seed: int
    addresses: range

    def sde_noise(self, step: int) -> Tensor:
        """Fresh noise for one step, each clip's its own."""
        shape = tuple(self.start.shape[1:])
        return randomness.normal(self.seed, "sde", [f"{address}/{step}" for address in self.addresses], shape)

    def mean_velocity(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Of a student's jump."""
        end = JumpEnd(s, torch.ones(1))
        return self.network.given(Conditions(torch.ones(1), jump=end))(x, t, self.caption)


@dataclass(frozen=True)
class Sampler:
    """How clips are made from noise along a grid."""

    run: Callable[[Sampled, Tensor], Tensor]
    calls_per_step: int = 1


SAMPLERS = {
    "ode": Sampler(lambda given, grid: ddim(given.field, given.start, grid)),
    "sde": Sampler(lambda given, grid: ddim_eta(given.field, given.start, grid, 1.0, given.sde_noise)),
    "unipc": Sampler(lambda given, grid: unipc(given.field, given.start, grid)),
    "ab2": Sampler(lambda given, grid: ab2(given.field, given.start, grid)),
    "heun": Sampler(lambda given, grid: heun(given.field, given.start, grid), calls_per_step=2),
    "flow map": Sampler(lambda given, grid: flow_map_steps(given.mean_velocity, given.field, given.start, grid)),
}
"""ode is DDIM, which on the straight path is Euler's method; sde is ancestral sampling, DDIM with eta = 1."""


def sampled(
    objective: Objective, network: DiT, sampler: str, grid: Float[Tensor, " n"], asked: Asked
) -> Float[Tensor, "n c t h w"]:
    """Normalised latents, from the same noise whatever makes them."""
    made, shape = [], tuple(asked.latents.x.shape[1:])
    for first in range(0, asked.num_clips, SAMPLE_BATCH):
        addresses = range(first, min(first + SAMPLE_BATCH, asked.num_clips))
        caption = encode([asked.latents.captions[number] for number in addresses])
        noise = randomness.normal(asked.seed, "start", addresses, shape)
        start = objective.path.coefficients(grid[:1]).b * noise
        given = Sampled(network, objective.field(network, caption), caption, start, asked.seed, addresses)
        with autocast("auto", CPU):
            made.append(SAMPLERS[sampler].run(given, grid))
    return torch.cat(made)


@dataclass(frozen=True)
class Adherence:
    """Shares of clips that show what their captions say."""

    whole: float
    attributes: float


def adherence(demo: Demo, x: Float[Tensor, "n c t h w"], wanted: list[Combination]) -> Adherence:
    """As the demo's judge sees it in the decoded pixels."""
    right: list[dict[str, bool]] = []
    for first in range(0, len(x), DECODE_BATCH):
        with autocast("auto", CPU):
            clips = demo.autoencoder.decode(denormalize(x[first : first + DECODE_BATCH], demo.stats))  # type: ignore[operator]
        shown = wanted[first : first + DECODE_BATCH]
        right += [
            judge_clip(to_frames(clip)).agrees(combination) for clip, combination in zip(clips, shown, strict=True)
        ]
    return Adherence(
        mean(each["all"] for each in right),
        mean(each[name] for each in right for name in ("colour", "shape", "direction")),
    )


@torch.inference_mode()
def cell(
    demo: Demo, objective: Objective, network: DiT, sampler: str, grid: str, network_calls: int, asked: Asked
) -> Cell:
    """Sample and measure."""
    times = objective.grid(grid, network_calls // SAMPLERS[sampler].calls_per_step)
    x = sampled(objective, network, sampler, times, asked)
    if not bool(x.isfinite().all()):
        return Cell(sampler, grid, network_calls, 0.0, 0.0, None)
    right = adherence(demo, x, asked.latents.wanted[: len(x)])
    return Cell(sampler, grid, network_calls, right.whole, right.attributes, frechet_to_training(demo, x))


def frechet_to_training(demo: Demo, x: Float[Tensor, "n c t h w"]) -> float:
    """The distance of latents to those of the training, in the directions in which these vary most."""
    return frechet(x.flatten(1) @ demo.components, demo.training.x.flatten(1) @ demo.components)


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
