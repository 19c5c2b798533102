"""Latents from noise with any network at hand: that of a checkpoint, or one that is still being trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.grid import autoregressive, pyramid, uniform_grid
from models.flow.guidance import Apg, CfgZeroStar, Guidance, Plain, Rescaled, batched, guided
from models.flow.path import path_of
from models.flow.solver import constant_diffusion, euler_maruyama, solver_of
from models.flow.spec import FlowSpec
from models.text.caption import Caption, CaptionReader, joined
from pipeline.run import randomness
from pipeline.sample.config import GuidanceRule, SampleConfig, Schedule


def guidance_of(rule: GuidanceRule, scale: float) -> Guidance:
    """The rule a configuration names."""
    match rule:
        case "plain":
            return Plain(scale)
        case "cfg-zero-star":
            return CfgZeroStar(scale)
        case "apg":
            return Apg(scale)
        case "rescaled":
            return Rescaled(scale)


def schedule_of(name: Schedule, grid: Float[Tensor, " n"], num_frames: int) -> Tensor:
    """The times of every latent frame, by the schedule a configuration names; (n) where all go together."""
    match name:
        case "full_sequence":
            return grid
        case "pyramid":
            return pyramid(grid, num_frames)
        case "autoregressive":
            return autoregressive(grid, num_frames)


@dataclass(frozen=True)
class Wanted:
    """A clip to make: what it shows, and the seed of its noise."""

    prompt: str
    seed: int


def sample_latents(
    network: Callable[[Tensor, Tensor, Caption], Tensor],
    flow: FlowSpec,
    config: SampleConfig,
    wanted: Sequence[Wanted],
    *,
    guidance_scale: float,
    shape: tuple[int, ...],
    read_captions: CaptionReader,
    device: torch.device,
) -> Float[Tensor, "b c t h w"]:
    """Normalised latents; each clip's noise belongs to its own seed.

    Args:
        network: (x_t, t, caption) to its prediction.
        shape: of one latent, (c t h w).
        read_captions: as the network was trained.
    """
    noise = torch.cat([randomness.normal(one.seed, "sample", [0], shape) for one in wanted])
    caption = read_captions([one.prompt for one in wanted])
    negative = flow.null_caption if config.negative_prompt is None else config.negative_prompt
    uncond = read_captions([negative] * len(wanted))
    branches = batched(network, caption.to(device), uncond.to(device), joined(caption, uncond).to(device))
    field = guided(branches, path_of(flow.path), flow.prediction, guidance_of(config.guidance, guidance_scale))
    grid = schedule_of(config.schedule, uniform_grid(config.steps, config.shift), shape[1])
    start = noise.to(device)

    def fresh_noise(step: int) -> Tensor:
        return torch.cat([randomness.normal(one.seed, "sde", [step], shape) for one in wanted])

    if config.sde_sigma > 0:
        return euler_maruyama(field, start, grid, constant_diffusion(config.sde_sigma), fresh_noise)
    return solver_of(config.solver)(field, start, grid)
