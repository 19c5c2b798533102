"""Settings of curation: what is kept of the sources."""

from typing import Literal

from pydantic import Field

from data.records import Settings


class FilterConfig(Settings):
    """Which clips are left out."""

    too_small_pixels: int | None = Field(default=16, ge=1)
    """The shorter side of the source is less."""
    static_difference: float | None = Field(default=None, ge=0, le=255)
    """Mean change between frames is at most this."""
    black_luma: float | None = Field(default=None, ge=0, le=255)
    """Mean brightness is at most this."""
    letter_boxed_share: float | None = Field(default=None, ge=0, lt=1)
    """More of the picture than this is bars."""
    text_fraction: float | None = Field(default=None, ge=0, lt=1)
    """More of the picture is text; needs RapidOCR."""
    duplicate_bits: int | None = Field(default=None, ge=0, le=32)
    """Differs from an earlier clip in at most this many."""


SceneDetection = Literal["off", "content"]
