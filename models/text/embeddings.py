"""Captions as the embeddings of a frozen, pretrained encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.layers import RMSNorm
from models.text.blocks import TextBlock
from models.text.config import TextConfig
from models.text.packing import CaptionPacking


@dataclass(frozen=True)
class CaptionEmbeddings:
    """A batch of captions as embeddings of a pretrained encoder."""

    values: Float[Tensor, "b n e"]  # zero at padding
    mask: Bool[Tensor, "b n"]  # True at real tokens

    @staticmethod
    def cat(batches: Sequence["CaptionEmbeddings"]) -> "CaptionEmbeddings":
        """One batch out of several of equal padded length."""
        return CaptionEmbeddings(torch.cat([b.values for b in batches]), torch.cat([b.mask for b in batches]))

    def replaced(self, where: Bool[Tensor, " b"], other: "CaptionEmbeddings") -> "CaptionEmbeddings":
        """These captions, replaced by `other` (a batch of one) where `where` is True."""
        return CaptionEmbeddings(
            torch.where(where[:, None, None], other.values, self.values),
            torch.where(where[:, None], other.mask, self.mask),
        )

    def to(self, device: torch.device | str) -> "CaptionEmbeddings":
        """The same captions on another device."""
        return CaptionEmbeddings(self.values.to(device), self.mask.to(device))


class EmbeddedCaptionEncoder(nn.Module):
    """Embeddings of a pretrained encoder to one vector per token of the network's text width.

    The blocks are trained with the network, so that the frozen encoder's features adapt to what videos show.
    """

    def __init__(self, config: TextConfig, embedding_width: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(embedding_width)  # encoders differ in scale by orders of magnitude
        self.project = nn.Linear(embedding_width, config.width)
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)

    def forward(self, caption: CaptionEmbeddings, packing: CaptionPacking | None = None) -> Float[Tensor, "b n d"]:
        """Encode; vectors at padding are meaningless, and must be masked where they are used.

        Args:
            packing: of the captions; the result is then one packed sequence (b = 1), computed without padding.
        """
        values = caption.values if packing is None else packing.pack(caption.values)
        x = self.project(self.input_norm(values.float()))
        for block in self.blocks:
            x = block(x, caption.mask if packing is None else packing.segments)
        return self.norm(x)
