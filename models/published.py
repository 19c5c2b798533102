"""How the tensors of a published model correspond to those of a network of ours.

A published file may hold in several tensors what is one weight here, such as the projections to queries, keys and
values, and the same values in another shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class PublishedTensor:
    """A tensor of a published model."""

    name: str
    shape: tuple[int, ...]


Correspondence = Mapping[str, Sequence[PublishedTensor]]
"""Weight of ours -> the published tensors that are its parts: concatenated along the first axis, then reshaped."""


def join_parts(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The weight of ours, of that shape, from the published tensors."""
    return torch.cat(list(parts)).reshape(tuple(shape))


def split_parts(weight: Tensor, parts: Sequence[PublishedTensor]) -> dict[str, Tensor]:
    """The inverse of `join_parts`: the published tensors by name."""
    pieces = weight.flatten().split([prod(part.shape) for part in parts])
    return {part.name: piece.reshape(part.shape) for part, piece in zip(parts, pieces, strict=True)}
