"""Which latent frames of a clip are given, as the first one is for image to video, told to a network.

A given frame is data: x_t holds it as it is, at time 1. A network with `known_frames: channels` also gets the given
frames and a mask beside x_t (Wan team 2025, arXiv 2503.20314, section 5.1; Polyak et al. 2024, "Movie Gen", section 6,
on conditions as channels), so that a frame that is given differs from one that has just become clean.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from models.networks.dit_options import KnownFrames


def input_channels(channels: int, known_frames: KnownFrames) -> int:
    """Channels of a network's input for latents of `channels`: beside them, those of the given frames and the mask."""
    return channels if known_frames == "time" else 2 * channels + 1


def with_known_channels(
    x: Float[Tensor, "b c t h w"], known: Bool[Tensor, "given 1 t"] | None
) -> Float[Tensor, "b channels t h w"]:
    """x_t, followed by the given frames, zero elsewhere, and a channel that is 1 in them and 0 elsewhere.

    Args:
        known: the latent frames that are given, of each clip or one for all; None: there are none.
    """
    if known is None:
        known = torch.zeros(1, 1, x.shape[2], dtype=torch.bool, device=x.device)
    mask = rearrange(for_batch(known, len(x)), "b 1 t -> b 1 t 1 1")
    return torch.cat([x, torch.where(mask, x, 0.0), mask.to(x).expand_as(x[:, :1])], dim=1)


def for_batch(part: Tensor, size: int) -> Tensor:
    """A condition with an entry for each clip, or one for all, for a batch that holds the clips once or several times.

    Guidance makes such batches: all clips with their captions, then all clips without.
    """
    return part.repeat(size // len(part), *(1 for _ in part.shape[1:]))
