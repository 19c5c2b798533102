"""Guidance by the gradient of a classifier of noisy states (Dhariwal & Nichol 2021, algorithm 2; Song et al. 2021, 5).

    v(x | y) = v(x) + scale (a' b - a b') b / a  grad log p(y | x_t = x)

(Holderrieth & Erives 2025, section 4.2): the gradient adds to the score, and the factor is dv / dscore. At scale 1 and
with the exact classifier it is the velocity of the condition; classifier-free guidance has two networks' difference in
its place.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.flow.field import Field
from models.flow.path import nonzero

EARLIEST = 1e-3
"""Time at which the classifier is asked before it: at t = 0 the state is noise alone, and 0 / 0 has a limit."""


def with_classifier(field: Field, log_probability: Callable[[Tensor, Tensor], Tensor], scale: float) -> Field:
    """The guided field. The classifier has a backward pass per call, also where gradients are off.

    Args:
        log_probability: log p(y | x_t) of each sample, (b), from the state and the time.
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked = t.clamp(min=EARLIEST)
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(state, asked).sum(), state)
        at = field.path.at(asked, x)
        factor = at.scaled_determinant * torch.where(at.scale == at.b, 1.0, at.b / nonzero(at.scale)) / nonzero(at.a)
        return field.velocity(x, t) + scale * factor * gradient.to(x)

    return replace(field, function=velocity, prediction="velocity", open_end=field.has_open_end)
