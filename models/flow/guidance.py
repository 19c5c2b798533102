"""Classifier-free guidance: follow the caption more closely than the data does.

    v = v_uncond + scale * (v_cond - v_uncond)        (Holderrieth & Erives 2025, section 4.2)

Scale 1 is no guidance.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from models.text import CaptionTokens

Network = Callable[[Tensor, Tensor, CaptionTokens], Tensor]
Velocity = Callable[[Tensor, Tensor], Tensor]


def guide(v_cond: Float[Tensor, "b ..."], v_uncond: Float[Tensor, "b ..."], scale: float) -> Float[Tensor, "b ..."]:
    """The guided velocity."""
    return v_uncond + scale * (v_cond - v_uncond)


def guided_velocity(network: Network, caption: CaptionTokens, null: CaptionTokens, scale: float) -> Velocity:
    """The velocity field a solver integrates: network and captions bound, guidance applied.

    One network call per evaluation: both branches share a batch. At scale 1 the null branch, and at
    scale 0 the caption's branch, has no weight and is not computed.
    """
    if scale in (0.0, 1.0):
        only = caption if scale == 1.0 else null
        return lambda x, t: network(x, t, only).float()
    both = CaptionTokens.cat([caption, null])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v_cond, v_uncond = network(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        return guide(v_cond, v_uncond, scale)

    return velocity
