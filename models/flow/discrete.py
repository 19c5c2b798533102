"""Discrete flow matching: tokens that jump from noise to data, a continuous-time Markov chain for each position.

    p_t(x | x_1) = (1 - kappa) p_0(x) + kappa delta_{x_1}(x)          the path of one token, kappa from 0 to 1
    u_t(y, x) = kappa' / (1 - kappa) (p(x_1 = y | x_t) - delta_x(y))   its rate of jumps from x to y

(Gat et al. 2024, "Discrete Flow Matching", eq. 8 and 14; Holderrieth & Erives, chapter on discrete states). The source
p_0 is any distribution of a token: all mass on a mask (masked diffusion), or uniform. A network gives the distribution
of every token of the data, from all tokens of x_t. Tokens are numbers from 0; a mask is the last one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from models.flow.path import expand

Logits = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b ...), t (b)) -> logits of the tokens of the data, (b ... k)."""
Uniform = Callable[[int], Tensor]
"""Step number -> numbers in [0, 1) of the state's shape."""


def masked_source(num_tokens: int) -> Float[Tensor, " k"]:
    """All mass on a mask that follows the `num_tokens` tokens of the data."""
    return one_hot(torch.tensor(num_tokens), num_tokens + 1).double()


def uniform_source(num_tokens: int) -> Float[Tensor, " k"]:
    """Equal probabilities."""
    return torch.full((num_tokens,), 1 / num_tokens, dtype=torch.float64)


@dataclass(frozen=True)
class TokenPath:
    """The mixture path with kappa(t) = t^power, from a source of independent tokens."""

    source: Float[Tensor, " k"]
    """Probability of each token."""
    power: float = 1.0

    def kappa(self, t: Tensor) -> Tensor:
        """Share of the tokens that come from the data."""
        return t**self.power

    def rate(self, t: Tensor) -> Tensor:
        """kappa' / (1 - kappa): jumps per unit of time, and the weight of the variational bound; infinite at t = 1."""
        return self.power * t ** (self.power - 1) / (1 - self.kappa(t))

    def jump_probability(self, t: Tensor, s: Tensor) -> Tensor:
        """That a token jumps between two times: 1 - exp of the integral of -rate, exactly, and 1 where s = 1.

        With it the tokens have the distribution of the path at every time of any grid. 1 - exp(-h rate(t)) has an error
        of order h, and so has h rate(t) where the power is not 1.
        """
        return (self.kappa(s) - self.kappa(t)) / (1 - self.kappa(t))

    def start(self, uniform: Float[Tensor, "b ..."]) -> Int[Tensor, "b ..."]:
        """Tokens of the source."""
        return chosen(self.source.to(uniform).expand(*uniform.shape, -1), uniform)

    def sample(
        self, x_0: Int[Tensor, "b ..."], x_1: Int[Tensor, "b ..."], t: Tensor, uniform: Float[Tensor, "b ..."]
    ) -> Int[Tensor, "b ..."]:
        """Tokens x_t: each of the data with probability kappa, else of the source."""
        return torch.where(uniform < expand(self.kappa(t).to(uniform), uniform), x_1, x_0)

    def posterior(
        self, logits: Float[Tensor, "b ... k"], x: Int[Tensor, "b ..."], temperature: float = 1.0
    ) -> Float[Tensor, "b ... k"]:
        """p(x_1 | x_t) by a network: a token that the source never has came from the data, and stays.

        Args:
            temperature: divides the logits: below 1 likely tokens become likelier.
        """
        probabilities = (logits / temperature).softmax(-1)
        comes_from_data = self.source.to(logits.device)[x] == 0
        return torch.where(comes_from_data[..., None], one_hot(x, logits.shape[-1]).to(logits), probabilities)

    def velocity(self, posterior: Float[Tensor, "b ... k"], x: Int[Tensor, "b ..."], t: Tensor) -> Tensor:
        """u_t(y, x) for all y: the rate of each jump, and minus their sum at y = x."""
        rate = expand(self.rate(t).to(posterior), posterior)
        return rate * (posterior - one_hot(x, posterior.shape[-1]).to(posterior))

    def step(
        self, posterior: Float[Tensor, "b ... k"], x: Int[Tensor, "b ..."], t: Tensor, s: Tensor
    ) -> Float[Tensor, "b ... k"]:
        """Distribution of the tokens at time s after x at time t."""
        jump = expand(self.jump_probability(t, s).to(posterior), posterior)
        return (1 - jump) * one_hot(x, posterior.shape[-1]).to(posterior) + jump * posterior

    def noised(self, x: Int[Tensor, "b ..."], t: Tensor, r: Tensor) -> Float[Tensor, "b ... k"]:
        """Distribution of the tokens at an earlier time r of the path, from x at time t > 0."""
        kept = self.kappa(r) / self.kappa(t)
        tokens = one_hot(x, len(self.source)).to(self.source)
        kept = expand(kept.to(tokens), tokens)
        return kept * tokens + (1 - kept) * self.source


