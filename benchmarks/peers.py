"""Our mathematics beside that of diffusers, torchcfm and torchdiffeq, on fields known in closed form.

    pip install '.[peers]' -c constraints.txt
    python -m benchmarks.peers

Three tables. Agreement: the same noise, grid and network through both; the largest difference of the results. Closed
form: where a peer differs from us or from its own documentation, both beside the exact value. Cost: 50 Euler steps with
a network that does nothing, in turn, many times (medians, one thread), and what is still alive at the last step.
Everything is in float64 on our side; diffusers rounds its noise levels, and mostly the state, to float32.
"""

import gc
import itertools
import json
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import torchcfm  # pyright: ignore[reportMissingImports]
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor
from torchdiffeq import odeint

from models.flow.field import Field
from models.flow.grid import karras_grid, shift_time, uniform_grid
from models.flow.guidance import Apg, CfgZeroStar, Guidance, PathState, Plain, Rescaled, guide
from models.flow.objective import optimal_coupling
from models.flow.path import CosinePath, Path, StraightPath, posterior
from models.flow.solver import Solver, ddim, ddim_eta, dpmpp_2m, euler, heun, midpoint, rk4, unipc

diffusers: Any = import_module("diffusers")  # its schedulers take tensors where they are annotated with other types
BOUND, TIGHT_BOUND = 1e-5, 1e-12
SHAPE, NUM_STEPS, SHIFT = (4, 3, 2, 5, 5), 50, 3.0
PEERS = ("diffusers", "torchcfm", "torchdiffeq", "torch")
COSINE, STRAIGHT = CosinePath(), StraightPath()


@dataclass(frozen=True)
class Agreement:
    """Ours against a peer's on the same inputs."""

    what: str
    peer: str
    difference: float
    bound: float = BOUND
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two are the same up to rounding."""
        return self.difference < self.bound


@dataclass(frozen=True)
class ClosedForm:
    """A figure whose exact value is known: the peer's and ours."""

    what: str
    case: str
    exact: float
    peer: float
    ours: float


@dataclass(frozen=True)
class Cost:
    """What a sampler costs beside the network: time per step, and what is alive when the last step begins."""

    sampler: str
    us_per_step: float
    states_at_50: int
    states_at_500: int
    peak_kib_at_50: float
    peak_kib_at_500: float


@dataclass(frozen=True)
class Mixture:
    """Data whose every number is drawn from a few normal laws of one spread: E[x_1 | x_t] is known."""

    means: tuple[float, ...]
    weights: tuple[float, ...]
    spread: float

    def data(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The posterior mean of the data where x = a data + b noise."""
        a, b, rest = a[..., None], b[..., None], x[..., None] - a[..., None] * x.new_tensor(self.means)
        variance = (a * self.spread) ** 2 + b**2
        weights = (x.new_tensor(self.weights).log() - rest**2 / (2 * variance)).softmax(-1)
        towards = x.new_tensor(self.means) + a * self.spread**2 / variance * rest
        return (weights * towards).sum(-1).to(x)

    def field(self, path: Path) -> Field:
        """The perfect network on a path."""

        def data(x: Tensor, t: Tensor) -> Tensor:
            at = path.at(t, x)
            return self.data(x, at.a, at.b)

        return Field(data, path, "data")


TWO_MODES = Mixture((-1.0, 1.0), (0.3, 0.7), 0.3)
GAUSSIAN = Mixture((0.5,), (1.0,), 0.6)  # its flow map is m + s x_0


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return difference.abs().max().item()


def error(sample: Tensor, noise: Tensor) -> float:
    """Root mean square distance from where the exact flow of `GAUSSIAN` ends."""
    return (sample - GAUSSIAN.means[0] - GAUSSIAN.spread * noise).square().mean().sqrt().item()


# The peers' noise levels as times on our paths. A scheduler of diffusers names a level by the ratio b / a (variance
# preserving) or by b (flow); at equal ratio the cosine path has the former's a and b, the straight path the latter's.


def cosine_grid(ratios: Tensor) -> Tensor:
    """Times at which the cosine path has the ratios b / a, and 1."""
    return torch.cat([COSINE.time_of_log_ratio(-ratios.double().log()), torch.ones(1, dtype=torch.float64)])


def straight_grid(scheduler: Any) -> Tensor:  # noqa: ANN401 - the peers are not typed
    """The flow scheduler's levels as times."""
    return (1 - scheduler.sigmas.double()).unique()


def levels(path: Path, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The coefficients a and b at every time of a grid."""
    at = path.coefficients(grid)
    return list(zip(at.a, at.b, strict=True))


def through(scheduler: Any, predict: Callable[[Tensor, int, Tensor], Tensor], x: Tensor) -> Tensor:  # noqa: ANN401
    """Sample with a scheduler of diffusers; `predict` gets the state, the step number and the scheduler's timestep."""
    for step, t in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x, step, t), t, x, return_dict=False)[0]
    return x


