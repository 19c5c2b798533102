"""Jumping tokens against closed forms, by their distributions rather than samples where these are finite."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from models.flow.discrete import TokenPath, chosen, masked_source, sample_tokens, token_loss, uniform_source
from testing.gaussians import steps, times

DATA = times(0.3, 0.7)
"""Probabilities of the two tokens of a chain."""


def two_states(is_masked: bool, power: float) -> tuple[TokenPath, Tensor]:
    """The path of one token, and the data's distribution over its tokens."""
    if is_masked:
        return TokenPath(masked_source(2), power), torch.cat([DATA, times(0)])
    return TokenPath(uniform_source(2), power), DATA


def exact_posterior(path: TokenPath, data: Tensor, t: Tensor) -> Tensor:
    """p(x_1 = y | x_t = x) of one token, rows by x."""
    kappa, size = path.kappa(t), len(data)
    likelihood = (1 - kappa) * path.source[:, None] + kappa * torch.eye(size, dtype=data.dtype)  # x by x_1
    joint = likelihood * data
    return joint / joint.sum(1, keepdim=True).clamp(min=1e-300)


def marginal(path: TokenPath, data: Tensor, t: Tensor) -> Tensor:
    return (1 - path.kappa(t)) * path.source + path.kappa(t) * data


each_chain = pytest.mark.parametrize("is_masked", [False, True], ids=["uniform", "masked"])
each_power = pytest.mark.parametrize("power", [1.0, 2.0, 3.0])


@each_chain
@each_power
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 50])
def test_a_chains_distribution_is_exact_after_every_step(is_masked, power, num_steps):
    """However few steps there are; a jump probability of 1 - exp(-h rate(t)) leaves an error of order h."""
    path, data = two_states(is_masked, power)
    tokens, grid = torch.arange(len(data)), steps(num_steps)
    now, by_euler = path.source, path.source
    for t, s in itertools.pairwise(grid):
        posterior = exact_posterior(path, data, t)
        now = now @ path.step(posterior, tokens, t.expand(len(data)), s.expand(len(data)))
        assert (now - marginal(path, data, s)).abs().max() < 1e-12
        jump = 1 - (-(s - t) * path.rate(t)).exp()
        by_euler = by_euler @ ((1 - jump) * torch.eye(len(data)) + jump * posterior)
        if num_steps > 2 and s == grid[-2]:
            assert (by_euler - marginal(path, data, s)).abs().max() > 1e-3
    torch.testing.assert_close(now, data, rtol=0, atol=1e-12)


@each_chain
@each_power
def test_the_rates_move_the_marginals(is_masked, power):
    """d p_t(y) / dt = sum over x of u_t(y, x) p_t(x), the Kolmogorov forward equation."""
    path, data = two_states(is_masked, power)
    for t in times(0.1, 0.5, 0.9):
        rates = path.velocity(exact_posterior(path, data, t), torch.arange(len(data)), t.expand(len(data)))
        slope = torch.func.jvp(lambda s: marginal(path, data, s), (t,), (torch.ones_like(t),))[1]
        assert (marginal(path, data, t) @ rates - slope).abs().max() < 1e-12
        assert rates.sum(1).abs().max() < 1e-12
        assert bool((rates - torch.diag(rates.diag()) >= 0).all())


@each_chain
@each_power
def test_short_steps_follow_the_rates(is_masked, power):
    path, data = two_states(is_masked, power)
    tokens, t, h = torch.arange(len(data)), times(0.4), 1e-6
    posterior = exact_posterior(path, data, t)
    identity = torch.eye(len(data), dtype=torch.float64)
    step = path.step(posterior, tokens, t.expand(len(data)), (t + h).expand(len(data)))
    torch.testing.assert_close(
        (step - identity) / h, path.velocity(posterior, tokens, t.expand(len(data))), rtol=1e-5, atol=1e-5
    )


@each_chain
@each_power
def test_going_back_is_the_path_at_the_earlier_time(is_masked, power):
    path, data = two_states(is_masked, power)
    t, r, tokens = times(0.7), times(0.5), torch.arange(len(data))
    back = path.noised(tokens, t.expand(len(data)), r.expand(len(data)))
    torch.testing.assert_close(marginal(path, data, t) @ back, marginal(path, data, r), rtol=0, atol=1e-12)


