"""Quality against network calls on the checkerboard: a trained flow by solvers, and students that learned from it.

    python -m benchmarks.few_steps --seeds 3          # then 4 and 5: about six minutes of one core each

Data are uniform on the eight dark squares of a 4 x 4 board. The teacher is a small network trained by flow matching;
students start from its weights and have as many steps: a flow map, and one by distribution matching, whose steps are
those of its critic. All have the same noise. The JSON keeps the results of other seeds; those of other settings are
only printed.
"""

import argparse
import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from models.flow.distribution_matching import (
    generator_loss,
    matching_times,
    renoised,
    renoising_solver,
    simulated_states,
)
from models.flow.field import Field
from models.flow.flow_map import drawn_jumps, flow_map, flow_map_solver, jump_target
from models.flow.grid import karras_grid, uniform_grid
from models.flow.objective import training_times
from models.flow.path import StraightPath
from models.flow.solver import Solver, ab2, euler, heun, unipc
from models.flow.spec import FlowMapSpec, TimeLaw
from testing.checkerboard import SQUARES, share_inside

PATH, WIDTH, NUM_SAMPLES = StraightPath(), 128, 20_000
CALLS = (1, 2, 4, 8, 16, 32, 64)
STEPS, BATCH, SHARE = 6000, 512, 0.75
MATCHED_CALLS, CRITIC_UPDATES = 4, 5
FREQUENCIES = math.pi / 2 * torch.tensor([0.5, 1.0, 2.0, 4.0])
"""Of the sinusoids of a coordinate that the networks see: squares have sides of 1, and edges that are sharp."""
RESULT = Path(__file__).parent / "results" / "few_steps.json"


