"""A batch of captions, as bytes or as embeddings."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings

Caption = CaptionTokens | CaptionEmbeddings
CaptionReader = Callable[[Sequence[str]], Caption]


def joined(first: Caption, second: Caption) -> Caption:
    """One batch of two of the same representation.

    Raises:
        TypeError: the representations differ.
    """
    match first, second:
        case CaptionTokens(), CaptionTokens():
            return CaptionTokens.cat([first, second])
        case CaptionEmbeddings(), CaptionEmbeddings():
            return CaptionEmbeddings.cat([first, second])
    raise TypeError("captions as bytes and captions as embeddings cannot share a batch")


def strongest(text: Float[Tensor, "b m e"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b e"]:
    """The maximum over a caption's tokens, which says whether a word occurs, independently of the caption's length.

    Zero for a caption without tokens.
    """
    maximum = text.float().masked_fill(~mask[..., None], float("-inf")).amax(1)
    return torch.where(mask.any(1, keepdim=True), maximum, 0.0)
