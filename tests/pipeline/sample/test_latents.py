"""Every option of sampling changes what is sampled; the module that samples loads neither Ray nor a decoder."""

import subprocess
import sys
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from models.flow.beginning import Beginning
from models.flow.path import path_of
from models.flow.spec import FlowSpec, SolverName
from models.networks.protocol import JumpEnd
from models.text.caption import Caption
from models.text.config import TextConfig
from pipeline.encode.captions import byte_captions
from pipeline.run import randomness
from pipeline.sample.config import GridName, GuidanceRule, SampleConfig, Schedule
from pipeline.sample.latents import PromptSeed, Weaker, sample_latents
from testing.gaussians import GaussianData


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "cfg-zero-star"},
        {"guidance": "apg"},
        {"guidance": "rescaled"},
        {"negative_prompt": "a blue square"},
        {"sde_sigma": 0.5},
        {"shift": 3.0},
        {"grid": "diffusers_euler"},
        {"grid": "diffusers_unipc"},
        {"flow_path": "straight"},  # by data predictions: it differs in the last digits
        {"flow_path": "cosine"},
        {"flow_path": "vp"},
        {"flow_path": "polynomial"},
        {"flow_path": "ve"},
    ],
    ids=str,
)
def test_no_option_of_sampling_is_passed_over(options):
    def network(x, t, caption):
        return x + caption.mask.sum(1).reshape(-1, 1, 1, 1, 1) * x.roll(1, -1)

    def latents(**chosen):
        config = SampleConfig(solver="euler", steps=3, **chosen)
        clips, captions, cpu = (
            [PromptSeed("a red circle", 1)],
            byte_captions(TextConfig(max_bytes=63)),
            torch.device("cpu"),
        )
        shape, spec = (4, 3, 4, 4), FlowSpec()
        return sample_latents(
            network, spec, config, clips, guidance_scale=3.0, shape=shape, read_captions=captions, device=cpu
        )

    assert torch.equal(latents(), latents())
    assert not torch.equal(latents(**options), latents())


@pytest.mark.parametrize("trained", ["straight", "cosine"])
@pytest.mark.parametrize("sampled", ["straight", "cosine", "vp", "polynomial", "ve"])
def test_every_path_leads_from_the_same_noise_to_the_same_clip(trained, sampled):
    """All Gaussian paths have one flow map (Karras et al. 2022, section 4), here that to N(0, 0.3²)."""
    path = path_of(FlowSpec(path=trained))
    data = GaussianData(path, 0.0, 0.3)
    latents = sample_latents(
        lambda x, t, caption: data.velocity(x.double(), t),
        FlowSpec(path=trained),
        SampleConfig(solver="unipc", grid="karras", steps=60, flow_path=sampled),
        [PromptSeed("a red circle", 3)],
        guidance_scale=1.0,
        shape=SHAPE,
        read_captions=byte_captions(TextConfig(max_bytes=63)),
        device=torch.device("cpu"),
    )
    exact = 0.3 * randomness.normal(3, "sample", [0], SHAPE)
    torch.testing.assert_close(latents, exact.to(latents), rtol=0, atol=0.02)


