"""A batch of captions, as bytes or as embeddings."""

from collections.abc import Callable, Sequence

from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings

Caption = CaptionTokens | CaptionEmbeddings
CaptionReader = Callable[[Sequence[str]], Caption]


def joined(*captions: Caption) -> Caption:
    """One batch of several of the same representation.

    Raises:
        TypeError: the representations differ.
    """
    tokens = [caption for caption in captions if isinstance(caption, CaptionTokens)]
    embeddings = [caption for caption in captions if isinstance(caption, CaptionEmbeddings)]
    if tokens and embeddings:
        raise TypeError("captions as bytes and captions as embeddings cannot share a batch")
    return CaptionTokens.cat(tokens) if tokens else CaptionEmbeddings.cat(embeddings)
