"""Captions as words, and the encoder that is trained together with the network.

No vocabulary is downloaded or counted: a word's vector is the sum of embeddings of its parts, which are found by a
hash. The parts are the word itself and its runs of three letters (Bojanowski et al. 2017, "Enriching Word Vectors with
Subword Information", section 3.2), and the word without one of its letters, so that two spellings that are one typing
error apart have a part in common (as SymSpell finds corrections, Garbe 2012). Compared with bytes
(`models/text/bytes.py`), a caption is a fifth as many tokens, and each stands for something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from models.layers import Embedding, RMSNorm
from models.text.blocks import TextBlock
from models.text.config import TextConfig, WordsConfig
from models.text.packing import CaptionPacking
from models.text.splitting import LONGEST, words_of

RUN = 3
SHORTEST_WITHOUT_LETTER = 4  # of shorter words, too little would be left
MAX_PARTS = 1 + LONGEST + (LONGEST + 2 - RUN + 1)
INITIAL, GAIN = 0.3, 3.0
"""Standard deviation of a part's vector at first, and how much faster than a weight it learns.

Parts that training never met stay small beside those that it met, so that an unknown word, or the unknown parts of a
misspelt one, say little.
"""
NO_PART, END, NUM_MARKS = 0, 1, 2  # rows of the table before those of the parts


@dataclass(frozen=True)
class CaptionWords:
    """A batch of captions as the numbers of the parts of their words."""

    parts: Int[Tensor, "b n parts"]  # rows of the table; NO_PART where a word has fewer
    mask: Bool[Tensor, "b n"]  # True at words and at the end of the caption

    @staticmethod
    def encode(captions: Sequence[str], config: WordsConfig) -> "CaptionWords":
        """The first `max_words` words, then an end token, then padding. The empty caption is one end token.

        The padded length is always max_words + 1, so that a caption is encoded the same in any batch.
        """
        parts = torch.full((len(captions), config.max_words + 1, MAX_PARTS), NO_PART, dtype=torch.long)
        for row, caption in enumerate(captions):
            words = words_of(caption)[: config.max_words]
            for column, word in enumerate(words):
                numbers = _rows(word, config.buckets)
                parts[row, column, : len(numbers)] = torch.tensor(numbers)
            parts[row, len(words), 0] = END
        return CaptionWords(parts, (parts != NO_PART).any(-1))

    @staticmethod
    def cat(batches: Sequence["CaptionWords"]) -> "CaptionWords":
        """One batch out of several of equal padded length."""
        return CaptionWords(torch.cat([b.parts for b in batches]), torch.cat([b.mask for b in batches]))

    def to(self, device: torch.device | str) -> "CaptionWords":
        """The same captions on another device."""
        return CaptionWords(self.parts.to(device), self.mask.to(device))


def parts_of(word: str) -> list[str]:
    """The word, the word without each of its letters, and its runs of three letters, its borders included.

    Whole words begin with a space, so that none is the same as a run.
    """
    without = [word[:at] + word[at + 1 :] for at in range(len(word))] if len(word) >= SHORTEST_WITHOUT_LETTER else []
    bordered = f"<{word}>"
    runs = [bordered[at : at + RUN] for at in range(len(bordered) - RUN + 1)]
    return list(dict.fromkeys([f" {spelling}" for spelling in (word, *without)] + runs))


@lru_cache(maxsize=2**16)
def _rows(word: str, buckets: int) -> tuple[int, ...]:
    return tuple(NUM_MARKS + crc32(part.encode()) % buckets for part in parts_of(word))


class PartsEmbedding(Embedding):
    """Sums of rows of a table, in float32, each scaled to the deviation of one row."""

    def forward(self, input: Int[Tensor, "b n parts"]) -> Float[Tensor, "b n d"]:  # noqa: A002 - torch's name
        """The sum of the rows of each word; zero for one without parts."""
        rows = embedding_bag(input.flatten(0, 1), self.weight.float(), mode="sum", padding_idx=NO_PART)  # (b n) d
        num_parts = (input != NO_PART).sum(-1, keepdim=True)  # b n 1
        return rearrange(rows, "(b n) d -> b n d", n=input.shape[1]) * num_parts.clamp(min=1).rsqrt()


class WordEncoder(nn.Module):
    """Caption words to one vector per word."""

    def __init__(self, config: TextConfig, words: WordsConfig) -> None:
        super().__init__()
        self.parts = PartsEmbedding(NUM_MARKS + words.buckets, config.width)
        nn.init.normal_(self.parts.weight, std=INITIAL / GAIN)
        self.before = nn.Linear(config.width, config.width, bias=False)  # the word before: "to left" is not "from left"
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)

    def forward(self, caption: CaptionWords, packing: CaptionPacking | None = None) -> Float[Tensor, "b n d"]:
        """Encode; vectors at padding are meaningless, and must be masked where they are used.

        Args:
            packing: of the captions; the result is then one packed sequence (b = 1), computed without padding.
        """
        x = self.parts(caption.parts) * GAIN  # b n d
        x = x + self.before(nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])
        if packing is not None:
            x = packing.pack(x)
        for block in self.blocks:
            x = block(x, caption.mask if packing is None else packing.segments)
        return self.norm(x)
