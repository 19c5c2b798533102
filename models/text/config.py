"""Configuration of the caption encoder. Nothing here loads torch."""

import unicodedata
from typing import Annotated, Literal

from pydantic import Field

from data.records import MAX_CHANNELS, AddedLater, Settings

Normalization = Literal["off", "nfkc_casefold"]


class TextConfig(Settings):
    """Size of the caption encoder that is trained with the network, on bytes or on pretrained embeddings."""

    width: int = Field(default=128, ge=16, le=MAX_CHANNELS)
    """Channels of each encoded caption token."""
    depth: int = Field(default=2, ge=0)
    """Number of transformer blocks."""
    heads: int = Field(default=2, ge=1, le=MAX_CHANNELS)
    """Attention heads of each block; each gets `width` / `heads` channels, which must be a multiple of 8."""
    max_bytes: int = Field(default=96, ge=8)
    """Bytes that are read of a caption (UTF-8); longer ones are truncated. Not used with a pretrained encoder."""
    normalization: Annotated[Normalization, AddedLater("off")] = "off"
    """`nfkc_casefold` reads captions and prompts without upper case and in one form of each character (Unicode NFKC,
    then case folding, as in NFKC_Casefold), so that a prompt's case and ligatures change nothing; `off` reads them as
    they are. Not used with a pretrained encoder, whose tokenizer does this.
    """
    ngram_buckets: int = Field(default=2048, ge=64)
    """Rows of each table of byte n-gram embeddings. Not used with a pretrained encoder."""

    def normalized(self, caption: str) -> str:
        """The caption as the encoder reads it, before it is cut at `max_bytes`."""
        if self.normalization == "off":
            return caption
        return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
