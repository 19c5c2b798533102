"""Configuration of the caption encoder."""

from pydantic import BaseModel, ConfigDict, Field


class TextConfig(BaseModel):
    """Size of the caption encoder. The last two are of captions that arrive as bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=128, ge=16)
    depth: int = Field(default=2, ge=0)
    heads: int = Field(default=2, ge=1)
    max_bytes: int = Field(default=96, ge=8)
    ngram_buckets: int = Field(default=2048, ge=64)  # rows of each table of byte n-grams