def flow_network(data: Mixture) -> Callable[[Tensor, int, Tensor], Tensor]:
    """What a flow model of diffusers predicts at its timestep, noise minus data, in closed form."""

    def predict(x: Tensor, _: int, t: Tensor) -> Tensor:
        sigma = t.double() / 1000
        return ((x - data.data(x, 1 - sigma, sigma)) / sigma).to(x)

    return predict


def data_network(data: Mixture, path: Path, grid: Tensor) -> Callable[[Tensor, int, Tensor], Tensor]:
    """A network that predicts the data and is asked at the exact levels of `grid`, whatever the timesteps say."""
    at = levels(path, grid)
    return lambda x, step, _: data.data(x, *at[step])


# Agreement


def flow_schedulers() -> list[Agreement]:
    """Euler and Heun on the straight path."""
    noise = normal(*SHAPE)
    rows = []
    solvers: list[tuple[str, Solver]] = [
        ("FlowMatchEulerDiscreteScheduler", euler),
        ("FlowMatchHeunDiscreteScheduler", heun),
    ]
    for name, solver in solvers:
        scheduler = getattr(diffusers, name)(shift=SHIFT)
        scheduler.set_timesteps(NUM_STEPS)
        theirs = through(scheduler, flow_network(TWO_MODES), noise)
        ours = solver(TWO_MODES.field(STRAIGHT), noise, straight_grid(scheduler))
        rows.append(Agreement(f"{solver.__name__}, straight path", f"diffusers {name}", largest(ours - theirs)))
    return rows


def ddim_schedulers() -> list[Agreement]:
    """DDIM without and with noise, on the noise levels of diffusers, as shipped and with its table in float64."""
    noise, rows = normal(*SHAPE), []
    for eta, wide in itertools.product((0.0, 1.0), (False, True)):
        scheduler = diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(NUM_STEPS)
        if wide:
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
            scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
        kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        grid = cosine_grid(((1 - kept) / kept).sqrt())
        predict, x = data_network(TWO_MODES, COSINE, grid), noise
        for step, t in enumerate(scheduler.timesteps):
            fresh = normal(*SHAPE, seed=step + 1) if eta else None
            x = scheduler.step(predict(x, step, t), t, x, eta=eta, variance_noise=fresh, return_dict=False)[0]
        ours = ddim_eta(TWO_MODES.field(COSINE), noise, grid, eta, lambda step: normal(*SHAPE, seed=step + 1))
        peer = f"diffusers DDIMScheduler{', table in float64' if wide else ''}"
        note = "" if wide or not eta else "1 - alpha is rounded in its float32 table"
        bound = TIGHT_BOUND if wide else BOUND
        rows.append(Agreement(f"ddim_eta, eta = {eta:g}", peer, largest(ours - x), bound, note))
    return rows


def multistep(name: str, **options: object) -> Any:  # noqa: ANN401
    """A multistep scheduler of diffusers, order 2, that is given data predictions."""
    return getattr(diffusers, name)(prediction_type="sample", solver_order=2, **options)


