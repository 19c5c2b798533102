"""Finite scalar quantisation (Mentzer et al. 2023): each channel of a code is rounded to one of a few levels.

    f(z) = (L - 1) / 2 tanh(z + s) - o         bounds a channel with L levels; s and o centre it where L is even
    code = round(f(z)) / floor(L / 2)           between -1 and 1, with the gradient of f

The vocabulary is the product of the levels, and every code of it can be reached: there is no codebook to learn, none
of whose entries can die, and no loss beside that of the reconstruction. Codes lie along the last axis.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MARGIN = 1e-3
"""Share by which the bound lies beyond the outermost levels, so that they are reached, and nothing rounds past them."""


def bounded(z: Float[Tensor, "*n d"], levels: Sequence[int]) -> Float[Tensor, "*n d"]:
    """f(z), which rounds to L integers: -L / 2 to L / 2 - 1 for even L, otherwise -(L - 1) / 2 to (L - 1) / 2."""
    count = torch.tensor(levels, dtype=z.dtype, device=z.device)
    half = (count - 1) * (1 + MARGIN) / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0).to(z)
    return half * (z + (offset / half).atanh()).tanh() - offset


def quantized(z: Float[Tensor, "*n d"], levels: Sequence[int]) -> Float[Tensor, "*n d"]:
    """The code next to f(z), in [-1, 1], with the gradient of f (the straight-through estimator)."""
    inside = bounded(z, levels)
    rounded = inside + (inside.round() - inside).detach()
    return rounded / torch.tensor([level // 2 for level in levels], device=z.device)


def tokens_of(codes: Float[Tensor, "*n d"], levels: Sequence[int]) -> Int[Tensor, "*n"]:
    """The number of each code: its levels are the digits, the first one counts ones."""
    half = torch.tensor([level // 2 for level in levels], device=codes.device)
    digits = (codes * half).round().long() + half
    return (digits * _places(levels, codes.device)).sum(-1)


def codes_of(tokens: Int[Tensor, "*n"], levels: Sequence[int]) -> Float[Tensor, "*n d"]:
    """The inverse of `tokens_of`."""
    half = torch.tensor([level // 2 for level in levels], device=tokens.device)
    count = torch.tensor(levels, device=tokens.device)
    digits = tokens[..., None] // _places(levels, tokens.device) % count
    return (digits - half) / half


def _places(levels: Sequence[int], device: torch.device) -> Int[Tensor, " d"]:
    """What a digit of each channel counts."""
    return torch.tensor([1, *levels[:-1]], device=device).cumprod(0)