def test_masks_are_counted_by_a_binomial_at_every_time():
    """Tokens are unmasked once and stay. 1 - exp(-h rate) would leave 0.179 of them masked at t = 0.875, not 0.125."""
    path, num, length = TokenPath(masked_source(2)), 20_000, 8
    generator = torch.Generator().manual_seed(0)
    seen: list[tuple[Tensor, Tensor]] = []

    def logits(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.cat([DATA.log(), times(-1e9)]).expand(*x.shape, 3)

    start = torch.full((num, length), 2)
    end = sample_tokens(logits, path, start, steps(8), lambda _: torch.rand(num, length, generator=generator))
    for (before, _), (x, t) in itertools.pairwise(seen):
        is_mask, kappa = x == 2, t[0].item()
        counts = is_mask.sum(1).bincount(minlength=length + 1) / num
        expected = [math.comb(length, k) * (1 - kappa) ** k * kappa ** (length - k) for k in range(length + 1)]
        assert (counts - torch.tensor(expected)).abs().max() < 0.012
        assert torch.equal(torch.where(before == 2, x, before), x)
    assert seen[-1][1][0] == 0.875
    assert (seen[-1][0] == 2).double().mean().item() == pytest.approx(0.125, abs=0.004)
    assert (end == 1).double().mean().item() == pytest.approx(0.7, abs=0.01)
    rate = path.rate(steps(8)[:7])
    euler = (-rate / 8).exp().prod().item()
    assert euler == pytest.approx(0.1794, abs=1e-4)


JOINT = times(0.4, 0.1, 0.05, 0.45).reshape(2, 2)
"""Of two tokens that depend on each other."""


def logits_of_pairs(path: TokenPath, x: Tensor, t: Tensor) -> Tensor:
    """log p(x_1 | x_t) of each of the two tokens, exactly."""
    kappa, tokens = path.kappa(t[0]), torch.eye(len(path.source), dtype=torch.float64)
    likelihood = ((1 - kappa) * path.source[x][..., None] + kappa * tokens[x])[..., :2]  # b 2 x_1
    weight = JOINT * likelihood[:, 0, :, None] * likelihood[:, 1, None]  # b x_1 x_1
    each = torch.stack([weight.sum(2), weight.sum(1)], 1)  # b 2 x_1
    return torch.nn.functional.pad(each.clamp(min=1e-300).log(), (0, len(tokens) - 2), value=-1e9)


def distribution_of_pairs(path: TokenPath, num_steps: int, corrector: float) -> Tensor:
    """What `sample_tokens` draws from, by its own steps over all pairs."""
    size = len(path.source)
    x = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    now = (path.source[:, None] * path.source).flatten()

    def moved(now: Tensor, each: Tensor) -> Tensor:
        return now @ (each[:, 0, :, None] * each[:, 1, None]).flatten(1)

    grid, begin = steps(num_steps), times(0)
    for number, end in enumerate(grid[1:]):
        t, s = begin.expand(len(x)), end.expand(len(x))
        now = moved(now, path.step(path.posterior(logits_of_pairs(path, x, t), x), x, t, s))
        begin = end[None]
        if corrector and number < num_steps - 1:
            begin = (end - corrector * (end - t[0]))[None]
            now = moved(now, path.noised(x, s, begin.expand(len(x))))
    return now.reshape(size, size)[:2, :2]


@each_chain
@pytest.mark.parametrize("corrector", [0.0, 0.7])
def test_two_tokens_that_depend_on_each_other(is_masked, corrector):
    """With more steps their joint distribution comes to be the data's, with and without correction."""
    path = TokenPath(masked_source(2) if is_masked else uniform_source(2))
    errors = [(distribution_of_pairs(path, num_steps, corrector) - JOINT).abs().max().item() for num_steps in (16, 32)]
    assert errors[1] < 0.62 * errors[0] < 0.05
    num, generator = 6000, torch.Generator().manual_seed(1)

    def draw(_: int) -> Tensor:
        return torch.rand(num, 2, generator=generator, dtype=torch.float64)

    network = lambda x, t: logits_of_pairs(path, x, t)  # noqa: E731
    end = sample_tokens(network, path, path.start(draw(0)), steps(16), draw, corrector=corrector)
    found = (2 * end[:, 0] + end[:, 1]).bincount(minlength=4) / num
    torch.testing.assert_close(
        found.double(), distribution_of_pairs(path, 16, corrector).flatten(), rtol=0, atol=4 * 0.5 / num**0.5
    )


def test_temperature_sharpens():
    path = TokenPath(masked_source(2))
    x, logits = torch.tensor([[2, 1]]), torch.cat([DATA.log(), times(-1e9)]).expand(1, 2, 3)
    powered = DATA**2 / (DATA**2).sum()
    posterior = path.posterior(logits, x, temperature=0.5)
    torch.testing.assert_close(posterior[0, 0, :2], powered)
    assert posterior[0, 1].tolist() == [0, 1, 0]  # it came from the data


def test_the_bound_of_one_token_is_its_log_likelihood():
    """The mean over x_t is exact; that over t is by midpoints, on which the integrand does not depend."""
    path = TokenPath(masked_source(2), power=2.0)
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = torch.cat([DATA.log(), times(-1e9)]).expand(1000, 1, 3)
    for token in (0, 1):
        x_1 = torch.full((1000, 1), token)
        masked = token_loss(path, logits, torch.full((1000, 1), 2), x_1, t, is_bound=True)
        assert bool((token_loss(path, logits, x_1, x_1, t, is_bound=True) == 0).all())
        bound = ((1 - path.kappa(t)) * masked).mean()
        assert bound.item() == pytest.approx(-DATA[token].log().item(), abs=1e-6)


def test_tokens_are_drawn_with_their_probabilities():
    probabilities = times(0.0, 0.25, 0.0, 0.75, 0.0)
    uniform = times(0.0, 0.2499, 0.25, 0.999999999)
    assert chosen(probabilities.expand(4, 5), uniform).tolist() == [1, 1, 3, 3]
    path, u = TokenPath(uniform_source(4)), (torch.arange(400) + 0.5).double() / 400
    assert path.start(u).bincount().tolist() == [100] * 4
    x_0, x_1 = torch.zeros(400, dtype=torch.long), torch.ones(400, dtype=torch.long)
    assert path.sample(x_0, x_1, times(0.3).expand(400), u).sum() == 120