class Network(nn.Module):
    """The velocity of points at a time; with a third input, which is zero at first, the mean velocity until another."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.time = nn.Linear(2 + 4 * len(FREQUENCIES), WIDTH), nn.Linear(32, WIDTH)
        self.length = nn.Linear(32, WIDTH)
        nn.init.zeros_(self.length.weight)
        nn.init.zeros_(self.length.bias)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Float[Tensor, "b 2"], t: Float[Tensor, " b"], s: Float[Tensor, " b"]) -> Float[Tensor, "b 2"]:
        """u(x, t, s)."""
        angles = (x[:, :, None] * FREQUENCIES).flatten(1)
        h = self.point(torch.cat([x, angles.sin(), angles.cos()], 1)) + self.time(waves(t)) + self.length(waves(s - t))
        for layer in self.layers:
            h = h + silu(layer(silu(h)))
        return self.out(h)


def waves(t: Float[Tensor, " b"]) -> Float[Tensor, "b 32"]:
    """Sinusoids of a time."""
    angles = t[:, None] * 2 ** torch.linspace(0, 6, 16)
    return torch.cat([angles.sin(), angles.cos()], 1)


def board(count: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
    """Points of the data."""
    which = torch.randint(0, len(SQUARES), (count,), generator=generator)
    return SQUARES[which].float() + torch.rand(count, 2, generator=generator)


def trained(network: Network, num_steps: int, batch: int, seed: int, spec: FlowMapSpec | None = None) -> Network:
    """An average of the weights over a training: of the velocity by the data, or of jumps by itself as a teacher."""
    teacher, generator = deepcopy(network).eval(), torch.Generator().manual_seed(seed)
    average = deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(num_steps):
        x_1 = board(batch, generator)
        x_0 = torch.randn(batch, 2, generator=generator)
        drawn = torch.rand(batch, 4, generator=generator)
        t = training_times(TimeLaw(law="uniform"), drawn[:, 0])
        point = PATH.sample(x_0, x_1, t)
        if spec is None:
            predicted, target = network(point.x_t, t, t), point.velocity
        else:
            jump = drawn_jumps(spec, t, drawn[:, 1:])
            with torch.no_grad():
                taught = teacher(point.x_t, t, t)
            by_jumps = jump_target(spec, average, point.x_t, jump)
            target = torch.where((jump.s > t)[:, None], by_jumps, taught)
            predicted = network(point.x_t, t, jump.s)
        loss = (predicted - target).square().mean()
        update(optimizer, loss, step / num_steps)
        move(average, network)
    return average


def update(optimizer: torch.optim.Optimizer, loss: Tensor, progress: float) -> None:
    """One update, at the learning rate of a cosine schedule."""
    optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * progress))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def move(average: Network, network: Network) -> None:
    """Move an average of weights."""
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 0.01)


def trained_by_matching(teacher: Network, num_steps: int, batch: int, seed: int) -> Network:
    """An average of the weights of a student by distribution matching, whose critic learns in every step."""
    generator = torch.Generator().manual_seed(seed)
    student, critic, average = (deepcopy(teacher) for _ in range(3))
    teacher = deepcopy(teacher).eval()
    of_student, of_critic = (torch.optim.Adam(network.parameters(), lr=1e-3) for network in (student, critic))
    begins = uniform_grid(MATCHED_CALLS)[:-1].float()
    for step in range(num_steps):
        noises = torch.randn(MATCHED_CALLS + 2, batch, 2, generator=generator)
        drawn = torch.rand(batch, 3, generator=generator)
        call = (drawn[:, 0] * MATCHED_CALLS).long()
        times = [t.expand(batch) for t in begins]
        x, t = simulated_states(student, PATH, noises[0], times, call, list(noises[1:MATCHED_CALLS]))
        begun, is_turn = t, step % CRITIC_UPDATES == 0
        with torch.set_grad_enabled(is_turn):
            made = flow_map(student, x, t, torch.ones(batch))
        if is_turn:
            t = matching_times(drawn[:, 1])
            with torch.no_grad():
                x_t = renoised(PATH, made, t, noises[-2])
                at = PATH.at(t, x_t)
                real, fake = at.data(x_t, teacher(x_t, t, t)), at.data(x_t, critic(x_t, t, t + begun))
            update(of_student, generator_loss(made, real, fake).mean(), step / num_steps)
        t = drawn[:, 2]
        point = PATH.sample(noises[-1], made.detach(), t)
        error = (critic(point.x_t, t, t + begun) - point.velocity).square().mean()
        update(of_critic, error, step / num_steps)
        move(average, student)
    return average


def energy_distance(x: Float[Tensor, "n 2"], y: Float[Tensor, "n 2"]) -> float:
    """Between two sets of points: 0 for equal distributions, up to the noise of the sets."""
    x, y = x[:2000], y[:2000]
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


@dataclass(frozen=True)
class Row:
    """One sampler at one price."""

    seed: int
    sampler: str
    network_calls: int
    share_inside: float
    energy_distance: float


@dataclass(frozen=True)
class Sampler:
    """How samples are made."""

    solver: Solver
    field: Field
    calls_per_step: int = 1
    grid: Callable[[int], Tensor] = uniform_grid


@torch.no_grad()
def measured(seed: int, teacher: Network, mapped: Network, matched: Network) -> list[Row]:
    """All samplers of a seed, from the same noise: of the teacher, a flow map, and a student of its distribution."""
    generator = torch.Generator().manual_seed(1000)
    noise, data = torch.randn(NUM_SAMPLES, 2, generator=generator), board(NUM_SAMPLES, generator)
    field = Field(lambda x, t: teacher(x, t, t), PATH)
    with_open_end = Field(field.function, PATH, open_end=True)
    karras = partial(karras_grid, path=PATH)

    def renewed(number: int) -> Tensor:
        return torch.randn(NUM_SAMPLES, 2, generator=torch.Generator().manual_seed(2000 + number))

    samplers = {
        "teacher, euler": Sampler(euler, field),
        "teacher, heun": Sampler(heun, field, 2),
        "teacher, heun with an Euler end": Sampler(heun, with_open_end, 2),
        "teacher, heun, Karras' grid": Sampler(heun, field, 2, karras),
        "teacher, heun with an Euler end, Karras' grid": Sampler(heun, with_open_end, 2, karras),
        "teacher, ab2": Sampler(ab2, field),
        "teacher, unipc": Sampler(unipc, field),
        "student, split": Sampler(flow_map_solver(mapped), field),
        "student, distribution matching": Sampler(renoising_solver(matched, renewed), field),
    }
    most_calls = {"student, split": 16, "student, distribution matching": MATCHED_CALLS}
    rows = []
    for name, sampler in samplers.items():
        for calls in CALLS:
            if calls % sampler.calls_per_step or calls > most_calls.get(name, calls):
                continue
            grid = sampler.grid(calls // sampler.calls_per_step).float()
            grid[0] = 0  # noise alone
            end = sampler.solver(sampler.field, noise, grid)
            rows.append(Row(seed, name, calls, share_inside(end.double()), energy_distance(end, data)))
    return rows


def main() -> None:
    """Train, measure, print, and write beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the teacher, and of the student")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--share", type=float, default=SHARE, help="of the batch that learns jumps")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        torch.manual_seed(seed)
        teacher = trained(Network(), arguments.steps, arguments.batch, seed)
        learn = partial(trained, num_steps=arguments.steps, batch=arguments.batch, seed=seed + 100)
        mapped = learn(deepcopy(teacher), spec=FlowMapSpec(consistency_share=arguments.share))
        by_distribution = trained_by_matching(teacher, arguments.steps, arguments.batch, seed + 200)
        rows += [asdict(row) for row in measured(seed, teacher, mapped, by_distribution)]
    for row in rows:
        quality = f"inside {row['share_inside']:6.1%}  energy {row['energy_distance']:.5f}"
        print(f"{row['seed']} {row['sampler']:46s} {row['network_calls']:3d} calls  {quality}")
    if (arguments.steps, arguments.batch, arguments.share) == (STEPS, BATCH, SHARE):
        earlier = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else []
        rows = [row for row in earlier if row["seed"] not in arguments.seeds] + rows
        RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
