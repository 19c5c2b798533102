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

from models.networks.dit_options import RopeConfig

DEFAULT = RopeConfig()
CPU = torch.device("cpu")


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels for time, height, width: even numbers that add up to `head_dim`, time getting about a quarter."""
    spatial = head_dim * 3 // 8 // 2 * 2
    return head_dim - 2 * spatial, spatial, spatial


def rope_angles(
    grid: tuple[int, int, int], head_dim: int, device: torch.device = CPU, rope: RopeConfig = DEFAULT
) -> Float[Tensor, "n half"]:
    """Rotation angle of each channel pair for every token of a (t, h, w) grid, in token order.

    Along an axis that is s times as long as in `rope.trained_grid`, position interpolation divides positions by s
    (Chen et al. 2023, arXiv 2306.15595, eq. 4), and NTK-aware scaling multiplies theta by s^(d / (d - 2)) for the d
    channels of the axis (Peng et al. 2023, arXiv 2309.00071, eq. 16): the slowest pair is interpolated, the fastest
    one is unchanged.

    The result is cached, so do not write into it.
    """
    stretches = [max(1.0, length / trained) for length, trained in zip(grid, rope.trained_grid or grid, strict=True)]
    divisors = tuple(stretches) if rope.extrapolation == "interpolate" else (1.0, 1.0, 1.0)
    slowdowns = tuple(stretches) if rope.extrapolation == "ntk" else (1.0, 1.0, 1.0)
    return _angles(grid, rope.axes or axis_widths(head_dim), rope.theta, divisors, slowdowns, device)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # cached angles must work in training too, even if sampling computed them
def _angles(
    grid: tuple[int, int, int],
    widths: tuple[int, int, int],
    theta: float,
    divisors: tuple[float, ...],
    slowdowns: tuple[float, ...],
    device: torch.device,
) -> Float[Tensor, "n half"]:
    """Positions over `divisors`, times frequencies, of which the slowest of each axis is divided by `slowdowns`."""
    angles = []
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in grid), indexing="ij")
    for positions, width, divisor, slowdown in zip(axes, widths, divisors, slowdowns, strict=True):
        numbers = torch.arange(0, width, 2, dtype=torch.float32)
        frequencies = theta ** -(numbers / max(width, 1)) * slowdown ** -(numbers / max(width - 2, 1))
        angles.append(rearrange(positions / divisor, "t h w -> (t h w) 1") * frequencies)
    return torch.cat(angles, dim=-1).to(device)


def rotate(x: Float[Tensor, "b n heads d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "b n heads d"]:
    """Rotate queries or keys by their token's angles; channel i is paired with channel i + d/2."""
    cos, sin = (rearrange(part, "n half -> n 1 half").to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
