"""Captions as bytes, and the small transformer that encodes them and is trained together with the network.

No vocabulary is downloaded: UTF-8 has 256 byte values, and two more tokens mark the end of a caption and the padding.
Hashed n-grams of bytes help to recognise words (Pagnoni et al. 2024, "Byte Latent Transformer", section 3.2.1). The
alternative is a frozen, pretrained encoder (`models/text/pretrained.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.layers import Embedding, RMSNorm
from models.text.blocks import TextBlock
from models.text.config import TextConfig
from models.text.packing import CaptionPacking

END, PAD, VOCABULARY = 256, 257, 258
NGRAM_LENGTHS = (3, 5)


@dataclass(frozen=True)
class CaptionTokens:
    """A batch of captions as padded byte numbers."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]  # True at real tokens

    @staticmethod
    def encode(captions: Sequence[str], max_bytes: int) -> "CaptionTokens":
        """Bytes, truncated to `max_bytes`, then an end token, then padding. The empty caption is one end token.

        The padded length is always max_bytes + 1, so that a caption is encoded the same in any batch.
        """
        ids = torch.full((len(captions), max_bytes + 1), PAD, dtype=torch.long)
        for row, caption in enumerate(captions):
            tokens = [*caption.encode("utf-8")[:max_bytes], END]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return CaptionTokens(ids, ids != PAD)

    @staticmethod
    def cat(batches: Sequence["CaptionTokens"]) -> "CaptionTokens":
        """One batch out of several of equal padded length."""
        return CaptionTokens(torch.cat([b.ids for b in batches]), torch.cat([b.mask for b in batches]))

    def to(self, device: torch.device | str) -> "CaptionTokens":
        """The same captions on another device."""
        return CaptionTokens(self.ids.to(device), self.mask.to(device))


def ngram_hashes(ids: Int[Tensor, "b n"], length: int, buckets: int) -> Int[Tensor, "b n"]:
    """A bucket number for the `length` bytes that end at each position (fewer at the start)."""
    value = torch.zeros_like(ids)
    for back in range(length):
        shifted = nn.functional.pad(ids, (back, 0), value=PAD)[:, : ids.shape[1]]
        value = (value * 1_000_003 + shifted + 1) % 2_147_483_629  # a prime below 2^31: the product fits 64 bits
    return value % buckets


class CaptionEncoder(nn.Module):
    """Caption bytes to one vector per byte."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed = Embedding(VOCABULARY, config.width)
        self.position = nn.Parameter(nn.init.normal_(torch.empty(config.max_bytes + 1, config.width), std=0.02))
        self.ngram_buckets = config.ngram_buckets
        # Single bytes carry little meaning: short runs of bytes have embeddings too.
        self.ngrams = nn.ModuleList(Embedding(config.ngram_buckets, config.width) for _ in NGRAM_LENGTHS)
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        for table in (self.embed, *self.ngrams):
            nn.init.normal_(
                table.get_parameter("weight")
            )  # unit scale: at 0.02 most words went unused for hundreds of steps

    def forward(self, caption: CaptionTokens, packing: CaptionPacking | None = None) -> Float[Tensor, "b n d"]:
        """Encode; vectors at padding are meaningless, and must be masked where they are used.

        Args:
            packing: of the captions; the result is then one packed sequence (b = 1), computed without padding.
        """
        x = self.embed(caption.ids) + self.position
        for length, table in zip(NGRAM_LENGTHS, self.ngrams, strict=True):
            x = x + table(ngram_hashes(caption.ids, length, self.ngram_buckets))
        if packing is not None:
            x = packing.pack(x)
        for block in self.blocks:
            x = block(x, caption.mask if packing is None else packing.segments)
        return self.norm(x)
