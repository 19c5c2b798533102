"""Latents from noise, by the network of a checkpoint or one that is being trained. Pure functions on tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.beginning import Beginning
from models.flow.distribution_matching import renoising_solver
from models.flow.field import Field
from models.flow.flow_map import MeanVelocity, flow_map_solver
from models.flow.grid import (
    autoregressive,
    euler_scheduler_grid,
    karras_grid,
    linear_quadratic_grid,
    pyramid,
    shift_time,
    uniform_grid,
    unipc_scheduler_grid,
    whole_thousandths,
)
from models.flow.guidance import Apg, Branches, CfgZeroStar, Guidance, Plain, Rescaled, batched, guided
from models.flow.path import Path, path_of, sampled_path_of
from models.flow.solver import (
    Noise,
    Solver,
    ddim_eta,
    dopri5,
    euler_maruyama,
    falling_diffusion,
    solver_of,
)
from models.flow.spec import FlowSpec
from models.networks.protocol import JumpEnd
from models.text.caption import Caption, CaptionReader, joined
from pipeline.run import randomness
from pipeline.sample.config import SampleConfig, Schedule

Network = Callable[..., Tensor]
"""Maps (x_t, t, caption) to its prediction, and one that jumps also (x_t, t, caption, JumpEnd)."""
OnStep = Callable[[int, int], None]
"""Called after every step with its number, from 1, and the number of steps; what it raises ends the sampling."""


def guidance_of(config: SampleConfig, scale: float) -> Guidance:
    """The guidance rule of a configuration, at a scale."""
    match config.guidance:
        case "plain":
            return Plain(scale, *config.guidance_interval)
        case "cfg-zero-star":
            return CfgZeroStar(scale, config.zero_until)
        case "apg":
            return Apg(scale, config.apg_eta, config.apg_momentum, config.apg_threshold)
        case "rescaled":
            return Rescaled(scale, config.rescale)


def grid_of(config: SampleConfig, path: Path) -> Float[Tensor, " n"]:
    """The times of the steps of a configuration."""
    match config.grid:
        case "even":
            return uniform_grid(config.steps, config.shift)
        case "diffusers_euler":
            return euler_scheduler_grid(config.steps, config.shift)
        case "diffusers_unipc":
            return unipc_scheduler_grid(config.steps, config.shift)
        case "karras":
            times = karras_grid(config.steps, path)
            times[0] = 0.0  # noise alone, from which every clip starts
            return shift_time(times, config.shift)
        case "linear_quadratic":
            return shift_time(linear_quadratic_grid(config.steps, config.steps // 2), config.shift)


def solver_with(config: SampleConfig, path: Path, noise: Noise) -> Solver:
    """The solver of a configuration.

    Args:
        noise: gives the standard normal numbers of each step, for solvers that add some.
    """
    if config.sde_sigma > 0:
        return partial(euler_maruyama, diffusion=falling_diffusion(path, config.sde_sigma), noise=noise)
    if config.ddim_eta > 0:
        return partial(ddim_eta, eta=config.ddim_eta, noise=noise)
    return partial(dopri5, tolerance=config.tolerance) if config.solver == "dopri5" else solver_of(config.solver)


def schedule_of(name: Schedule, grid: Float[Tensor, " n"], num_frames: int, delay: int = 1) -> Tensor:
    """The times of the steps, by the schedule of a configuration.

    Returns:
        (n) where all latent frames share their times, otherwise (n, num_frames).
    """
    match name:
        case "full_sequence":
            return grid
        case "pyramid":
            return pyramid(grid, num_frames, delay)
        case "autoregressive":
            return autoregressive(grid, num_frames)


@dataclass(frozen=True)
class PromptSeed:
    """A prompt, and the seed of its clip's noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Weaker:
    """A weaker network of the same flow on the same latents, for autoguidance (Karras et al. 2024)."""

    network: Network
    read_captions: CaptionReader