MULTISTEP: list[tuple[str, Solver, dict[str, str]]] = [
    ("DPMSolverMultistepScheduler", dpmpp_2m, {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
    ("UniPCMultistepScheduler", unipc, {"solver_type": "bh2"}),
]


def multistep_schedulers() -> list[Agreement]:
    """DPM-Solver++(2M) and UniPC, variance preserving and on flow levels."""
    noise, rows = normal(*SHAPE), []
    for name, solver, options in MULTISTEP:
        for path, flow in ((COSINE, False), (STRAIGHT, True)):
            scheduler = multistep(name, use_flow_sigmas=flow, **options)
            scheduler.set_timesteps(NUM_STEPS)
            grid = straight_grid(scheduler) if flow else cosine_grid(scheduler.sigmas[:-1])
            theirs = through(scheduler, data_network(TWO_MODES, path, grid), noise)
            ours = solver(TWO_MODES.field(path), noise, grid)
            what = f"{solver.__name__}, {'flow levels' if flow else 'variance preserving'}"
            rows.append(Agreement(what, f"diffusers {name}", largest(ours - theirs)))
    return rows


def karras() -> list[Agreement]:
    """The grid of Karras et al., and Euler steps in sigma over it, which are DDIM's."""
    peer = "diffusers EulerDiscreteScheduler"
    scheduler = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0, prediction_type="sample"
    )
    scheduler.set_timesteps(NUM_STEPS)
    grid, noise = karras_grid(NUM_STEPS, COSINE), normal(*SHAPE)
    ratios = (-COSINE.log_ratio(grid[:-1])).exp()
    of_grid = largest(ratios / scheduler.sigmas[:-1].double() - 1)
    at = levels(COSINE, grid)

    def predict(x: Tensor, step: int, t: Tensor) -> Tensor:
        return TWO_MODES.data(scheduler.scale_model_input(x, t), *at[step])

    theirs = through(scheduler, predict, noise / at[0][0])  # its state is ours divided by a
    ours = ddim(TWO_MODES.field(COSINE), noise, grid)
    return [
        Agreement("Karras grid, relative", peer, of_grid),
        Agreement("ddim on the Karras grid", peer, largest(ours - theirs)),
    ]


def matchers() -> list[Agreement]:
    """The paths of torchcfm: points and velocities."""
    x_0, x_1 = normal(*SHAPE), normal(*SHAPE, seed=1)
    t = torch.linspace(0, 1, SHAPE[0], dtype=torch.float64)
    rows = []
    for name, sigma, path in (
        ("ConditionalFlowMatcher", 0.0, STRAIGHT),
        ("VariancePreservingConditionalFlowMatcher", 0.0, COSINE),
        ("TargetConditionalFlowMatcher", 0.1, StraightPath(sigma_min=0.1)),
    ):
        matcher = getattr(torchcfm, name)(sigma=sigma)
        _, x_t, velocity, drawn = matcher.sample_location_and_conditional_flow(x_0, x_1, t, return_noise=True)
        ours = path.sample(drawn if sigma else x_0, x_1, t)
        difference = max(largest(ours.x_t - x_t), largest(ours.velocity - velocity))
        rows.append(Agreement(f"Path.sample, {path!r}", f"torchcfm {name}", difference, TIGHT_BOUND))
    return rows


def coupling() -> list[Agreement]:
    """Minibatch optimal transport: the plan, and what it costs."""
    count = 256
    x_0, x_1 = normal(count, 48), normal(count, 48, seed=1)
    plan = count * torch.as_tensor(torchcfm.OTPlanSampler("exact").get_map(x_0, x_1))
    permutation = optimal_coupling(x_0, x_1)
    ours = torch.zeros(count, count, dtype=torch.float64)
    ours[permutation, torch.arange(count)] = 1
    cost = torch.cdist(x_0, x_1).square()
    peer = "torchcfm OTPlanSampler.get_map"
    return [
        Agreement("optimal_coupling, plan", peer, largest(ours - plan), TIGHT_BOUND),
        Agreement("optimal_coupling, cost", peer, abs(((ours - plan) * cost).sum().item() / count), TIGHT_BOUND),
    ]


def integrate(x: Tensor, grid: Tensor, method: str, data: Mixture) -> Tensor:
    """The flow of `data` on the straight path through torchdiffeq."""
    field = data.field(STRAIGHT)

    def slope(t: Tensor, state: Tensor) -> Tensor:
        return field.velocity(state, t.expand(len(state)))

    states = odeint(slope, x, grid, method=method)
    assert isinstance(states, Tensor)
    return states[-1]


def integrators() -> list[Agreement]:
    """Fixed-step integrators, up to t = 0.9."""
    noise, grid, rows = normal(*SHAPE), 0.9 * uniform_grid(20), []
    notes = {"rk4": "theirs is the 3/8 rule, ours the classical one: see the table below"}
    solvers: list[tuple[str, Solver]] = [("euler", euler), ("midpoint", midpoint), ("heun2", heun), ("rk4", rk4)]
    for method, solver in solvers:
        difference = largest(solver(TWO_MODES.field(STRAIGHT), noise, grid) - integrate(noise, grid, method, TWO_MODES))
        rows.append(Agreement(solver.__name__, f"torchdiffeq {method}", difference, TIGHT_BOUND, notes.get(method, "")))
    return rows


@dataclass(frozen=True)
class Steps:
    """A few places of a trajectory where two branches disagree."""

    places: list[PathState]
    v_cond: list[Tensor]
    v_uncond: list[Tensor]

    @classmethod
    def draw(cls) -> "Steps":
        """Three steps on the straight path."""
        times = [torch.full((SHAPE[0],), t, dtype=torch.float64) for t in (0.2, 0.5, 0.8)]
        xs = [normal(*SHAPE, seed=seed) for seed in range(3)]
        places = [PathState(x, t, STRAIGHT.at(t, x)) for x, t in zip(xs, times, strict=True)]
        branches = [[normal(*SHAPE, seed=first + step) for step in range(3)] for first in (10, 20)]
        return cls(places, *branches)

    def combined(self, rule: Guidance) -> list[Tensor]:
        """Ours."""
        trajectory, combined = rule.start(), []
        for step in zip(self.v_cond, self.v_uncond, self.places, strict=True):
            trajectory.begin_step()
            combined.append(trajectory.combine(*step))
        return combined

    def difference(self, rule: Guidance, peer: Callable[[Tensor, Tensor], Tensor], in_data: bool = False) -> float:
        """Ours against a peer's function of the two branches, which is given data predictions or velocities."""
        worst = 0.0
        for ours, cond, uncond, place in zip(self.combined(rule), self.v_cond, self.v_uncond, self.places, strict=True):
            if in_data:
                data = peer(place.at.data(place.x, cond), place.at.data(place.x, uncond))
                theirs = place.at.velocity_of_data(place.x, data)
            else:
                theirs = peer(cond, uncond)
            worst = max(worst, largest(ours - theirs))
        return worst


def guidance() -> list[Agreement]:
    """The rules of guidance, three steps each."""
    scale, steps = 5.0, Steps.draw()
    plain = diffusers.ClassifierFreeGuidance(guidance_scale=scale)
    zero_star = diffusers.ClassifierFreeZeroStarGuidance(guidance_scale=scale, zero_init_steps=0)
    zero_star.set_state(step=0, num_inference_steps=3, timestep=torch.ones(()))
    buffer = MomentumBuffer(-0.5)

    def rescaled(cond: Tensor, uncond: Tensor) -> Tensor:
        return rescale_noise_cfg(guide(cond, uncond, scale), cond, 0.7)

    def projected(cond: Tensor, uncond: Tensor) -> Tensor:
        # with the original formulation its scale counts from 0, the paper's and ours from 1
        return normalized_guidance(cond, uncond, scale - 1, buffer, 0.25, 4.0, use_original_formulation=True)

    return [
        Agreement(
            "Plain",
            "diffusers ClassifierFreeGuidance",
            steps.difference(Plain(scale), lambda c, u: plain.forward(c, u).pred),
        ),
        Agreement(
            "CfgZeroStar",
            "diffusers ClassifierFreeZeroStarGuidance",
            steps.difference(CfgZeroStar(scale), lambda c, u: zero_star.forward(c, u).pred),
        ),
        Agreement(
            "Rescaled",
            "diffusers rescale_noise_cfg, given data",
            steps.difference(Rescaled(scale, 0.7), rescaled, True),
        ),
        Agreement(
            "Rescaled",
            "diffusers rescale_noise_cfg, given velocities",
            steps.difference(Rescaled(scale, 0.7), rescaled),
            note="it rescales whatever the network predicts, we the data: another rule",
        ),
        Agreement(
            "Apg with momentum and threshold",
            "diffusers normalized_guidance, given data",
            steps.difference(Apg(scale, eta=0.25, momentum=-0.5, threshold=4.0), projected, True),
        ),
    ]


# Closed form


def shifts() -> list[ClosedForm]:
    """A schedule shifted once has its last level before 0 at that of 1 / 1000, shifted."""
    steps = 20
    exact = SHIFT / 1000 / (1 + (SHIFT - 1) / 1000)
    ours = 1 - shift_time(torch.tensor(0.999, dtype=torch.float64), SHIFT).item()
    rows = []
    for kind, options, mu in (
        ("static", {"shift": SHIFT}, None),
        ("dynamic", {"use_dynamic_shifting": True}, math.log(SHIFT)),
    ):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
        scheduler.set_timesteps(steps, mu=mu)
        peer = scheduler.sigmas[-2].item()
        rows.append(ClosedForm("diffusers FlowMatchEuler: last noise level", f"{kind} shift 3", exact, peer, ours))
    return rows


def renoised_std(sigmas: Tensor) -> float:
    """The spread at the end of "denoise, then noise afresh" with the exact network, by its recursion."""
    spread, variance = GAUSSIAN.spread, 1.0
    for now, after in itertools.pairwise(sigmas.tolist()):
        gain = (1 - now) * spread**2 / (((1 - now) * spread) ** 2 + now**2)
        variance = ((1 - after) * gain) ** 2 * variance + after**2
    return math.sqrt(variance)


def stochastic() -> list[ClosedForm]:
    """The spread of samples drawn with fresh noise in each step; ours is ancestral sampling on the same levels."""
    what, count = "diffusers FlowMatchEuler, stochastic_sampling: spread", 100_000
    noise, rows = normal(count, dtype=torch.float32), []
    for steps in (10, 40, 160):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
        scheduler.set_timesteps(steps)
        torch.manual_seed(1)
        peer = through(scheduler, flow_network(GAUSSIAN), noise).std().item()
        ours = ddim_eta(GAUSSIAN.field(STRAIGHT), noise, straight_grid(scheduler), 1.0, lambda _: torch.randn(count))
        rows.append(ClosedForm(what, f"{steps} steps", GAUSSIAN.spread, peer, ours.std().item()))
    scheduler.set_timesteps(10_000)
    limit = renoised_std(scheduler.sigmas.double())
    ours_limit = ancestral_std(straight_grid(scheduler))
    rows.append(ClosedForm(what, "10000 steps, exactly", GAUSSIAN.spread, limit, ours_limit))
    return rows


def ancestral_std(grid: Tensor) -> float:
    """The spread at the end of `ddim_eta` at eta = 1 on the straight path, by its recursion."""
    spread, variance = GAUSSIAN.spread, 1.0
    at = STRAIGHT.coefficients
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        now = at(t)
        step = posterior(now, at(t_next))
        gain = now.a * spread**2 / ((now.a * spread) ** 2 + now.b**2)
        variance = ((step.on_x_t + step.on_data * gain) ** 2 * variance + step.variance).item()
    return math.sqrt(variance)


def per_token() -> list[ClosedForm]:
    """One step along the velocity 1, with a level for the batch and with the same level for each token."""
    ones, rows = torch.ones(1, 2, 1), []
    towards_noise = Field(lambda x, _: -torch.ones_like(x), STRAIGHT)  # diffusers' 1, in our direction of time
    for case in ("one level", "a level per token"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(3)
        t, (now, after) = scheduler.timesteps[0], scheduler.sigmas[:2].double()
        tokens = {} if case == "one level" else {"per_token_timesteps": t.expand(1, 2)}
        peer = scheduler.step(ones, t, 0 * ones, return_dict=False, **tokens)[0]
        ours = euler(towards_noise, 0 * ones.double(), torch.stack([1 - now, 1 - after]))
        values = (after - now).item(), peer.mean().item(), ours.mean().item()
        rows.append(ClosedForm("diffusers FlowMatchEuler: one step along 1", case, *values))
    return rows


def starts_and_timesteps() -> list[ClosedForm]:
    """Distance from the exact flow on flow levels, the network asked at these, and at the scheduler's timesteps."""
    noise, rows = normal(*SHAPE), []

    def served(x: Tensor, _: int, t: Tensor) -> Tensor:
        sigma = t.double() / 1000
        return GAUSSIAN.data(x, 1 - sigma, sigma)

    for (name, solver, options), steps in itertools.product(MULTISTEP, (20, 80, 320)):
        ours = error(solver(GAUSSIAN.field(STRAIGHT), noise, uniform_grid(steps)), noise)
        for asked in ("levels", "timesteps"):
            scheduler = multistep(name, use_flow_sigmas=True, **options)
            scheduler.set_timesteps(steps)
            exactly = data_network(GAUSSIAN, STRAIGHT, straight_grid(scheduler))
            sample = through(scheduler, exactly if asked == "levels" else served, noise)
            what = f"diffusers {name.removesuffix('MultistepScheduler')}, flow levels: rms error"
            rows.append(ClosedForm(what, f"{steps} steps, asked at {asked}", 0.0, error(sample, noise), ours))
    return rows


def fourth_order() -> list[ClosedForm]:
    """The 3/8 rule and the classical one: distance from the exact flow at t = 0.9."""
    noise, rows = normal(*SHAPE), []
    for steps in (10, 20, 40):
        grid = 0.9 * uniform_grid(steps)
        at = STRAIGHT.coefficients(grid[-1])
        exact = at.a * GAUSSIAN.means[0] + ((at.a * GAUSSIAN.spread) ** 2 + at.b**2).sqrt() * noise
        peer, ours = integrate(noise, grid, "rk4", GAUSSIAN), rk4(GAUSSIAN.field(STRAIGHT), noise, grid)
        errors = [(sample - exact).square().mean().sqrt().item() for sample in (peer, ours)]
        rows.append(ClosedForm("torchdiffeq rk4 (3/8 rule): rms error", f"{steps} steps", 0.0, *errors))
    return rows


def kept_by_coupling() -> ClosedForm:
    """The share of a batch's data that is still there after the coupling."""
    count = 256
    x_0, x_1 = normal(count, 48), normal(count, 48, seed=1)
    np.random.seed(0)  # torchcfm draws from it
    _, kept = torchcfm.OTPlanSampler("exact").sample_plan(x_0, x_1)
    shares = [len(kept.unique(dim=0)) / count, len(optimal_coupling(x_0, x_1).unique()) / count]
    return ClosedForm("torchcfm sample_plan: share of the batch kept", f"batch of {count}", 1.0, *shares)


def unguided() -> ClosedForm:
    """Scale 1 is no guidance: how far the data prediction of APG is from the conditional one there."""
    steps, scale = Steps.draw(), 1 + 1e-9
    place, cond, uncond = steps.places[0], steps.v_cond[0], steps.v_uncond[0]
    data = place.at.data(place.x, cond)
    peer = normalized_guidance(data, place.at.data(place.x, uncond), scale, eta=0.0)
    ours = place.at.data(place.x, Apg(scale).start().combine(cond, uncond, place))
    what = "diffusers APG, eta 0: distance from the conditional"
    return ClosedForm(what, "scale 1 + 1e-9", 0.0, largest(peer - data), largest(ours - data))


# Cost


class Idle:
    """A network that does nothing and, at its last call, counts the states that are alive."""

    def __init__(self, num_calls: int) -> None:
        self.remaining, self.alive = num_calls, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        """The state itself."""
        self.remaining -= 1
        if self.remaining == 0:
            self.alive = sum(type(it) is Tensor and it.shape == x.shape for it in gc.get_objects())
        return x


Network = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Network, Tensor, int], Tensor]