def test_noise_while_sampling_suits_data_that_are_narrow():
    """Gaussian data of std 0.05, by its exact velocity: noise that did not fall with the level would leave 0.33."""
    std = 0.05

    def network(x, t, caption):
        t = t.reshape(-1, 1, 1, 1, 1)
        return (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * x

    clips = [PromptSeed("a red circle", seed) for seed in range(8)]
    latents = sample_latents(
        network,
        FlowSpec(),
        SampleConfig(steps=50, sde_sigma=1.0),
        clips,
        guidance_scale=1.0,
        shape=(4, 3, 16, 16),
        read_captions=byte_captions(TextConfig(max_bytes=63)),
        device=torch.device("cpu"),
    )
    assert std / 1.5 < latents.std().item() < std * 1.5


SHAPE = (4, 3, 4, 4)


def beginning_of(first_frame: Tensor, shape: tuple[int, ...]) -> Beginning:
    """Clips that begin with that latent frame."""
    latents = torch.cat([first_frame, torch.zeros(len(first_frame), shape[0], shape[1] - 1, *shape[2:])], dim=2)
    return Beginning(latents, (torch.arange(shape[1]) == 0).double())


def latents_of(network: Any, first_frame: Tensor | None, flow: dict[str, Any], **settings: Any) -> Tensor:
    return sample_latents(
        network,
        FlowSpec(**flow),
        SampleConfig(steps=2, **settings),
        [PromptSeed("a red circle", 1), PromptSeed("a dot", 2)],
        guidance_scale=3.0,
        shape=SHAPE,
        read_captions=byte_captions(TextConfig(max_bytes=63)),
        device=torch.device("cpu"),
        beginning=None if first_frame is None else beginning_of(first_frame, SHAPE),
    )


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("flow", [{}, {"prediction": "data", "path": "cosine"}, {"prediction": "noise", "path": "vp"}])
def test_a_given_first_frame_is_held_bit_for_bit_by_every_combination(schedule, flow):
    """Solvers, noise while sampling, guidance rules and grids: no step moves it, and every call sees it at time 1."""
    torch.manual_seed(0)
    given = torch.randn(2, 4, 1, 4, 4)

    def network(x: Tensor, t: Tensor, caption: Caption, jump: JumpEnd | None = None) -> Tensor:
        assert torch.equal(x[:, :, :1], torch.cat([given] * (1 if jump else 2)))
        assert (t[..., 0] == 1).all()
        return 0.5 * x + caption.mask.sum(1).reshape(-1, 1, 1, 1, 1) * x.roll(1, -1) / 10 + x.mean(2, keepdim=True)

    names = [name for name in get_args(SolverName) if name not in ("dopri5", "jumps")]  # one time, no given frames
    solvers: list[dict[str, Any]] = [{"solver": name} for name in names]
    solvers += [{"sde_sigma": 0.5}, {"solver": "ddim", "ddim_eta": 0.5}]
    grids: list[dict[str, Any]] = [{"solver": "euler", "grid": grid} for grid in get_args(GridName)]
    for way, rule in product(solvers + grids, get_args(GuidanceRule)):
        latents = latents_of(network, given, flow, schedule=schedule, guidance=rule, **way)
        assert torch.equal(latents[:, :, :1], given), (way, rule)
        assert latents.isfinite().all(), (way, rule)


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_the_other_frames_depend_on_the_given_one_and_on_their_own_noise(schedule):
    def network(x: Tensor, t: Tensor, caption: Caption) -> Tensor:
        return x[:, :, :1] - x

    def frames(value: float) -> Tensor:
        return latents_of(network, torch.full((2, 4, 1, 4, 4), value), {}, schedule=schedule, solver="euler")

    one, two, none = frames(1.0), frames(2.0), latents_of(network, None, {}, solver="euler", schedule=schedule)
    torch.testing.assert_close(two[:, :, 1:] - one[:, :, 1:], torch.full((2, 4, 2, 4, 4), 1 - 0.5**2))
    assert not torch.equal(one[0, :, 1:], one[1, :, 1:])
    assert not torch.allclose(one, none)


def test_a_clip_of_one_frame_leaves_nothing_to_sample():
    with pytest.raises(ValueError, match="nothing is left to sample"):
        sample_latents(
            lambda x, t, caption: x,
            FlowSpec(),
            SampleConfig(),
            [PromptSeed("a dot", 1)],
            guidance_scale=1.0,
            shape=(4, 1, 4, 4),
            read_captions=byte_captions(TextConfig(max_bytes=63)),
            device=torch.device("cpu"),
            beginning=beginning_of(torch.zeros(1, 4, 1, 4, 4), (4, 1, 4, 4)),
        )


def test_nothing_heavy_is_loaded_to_sample_latents():
    heavy = ("ray", "deepspeed", "decord", "av", "matplotlib", "transformers")
    code = f"import sys, pipeline.sample.latents; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_of_a_rule_and_a_solver_reaches_it():
    """Each changes what the same noise becomes, on its own."""

    def network(x: Tensor, t: Tensor, caption: Caption) -> Tensor:
        return (
            0.5 * x.tanh()
            + caption.mask.sum(1).reshape(-1, 1, 1, 1, 1) * x.roll(1, -1) / 10
            - t.reshape(-1, 1, 1, 1, 1)
        )

    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"guidance": "plain"}, {"guidance_interval": (0.4, 1.0)}),
        ({"guidance": "cfg-zero-star"}, {"zero_until": 0.3}),
        ({"guidance": "rescaled"}, {"rescale": 0.2}),
        ({"guidance": "apg"}, {"apg_eta": 0.5}),
        ({"guidance": "apg"}, {"apg_momentum": 0.0}),
        ({"guidance": "apg"}, {"apg_threshold": 0.1}),
        ({"solver": "ddim"}, {"ddim_eta": 0.5}),
        ({"solver": "dopri5"}, {"tolerance": 0.1}),
        ({"grid": "even"}, {"grid": "karras"}),
        ({"grid": "karras"}, {"shift": 3.0}),
        ({"grid": "linear_quadratic"}, {"shift": 3.0}),
        ({}, {"sde_sigma": 0.5}),
    ]
    for base, change in pairs:
        before, after = (latents_of(network, None, {}, **{"solver": "heun", **base, **more}) for more in ({}, change))
        assert before.isfinite().all()
        assert after.isfinite().all()
        assert not torch.equal(before, after), (base, change)


