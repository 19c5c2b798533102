"""How captions are read, and which encoder is trained with a network: chosen by the configuration."""

from collections.abc import Sequence

from models.text.bytes import CaptionEncoder, CaptionTokens
from models.text.caption import Caption
from models.text.config import TextConfig
from models.text.embeddings import EmbeddedCaptionEncoder
from models.text.words import CaptionWords, WordEncoder


def build_encoder(
    config: TextConfig, embedding_width: int | None
) -> CaptionEncoder | WordEncoder | EmbeddedCaptionEncoder:
    """The encoder of the captions that `read` gives, or of a pretrained encoder's embeddings.

    Args:
        embedding_width: channels of a pretrained text encoder's embeddings; None: there is none.
    """
    if embedding_width is not None:
        return EmbeddedCaptionEncoder(config, embedding_width)
    return CaptionEncoder(config) if config.words is None else WordEncoder(config, config.words)


def read(config: TextConfig, captions: Sequence[str]) -> Caption:
    """Captions as words or bytes of their normalised text."""
    texts = [config.normalized(caption) for caption in captions]
    return (
        CaptionTokens.encode(texts, config.max_bytes)
        if config.words is None
        else CaptionWords.encode(texts, config.words)
    )
