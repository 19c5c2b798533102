"""Configuration of the caption encoder. Nothing here loads torch."""

from pydantic import Field

from data.records import MAX_CHANNELS, Settings


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
    ngram_buckets: int = Field(default=2048, ge=64)
    """Rows of each table of byte n-gram embeddings. Not used with a pretrained encoder."""