@pytest.mark.parametrize(
    "solver", [name for name in get_args(SolverName) if name not in ("flow_map", "renoise", "jumps")]
)
def test_every_step_is_told_of_and_changes_nothing(solver):
    told: list[tuple[int, int]] = []
    network = lambda x, t, _: 0.1 * x + t.reshape(-1, 1, 1, 1, 1)  # noqa: E731
    config = SampleConfig(solver=solver, steps=3, tolerance=0.01, guidance_scale=1.0)
    more: dict[str, Any] = {
        "guidance_scale": 1.0,
        "shape": (4, 2, 2, 2),
        "read_captions": byte_captions(TextConfig()),
        "device": torch.device("cpu"),
    }
    clips = [PromptSeed("a", 1)]
    silent = sample_latents(network, FlowSpec(), config, clips, **more)
    heard = sample_latents(network, FlowSpec(), config, clips, **more, on_step=lambda *step: told.append(step))
    assert torch.equal(silent, heard)
    assert told == ([(1, 1)] if solver == "dopri5" else [(1, 3), (2, 3), (3, 3)])


def test_a_step_may_end_the_sampling():
    def stop(step: int, _: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    calls: list[Tensor] = []

    def network(x: Tensor, t: Tensor, _: object) -> Tensor:
        calls.append(t)
        return x

    with pytest.raises(KeyboardInterrupt):
        sample_latents(
            network,
            FlowSpec(),
            SampleConfig(solver="euler", steps=50),
            [PromptSeed("a", 1)],
            guidance_scale=1.0,
            shape=(4, 2, 2, 2),
            read_captions=byte_captions(TextConfig()),
            device=torch.device("cpu"),
            on_step=stop,
        )
    assert len(calls) == 2


def test_the_delay_of_a_pyramid_reaches_it():
    asked: list[list[float]] = []

    def network(x: Tensor, t: Tensor, caption: Caption) -> Tensor:
        asked.append(t[0].flatten().tolist())
        return torch.zeros_like(x)

    latents_of(network, None, {"times_per": "frame"}, solver="euler", schedule="pyramid", pyramid_delay=2)
    assert asked == [[0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 0], [1, 1, 0.5]]


def test_autoguidance_moves_away_from_a_weaker_network():
    """v = weak + scale (strong - weak), both with the prompt: constant velocities are integrated exactly."""

    def velocity(value: float) -> Any:
        return lambda x, t, caption: torch.full_like(x, value) * caption.mask.sum(1).reshape(-1, 1, 1, 1, 1)

    def sampled(scale: float, weaker: Weaker | None) -> Tensor:
        return sample_latents(
            velocity(2.0),
            FlowSpec(),
            SampleConfig(steps=3, solver="euler"),
            [PromptSeed("dots", 1), PromptSeed("a", 2)],
            guidance_scale=scale,
            shape=SHAPE,
            read_captions=byte_captions(TextConfig(max_bytes=63)),
            device=torch.device("cpu"),
            weaker=weaker,
        )

    noise = sampled(1.0, None) - 2.0 * torch.tensor([5.0, 2.0]).reshape(-1, 1, 1, 1, 1)
    moved = sampled(3.0, Weaker(velocity(1.0), byte_captions(TextConfig(max_bytes=63)))) - noise
    expected = (1 + 3 * (2 - 1)) * torch.tensor([5.0, 2.0])
    torch.testing.assert_close(moved, expected.reshape(-1, 1, 1, 1, 1).expand_as(moved))
