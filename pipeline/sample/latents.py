"""Latents from noise, by the network of a checkpoint or one that is being trained. Pure functions on tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.beginning import Beginning
from models.flow.grid import (
    autoregressive,
    euler_scheduler_grid,
    pyramid,
    uniform_grid,
    unipc_scheduler_grid,
    whole_thousandths,
)
from models.flow.guidance import Apg, CfgZeroStar, Guidance, Plain, Rescaled, batched, guided
from models.flow.path import path_of
from models.flow.solver import euler_maruyama, falling_diffusion, solver_of
from models.flow.spec import FlowSpec
from models.text.caption import Caption, CaptionReader, joined
from pipeline.run import randomness
from pipeline.sample.config import GridName, GuidanceRule, SampleConfig, Schedule

Network = Callable[[Tensor, Tensor, Caption], Tensor]


def guidance_of(rule: GuidanceRule, scale: float) -> Guidance:
    """The guidance rule of a configuration."""
    match rule:
        case "plain":
            return Plain(scale)
        case "cfg-zero-star":
            return CfgZeroStar(scale)
        case "apg":
            return Apg(scale)
        case "rescaled":
            return Rescaled(scale)


def grid_of(name: GridName, num_steps: int, shift: float) -> Float[Tensor, " n"]:
    """The times of the steps, by the name of a configuration."""
    match name:
        case "even":
            return uniform_grid(num_steps, shift)
        case "diffusers_euler":
            return euler_scheduler_grid(num_steps, shift)
        case "diffusers_unipc":
            return unipc_scheduler_grid(num_steps, shift)


def schedule_of(name: Schedule, grid: Float[Tensor, " n"], num_frames: int) -> Tensor:
    """The times of the steps, by the schedule of a configuration.

    Returns:
        (n) where all latent frames share their times, otherwise (n, num_frames).
    """
    match name:
        case "full_sequence":
            return grid
        case "pyramid":
            return pyramid(grid, num_frames)
        case "autoregressive":
            return autoregressive(grid, num_frames)


@dataclass(frozen=True)
class PromptSeed:
    """A prompt, and the seed of its clip's noise."""

    prompt: str
    seed: int


def _at_thousandths(network: Network) -> Network:
    """The network at times that are rounded as those of `unipc_scheduler_grid`."""
    return lambda x_t, t, caption: network(x_t, whole_thousandths(t), caption)


def sample_latents(
    network: Network,
    flow: FlowSpec,
    config: SampleConfig,
    clips: Sequence[PromptSeed],
    *,
    guidance_scale: float,
    shape: tuple[int, ...],
    read_captions: CaptionReader,
    device: torch.device,
    beginning: Beginning | None = None,
    window: int = 0,
) -> Float[Tensor, "b c t h w"]:
    """Sample normalised latents. The noise of each clip depends on its own seed only, not on the other clips.

    Args:
        network: maps (x_t, t, caption) to its prediction; x_t is (b c t h w), t broadcasts from the left over x_t.
        shape: of one latent, (c t h w).
        read_captions: maps captions to what the network was trained with, tokens or embeddings.
        beginning: what the clips begin with, other than noise alone: frames at time 1 from the start, no solver moves
            and no noise reaches, for networks that were trained with given frames, or clips to vary. None: there is
            nothing.
        window: number of the part of a long clip; each has noise of its own.
    """
    noise = torch.cat([randomness.normal(clip.seed, "sample", [window], shape) for clip in clips])
    caption = read_captions([clip.prompt for clip in clips])
    negative = flow.null_caption if config.negative_prompt is None else config.negative_prompt
    uncond = read_captions([negative] * len(clips))
    if config.grid == "diffusers_unipc":
        network = _at_thousandths(network)
    branches = batched(network, caption.to(device), uncond.to(device), joined(caption, uncond).to(device))
    path = path_of(flow.path)
    field = guided(branches, path, flow.prediction, guidance_of(config.guidance, guidance_scale))
    grid = schedule_of(config.schedule, grid_of(config.grid, config.steps, config.shift), shape[1])
    start = noise.to(device)
    if beginning is not None:
        field, grid, start = beginning.field(field, start), beginning.grid(grid), beginning.state(path, start)

    def fresh_noise(step: int) -> Tensor:
        address = step if window == 0 else f"window {window} {step}"
        return torch.cat([randomness.normal(clip.seed, "sde", [address], shape) for clip in clips])

    if config.sde_sigma > 0:
        return euler_maruyama(field, start, grid, falling_diffusion(path, config.sde_sigma), fresh_noise)
    return solver_of(config.solver)(field, start, grid)
