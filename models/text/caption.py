"""A batch of captions, as bytes or as embeddings."""

from collections.abc import Callable, Sequence

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
