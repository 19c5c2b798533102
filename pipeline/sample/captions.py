"""Captions of a pretrained encoder that are embedded once, though many clips and windows have them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.text.embeddings import CaptionEmbeddings
from models.text.pretrained import STORED_DTYPE

MAX_REMEMBERED = 128
"""Captions: more than a group has, and their tokens take less than 0.5 GB at 512 tokens of 4,096 numbers."""


class RememberedCaptions:
    """A reader of captions that embeds each alone and keeps the last ones.

    So an embedding does not depend on the captions beside it, not even in its rounding, and a negative prompt, which
    all clips share, is not embedded again for each.
    """

    def __init__(
        self, embed: Callable[[Sequence[str]], CaptionEmbeddings], max_remembered: int = MAX_REMEMBERED
    ) -> None:
        self._embed, self._max_remembered = embed, max_remembered
        self._tokens: OrderedDict[str, Float[Tensor, "n e"]] = OrderedDict()  # without the padding
        self._num_padded = 0

    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        """The embeddings of captions, as `PretrainedTextEncoder` pads them."""
        found = [self._tokens_of(caption) for caption in captions]
        values = found[0].new_zeros(len(found), self._num_padded, found[0].shape[1], dtype=torch.float32)
        mask = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
        for row, tokens in enumerate(found):
            values[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return CaptionEmbeddings(values, mask)

    def _tokens_of(self, caption: str) -> Float[Tensor, "n e"]:
        if caption not in self._tokens:
            embedded = self._embed([caption])
            self._num_padded = embedded.mask.shape[1]
            self._tokens[caption] = embedded.values[0, embedded.mask[0]].to(STORED_DTYPE)
            if len(self._tokens) > self._max_remembered:
                self._tokens.popitem(last=False)
        self._tokens.move_to_end(caption)
        return self._tokens[caption]
