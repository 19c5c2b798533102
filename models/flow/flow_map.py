"""Flow maps: a network that jumps along the flow from any time to any later one, for clips in a few network calls.

    X(x, t, s) = x + (s - t) u(x, t, s)

takes the state x at time t to where the flow has it at time s. The network u is the mean velocity in between:
u(x, t, t) is the velocity of the flow, and two jumps are one,

    (s - t) u(x, t, s) = (q - t) u(x, t, q) + (s - q) u(X(x, t, q), q, s)        for every q in [t, s].

So u learns from itself: the right side, without a gradient, is the target of the left one (Boffi, Albergo &
Vanden-Eijnden 2025, "How to build a consistency model", arXiv 2505.18825, section 3; Frans et al. 2024, "shortcut
models", eq. 5). Nothing is differentiated along the flow, which attention kernels and ZeRO do not support.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.field import Field
from models.flow.path import expand
from models.flow.solver import Step, integrate
from models.flow.spec import FlowMapSpec

MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x, t, s): x is (b ...), and both times broadcast from the left over it."""


def flow_map(u: MeanVelocity, x: Float[Tensor, "b ..."], t: Tensor, s: Tensor) -> Float[Tensor, "b ..."]:
    """X(x, t, s): where the flow takes the state `x` of time `t` until time `s`."""
    return x + expand((s - t).to(x), x) * u(x, t, s).to(x)


def flow_map_steps(u: MeanVelocity, field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """A solver whose steps are jumps, one network call each; with an exact u every grid has the same end.

    Args:
        field: what is called at the start and the end of each step; its velocity is not.
    """

    def advance(x: Tensor, step: Step) -> Tensor:
        return flow_map(u, x, step.t, step.t_next)

    return integrate(advance, field, x, grid)


@dataclass(frozen=True)
class Jump:
    """Jumps from t to s, and the times q between them at which each is taken apart; all of the shape of t."""

    t: Tensor
    q: Tensor
    s: Tensor

    def to(self, device: torch.device) -> "Jump":
        """The same jumps on another device."""
        return Jump(self.t.to(device), self.q.to(device), self.s.to(device))

    @property
    def share(self) -> Tensor:
        """(q - t) / (s - t), the share of the first half; 0 where the jump has no length."""
        length = self.s - self.t
        return torch.where(length > 0, (self.q - self.t) / length.clamp(min=1e-12), torch.zeros_like(length))


def drawn_jumps(spec: FlowMapSpec, t: Tensor, uniform: Float[Tensor, "b 3"]) -> Jump:
    """Jumps that begin at the training times `t`; of `1 - consistency_share` of the samples they have no length.

    Those are where u learns the velocity. The end s is uniform in [t, 1], and q is as `spec.consistency` says.

    Args:
        t: one per sample or per frame, where frames that are given have 1.
        uniform: numbers in [0, 1).
    """
    kind, end, middle = (number.reshape(-1, *[1] * (t.ndim - 1)).to(t) for number in uniform.unbind(1))
    s = torch.where(kind < spec.consistency_share, t + (1 - t) * (1 - end), t)
    if spec.consistency == "lagrangian":
        return Jump(t, torch.maximum(t, s - spec.lagrangian_step), s)
    return Jump(t, t + (s - t) * middle, s)


@torch.no_grad()
def jump_target(spec: FlowMapSpec, u: MeanVelocity, x_t: Float[Tensor, "b ..."], jump: Jump) -> Tensor:
    """What u(x_t, t, s) should be by two shorter jumps, of u as it is.

    split: both are jumps (the semigroup identity above). lagrangian: the second is short, and is a step along the
    velocity u(x, q, q) there; for steps that vanish this is d X(x, t, s) / ds = v(X(x, t, s), s) (Boffi et al. 2025,
    section 3.1, with a difference in place of the derivative).
    """
    share = expand(jump.share.to(x_t), x_t)
    first = u(x_t, jump.t, jump.q).to(x_t)
    middle = x_t + expand((jump.q - jump.t).to(x_t), x_t) * first
    until = jump.q if spec.consistency == "lagrangian" else jump.s
    return share * first + (1 - share) * u(middle, jump.q, until).to(x_t)


def flow_map_solver(u: MeanVelocity) -> Callable[[Field, Tensor, Tensor], Tensor]:
    """`flow_map_steps` of a network, as a `Solver`."""
    return partial(flow_map_steps, u)