def our_sampler(network: Network, x: Tensor, steps: int) -> Tensor:
    """The grid and Euler's method."""
    return euler(Field(network, STRAIGHT), x, uniform_grid(steps))


def their_sampler() -> Sampler:
    """The loop of a pipeline of diffusers, with a time per sample for the network."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def sample(network: Network, x: Tensor, steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
        return x

    return sample


def alive(sampler: Sampler, x: Tensor, steps: int) -> tuple[int, float]:
    """States alive at the last step, and the peak of what Python holds, in KiB."""
    gc.collect()
    network = Idle(steps)
    sampler(network, x, steps)
    tracemalloc.start()
    sampler(lambda x, _: x, x, steps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return network.alive, peak / 1024


def costs(repeats: int = 400) -> tuple[list[Cost], float]:
    """Time in turn, then memory at 50 and at 500 steps; and the median of each turn's ratio, ours to theirs."""
    x, samplers = torch.randn(2, 8, 5, 8, 8), {"ours": our_sampler, "diffusers FlowMatchEuler": their_sampler()}
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _, (name, sampler) in itertools.product(range(repeats), samplers.items()):
        started = time.perf_counter()
        sampler(lambda x, _: x, x, NUM_STEPS)
        seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, sampler in samplers.items():
        (few, little), (many, much) = alive(sampler, x, NUM_STEPS), alive(sampler, x, 10 * NUM_STEPS)
        rows.append(Cost(name, 1e6 * statistics.median(seconds[name]) / NUM_STEPS, few, many, little, much))
    return rows, statistics.median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True))


