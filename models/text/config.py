"""Configuration of the caption encoder."""

from pydantic import Field

from data.records import Settings


class TextConfig(Settings):
    """Size of the caption encoder. The last two are of captions that arrive as bytes."""

    width: int = Field(default=128, ge=16)
    """TODO"""
    depth: int = Field(default=2, ge=0)
    """TODO"""
    heads: int = Field(default=2, ge=1)
    """TODO"""
    max_bytes: int = Field(default=96, ge=8)
    """TODO"""
    ngram_buckets: int = Field(default=2048, ge=64)
    """Rows of each table of byte n-grams."""