def _two_networks(network: Network, caption: Caption, weaker: Weaker, its_caption: Caption) -> Branches:
    return Branches(lambda x_t, t: network(x_t, t, caption), lambda x_t, t: weaker.network(x_t, t, its_caption))


def _at_thousandths(network: Network) -> Network:
    """The network at times that are rounded as those of `unipc_scheduler_grid`."""
    return lambda x_t, t, caption, *end: network(x_t, whole_thousandths(t), caption, *end)


def first_noise(seeds: Sequence[int], shape: tuple[int, ...], window: int = 0) -> Float[Tensor, "b c t h w"]:
    """The noise that clips begin with: a function of each clip's own seed."""
    return torch.cat([randomness.normal(seed, "sample", [window], shape) for seed in seeds])


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
    weaker: Weaker | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Sample normalised latents. The noise of each clip depends on its own seed only, not on the other clips.

    Args:
        network: x_t is (b c t h w), and t broadcasts from the left over it.
        shape: of one latent, (c t h w).
        read_captions: maps captions to what the network was trained with, tokens or embeddings.
        beginning: what the clips begin with, other than noise alone: frames at time 1 from the start, which no solver
            moves and no noise reaches, for networks that were trained with given frames, or clips to vary.
        window: number of the part of a long clip; each has noise of its own.
        weaker: guidance moves away from its prediction with the prompt (autoguidance); None: from the network's own
            without the prompt.
        on_step: of a solver that chooses its own steps it is called once, at the end.
    """
    noise = first_noise([clip.seed for clip in clips], shape, window)
    if config.grid == "diffusers_unipc":
        network = _at_thousandths(network)
    prompts, path = [clip.prompt for clip in clips], path_of(flow)
    caption = read_captions(prompts)
    if weaker is None:
        negative = flow.null_caption if config.negative_prompt is None else config.negative_prompt
        uncond = read_captions([negative] * len(clips))
        branches = batched(network, caption.to(device), uncond.to(device), joined(caption, uncond).to(device))
    else:
        branches = _two_networks(network, caption.to(device), weaker, weaker.read_captions(prompts).to(device))
    field = guided(branches, path, flow.prediction, guidance_of(config, guidance_scale))
    if config.flow_path is not None:
        path = sampled_path_of(config.flow_path)
        field = field.on(path)
    grid = schedule_of(config.schedule, grid_of(config, path), shape[1], config.pyramid_delay)
    noise = noise.to(device)
    if beginning is None:
        start = path.start(noise)
    else:
        field, grid, start = beginning.field(field, noise), beginning.grid(grid), beginning.state(path, noise)

    if on_step is not None:
        field = _telling(field, on_step, 1 if config.is_adaptive else len(grid) - 1)

    def fresh_noise(step: int) -> Tensor:
        address = step if window == 0 else f"window {window} {step}"
        return torch.cat([randomness.normal(clip.seed, "sde", [address], shape) for clip in clips])

    match config.solver:
        case "flow_map":
            solver = flow_map_solver(_jumps(network, caption.to(device), guidance_scale))
        case "renoise":
            solver = renoising_solver(_jumps(network, caption.to(device), guidance_scale), fresh_noise)
        case _:
            solver = solver_with(config, path, fresh_noise)
    return solver(field, start, grid)


def _telling(field: Field, on_step: OnStep, num_steps: int) -> Field:
    """The field, whose solver tells of every step that it has finished."""
    numbers = count(1)

    def settle(x: Tensor, t: Tensor) -> Tensor:
        x = field.settle(x, t)
        on_step(next(numbers), num_steps)
        return x

    return replace(field, settle=settle)


def _jumps(network: Network, caption: Caption, scale: float) -> MeanVelocity:
    """The mean velocity of a network that jumps and is told the guidance scale."""
    return lambda x_t, t, s: network(x_t, t, caption, JumpEnd(s, torch.full((1,), scale, device=x_t.device)))