def table(*rows: tuple[str, ...]) -> str:
    """Rows of text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def report(agreements: list[Agreement], closed_form: list[ClosedForm], cost: list[Cost]) -> str:
    """The three tables."""
    agreement_rows = [
        (r.what, r.peer, f"{r.difference:.1e}", f"{r.bound:.0e}", "yes" if r.agrees else "no", r.note)
        for r in agreements
    ]
    closed_form_rows = [(r.what, r.case, f"{r.exact:.4g}", f"{r.peer:.4g}", f"{r.ours:.4g}") for r in closed_form]
    cost_rows = [
        (
            r.sampler,
            f"{r.us_per_step:.2f}",
            f"{r.states_at_50}, {r.states_at_500}",
            f"{r.peak_kib_at_50:.0f}, {r.peak_kib_at_500:.0f} KiB",
        )
        for r in cost
    ]
    tables = [
        table(("ours", "peer", "difference", "bound", "agree", "note"), *agreement_rows),
        table(("what", "case", "exact", "peer", "ours"), *closed_form_rows),
        table(("Euler", "us per step", "states alive at 50, 500 steps", "Python's peak at 50, 500"), *cost_rows),
    ]
    return "\n\n".join(tables)


def main() -> None:
    """Print the tables and write them down."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    versions = {name: version(name) for name in PEERS}
    agreements = [
        *flow_schedulers(),
        *ddim_schedulers(),
        *multistep_schedulers(),
        *karras(),
        *matchers(),
        *coupling(),
        *integrators(),
        *guidance(),
    ]
    closed_form = [
        *shifts(),
        *stochastic(),
        *per_token(),
        *starts_and_timesteps(),
        *fourth_order(),
        kept_by_coupling(),
        unguided(),
    ]
    cost, ratio = costs()
    print(", ".join(f"{name} {number}" for name, number in versions.items()), end="\n\n")
    print(report(agreements, closed_form, cost))
    print(f"ours / diffusers, per step: {ratio:.2f}")
    figures = {
        "versions": versions,
        "agreement": [asdict(r) | {"agrees": r.agrees} for r in agreements],
        "closed_form": [asdict(r) for r in closed_form],
        "cost": {"steps": NUM_STEPS, "samplers": [asdict(r) for r in cost], "ratio": ratio},
    }
    result = FilePath(__file__).parent / "results" / "peers.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
