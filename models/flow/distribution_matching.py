"""Distribution matching distillation: a generator of few network calls, whose samples have a teacher's distribution.

The gradient of the Kullback-Leibler divergence between noised samples and noised data is a difference of two scores at
a noised sample x_t (Yin et al. 2023, "One-step diffusion with distribution matching distillation", eq. 7). One is the
teacher's; the other is that of a critic, which learns the flow of the samples as they are. In estimates of the data,

    score = (a E[x_1 | x_t] - x_t) / b²,   so that   fake score - real score = a / b² (fake - real).

Nothing is asked of single samples: no noise has a clip that it has to become, and no pairs are stored. The generator is
a flow map whose jumps all end at the data, X(x, t, 1). Between two calls its samples are noised anew, and it is trained
where it arrives itself by that (Yin et al. 2024, "Improved distribution matching distillation", 4.4 and 4.5).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.flow.field import Field
from models.flow.flow_map import MeanVelocity, flow_map
from models.flow.path import Path, expand
from models.flow.solver import Noise, Step, integrate

FIRST_TIME, LAST_TIME = 0.02, 0.98
"""Between which samples are noised (Yin et al. 2023, appendix): at the ends, all estimates of the data are equal."""


def matching_times(t: Tensor) -> Tensor:
    """Training times, moved to where a teacher and a critic can differ."""
    return t.clamp(FIRST_TIME, LAST_TIME)


def renoised(path: Path, x: Float[Tensor, "b ..."], t: Tensor, noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """States of time t whose noise is new, of samples `x`, which are states of time 1; at t = 1 they stay as they are.

    Args:
        t: broadcasts from the left over `x`. noise: standard normal.
    """
    end, at = path.at(torch.ones_like(t), x), path.at(t, x)
    kept = at.a / end.a
    return kept * x + (at.b**2 - (kept * end.b) ** 2).clamp_min(0).sqrt() * noise


def renoised_steps(
    u: MeanVelocity, noise: Noise, field: Field, x: Float[Tensor, "b ..."], grid: Tensor
) -> Float[Tensor, "b ..."]:
    """A solver of one call a step: to the data at once, and back to the next time by fresh noise.

    Args:
        noise: gives the standard normal numbers of each step.
        field: what is called at the start and the end of each step, with its path; its velocity is not.
    """

    def advance(x: Tensor, step: Step) -> Tensor:
        data = flow_map(u, x, step.t, torch.ones_like(step.t))
        if bool((step.t_next == 1).all()):
            return data
        return renoised(field.path, data, step.t_next, noise(step.number).to(x))

    return integrate(advance, field, x, grid)


def renoising_solver(u: MeanVelocity, noise: Noise) -> Callable[[Field, Tensor, Tensor], Tensor]:
    """`renoised_steps` of a network, as a `Solver`."""
    return partial(renoised_steps, u, noise)


@torch.no_grad()
def simulated_states(
    u: MeanVelocity,
    path: Path,
    x_0: Float[Tensor, "b ..."],
    times: Sequence[Tensor],
    call: Int[Tensor, " b"],
    noises: Sequence[Tensor],
) -> tuple[Float[Tensor, "b ..."], Tensor]:
    """Where call number `call` of each sample begins: its state, and the time there (backward simulation).

    They are the states of `renoised_steps` with the generator as it is. All calls but the last are made for all
    samples, whichever is wanted.

    Args:
        times: at which calls begin, from 0; each broadcasts from the left over the state.
        call: from 0.
        noises: one before each call but the first.
    """
    x, t = x_0, times[0]
    state, time = x, t
    for number, (t_next, noise) in enumerate(zip(times[1:], noises, strict=True), 1):
        x = renoised(path, flow_map(u, x, t, torch.ones_like(t)), t_next, noise)
        t = t_next
        wanted = call == number
        state, time = torch.where(expand(wanted, x), x, state), torch.where(expand(wanted, t), t, time)
    return state, time


@torch.no_grad()
def matching_gradient(
    x: Float[Tensor, "b ..."],
    real: Float[Tensor, "b ..."],
    fake: Float[Tensor, "b ..."],
    known: Bool[Tensor, "b 1 t"] | None = None,
) -> Float[Tensor, "b ..."]:
    """The direction away from the data at samples `x`, in units of how far each of them is (Yin et al. 2023, eq. 8).

    (fake - real) / mean |x - real|; of its expectation over times, the generator's distribution is a zero where it is
    that of the teacher.

    Args:
        real, fake: estimates of the data of noised `x`, by the teacher and by the critic.
        known: frames that are given, where there is no gradient; None: there are none.
    """
    distance = mean_of_made((x - real).abs(), known)
    gradient = (fake - real) / expand(distance, x).clamp_min(torch.finfo(x.dtype).eps)
    return gradient if known is None else torch.where(expand(known, x), 0.0, gradient)


def generator_loss(
    x: Float[Tensor, "b ..."],
    real: Float[Tensor, "b ..."],
    fake: Float[Tensor, "b ..."],
    known: Bool[Tensor, "b 1 t"] | None = None,
) -> Float[Tensor, " b"]:
    """A loss of each sample whose gradient at the sample is `matching_gradient` over its number of values.

    It is half of the mean squared distance to where one step along that gradient leads. Arguments as there.
    """
    target = x.detach() - matching_gradient(x, real, fake, known)
    return mean_of_made((x - target).square() / 2, known)


def mean_of_made(x: Float[Tensor, "b ..."], known: Bool[Tensor, "b 1 t"] | None) -> Float[Tensor, " b"]:
    """The mean of each sample, without the frames that are given."""
    if known is None:
        return x.flatten(1).mean(1)
    share = 1 - known.float().mean((1, 2))
    return torch.where(expand(known, x), 0.0, x).flatten(1).mean(1) / share
