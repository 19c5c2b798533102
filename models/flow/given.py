"""Which latent frames of training clips are given, at time 1 and without loss: drawn for each clip by itself."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.flow.spec import FlowSpec


def drawn_frames(
    spec: FlowSpec, kind: Float[Tensor, " b"], sizes: Float[Tensor, "b 2"], order: Float[Tensor, "b t"]
) -> Bool[Tensor, "b 1 t"]:
    """The given frames of clips of at least two latent frames, by the shares of `spec`; at least one is not given.

    Args:
        kind: uniform numbers in [0, 1) that decide what is given of a clip.
        sizes: such numbers that decide how many frames, and which.
        order: such numbers, by whose order the frames of a subset are chosen.
    """
    last = order.shape[1] - 1
    frame, (first_size, second_size) = torch.arange(last + 1), sizes.T[..., None]
    count = 1 + _below(last, first_size)
    gap = 1 + _below(last - 1, first_size)  # frames between the ends; where there is no room, the last one stays
    begin = 1 + _below(last - gap, second_size)
    patterns = (
        (spec.first_frame_share, frame == 0),
        (spec.given.prefix, frame < count),
        (spec.given.ends, (frame < begin) | (frame >= begin + gap)),
        (spec.given.subset, order.argsort(1).argsort(1) < count),
    )
    known, reached = torch.zeros_like(order, dtype=torch.bool), 0.0
    for share, pattern in patterns:
        chosen = (kind >= reached) & (kind < reached + share)
        known = known | (chosen[:, None] & pattern)
        reached += share
    return known[:, None]


def _below(bound: int | Tensor, uniform: Tensor) -> Tensor:
    """Whole numbers below `bound`, which are equally likely where `uniform` is uniform; 0 where `bound` is less."""
    bound = torch.as_tensor(bound)
    return (uniform * bound).long().minimum(bound - 1).clamp(min=0)
