"""A batch of captions, as bytes, as words or as embeddings."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings
from models.text.words import CaptionWords

Caption = CaptionTokens | CaptionWords | CaptionEmbeddings
CaptionReader = Callable[[Sequence[str]], Caption]


def joined(*captions: Caption) -> Caption:
    """One batch of several of the same representation.

    Raises:
        TypeError: the representations differ.
    """
    tokens = [caption for caption in captions if isinstance(caption, CaptionTokens)]
    words = [caption for caption in captions if isinstance(caption, CaptionWords)]
    embeddings = [caption for caption in captions if isinstance(caption, CaptionEmbeddings)]
    if sum(map(bool, (tokens, words, embeddings))) > 1:
        raise TypeError("captions as bytes, as words and as embeddings cannot share a batch")
    if tokens:
        return CaptionTokens.cat(tokens)
    return CaptionWords.cat(words) if words else CaptionEmbeddings.cat(embeddings)


def strongest(text: Float[Tensor, "b m e"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b e"]:
    """The maximum over a caption's tokens, which says whether a word occurs, independently of the caption's length.

    Zero for a caption without tokens.
    """
    maximum = text.float().masked_fill(~mask[..., None], float("-inf")).amax(1)
    return torch.where(mask.any(1, keepdim=True), maximum, 0.0)
