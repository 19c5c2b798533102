"""Rotary position embedding in three dimensions (Su et al. 2021, eq. 34, applied per axis).

Each head's channels are split between time, height and width; within a share, channel pairs are
rotated by angles proportional to the position along that axis, so that a dot product of two tokens
depends on their offset only.
"""

from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

CPU = torch.device("cpu")


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels for time, height, width: even numbers that add up to `head_dim`, time getting about a quarter."""
    spatial = head_dim * 3 // 8 // 2 * 2
    return head_dim - 2 * spatial, spatial, spatial


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # cached angles must work in training too, even if sampling computed them
def rope_angles(
    grid: tuple[int, int, int], head_dim: int, device: torch.device = CPU, theta: float = 100.0
) -> Float[Tensor, "n half"]:
    """Rotation angle of each channel pair for every token of a (t, h, w) grid, in token order.

    The result is cached, so do not write into it.

    Args:
        theta: the longest wavelength is about 2 pi theta tokens; clips are far shorter than texts.
    """
    angles = []
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in grid), indexing="ij")
    for positions, width in zip(axes, axis_widths(head_dim), strict=True):
        frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles.append(rearrange(positions, "t h w -> (t h w) 1") * frequencies)
    return torch.cat(angles, dim=-1).to(device)


def rotate(x: Float[Tensor, "b n heads d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "b n heads d"]:
    """Rotate queries or keys by their token's angles; channel i is paired with channel i + d/2."""
    cos, sin = (rearrange(part, "n half -> n 1 half").to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
