"""Captions one after the other, without their padding."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from models.attention.packed import Segments


@dataclass(frozen=True)
class CaptionPacking:
    """Which tokens of a padded batch of captions are no padding, and how many each caption has."""

    tokens: Int[Tensor, " n"]  # their numbers in the flattened batch (b m)
    segments: Segments

    @staticmethod
    def of(mask: Bool[Tensor, "b m"]) -> "CaptionPacking":
        """Of captions with this mask, on its device; waits for the device if that is a GPU."""
        return CaptionPacking(mask.flatten().nonzero()[:, 0], Segments.of(mask.sum(1).tolist(), mask.device))

    def to(self, device: torch.device | str) -> "CaptionPacking":
        """The same packing on another device."""
        return CaptionPacking(self.tokens.to(device), self.segments.to(device))

    def pack(self, x: Shaped[Tensor, "b m d"]) -> Shaped[Tensor, "1 n d"]:
        """The vectors at these tokens, as one packed sequence."""
        return rearrange(rearrange(x, "b m d -> (b m) d")[self.tokens], "n d -> 1 n d")

    def strongest(self, x: Float[Tensor, "1 n d"]) -> Float[Tensor, "b d"]:
        """The maximum over the tokens of each caption; zero for one without tokens."""
        captions = x[0].float().split(self.segments.lengths)
        return torch.stack([x.amax(0) if len(x) else x.new_zeros(x.shape[1]) for x in captions])

    def by_token(self, x: Shaped[Tensor, "1 b d"]) -> Shaped[Tensor, "1 n d"]:
        """A caption's vector for each of its tokens."""
        parts = zip(x.split(1, dim=1), self.segments.lengths, strict=True)
        return torch.cat([vector.expand(-1, length, -1) for vector, length in parts], dim=1)