def chosen(probabilities: Float[Tensor, "*n k"], uniform: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Tokens of these distributions, by the inverse of their cumulative sums."""
    below = probabilities.cumsum(-1) <= uniform[..., None] * probabilities.sum(-1, keepdim=True)
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(-1)  # that has any mass
    return below.sum(-1).minimum(last)


def token_loss(
    path: TokenPath,
    logits: Float[Tensor, "b ... k"],
    x_t: Int[Tensor, "b ..."],
    x_1: Int[Tensor, "b ..."],
    t: Float[Tensor, " b"],
    *,
    is_bound: bool = False,
) -> Float[Tensor, " b"]:
    """Cross-entropy of the tokens that may come from the source, the mean over each sample (Gat et al. 2024, eq. 24).

    Args:
        is_bound: weigh it by the rate and sum it over tokens. Of a masked source, its mean over uniform t and x_t is
            then an upper bound on -log p(x_1) in nats (Shi et al. 2024, "MD4", eq. 5).
    """
    loss = cross_entropy(logits.flatten(0, -2), x_1.flatten(), reduction="none").reshape(x_1.shape)
    open_tokens = (path.source.to(logits.device)[x_t] > 0).to(loss)
    total = (loss * open_tokens).flatten(1).sum(1)
    return path.rate(t).to(loss) * total if is_bound else total / open_tokens.flatten(1).sum(1).clamp(min=1)


@torch.no_grad()
def sample_tokens(
    logits: Logits,
    path: TokenPath,
    x: Int[Tensor, "b ..."],
    grid: Float[Tensor, " n"],
    uniform: Uniform,
    temperature: float = 1.0,
    corrector: float = 0.0,
) -> Int[Tensor, "b ..."]:
    """Jump from the source at grid[0] to the data at grid[-1], all positions at once, in a network call per step.

    Args:
        uniform: gives the numbers of step k at 2 k, and of its corrector at 2 k + 1.
        corrector: share of each step that is gone back afterwards, in [0, 1): tokens return to the source at random and
            are drawn anew with the next step. It leaves the path's distribution as it is, and lets the network change
            tokens that it chose when it knew less (Gat et al. 2024, eq. 22, in steps that are exact).
    """
    begin = grid[0]
    for number, end in enumerate(grid[1:]):
        t = begin.expand(len(x))
        posterior = path.posterior(logits(x, t), x, temperature)
        x = chosen(path.step(posterior, x, t, end.expand(len(x))), uniform(2 * number).to(posterior))
        if corrector > 0 and number < len(grid) - 2:
            back = end - corrector * (end - begin)
            noised = path.noised(x, end.expand(len(x)), back.expand(len(x)))
            x = chosen(noised, uniform(2 * number + 1).to(noised))
            begin = back
        else:
            begin = end
    return x
