"""Settings of curation: what is kept of the sources."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FilterConfig(BaseModel):
    """Which clips are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    too_small_pixels: int | None = Field(default=16, ge=1)  # the shorter side of the source is less
    static_difference: float | None = Field(default=None, ge=0, le=255)  # mean change between frames is at most this
    black_luma: float | None = Field(default=None, ge=0, le=255)  # mean brightness is at most this
    letter_boxed_share: float | None = Field(default=None, ge=0, lt=1)  # more of the picture than this is bars
    text_fraction: float | None = Field(default=None, ge=0, lt=1)  # more of the picture is text; needs RapidOCR
    duplicate_bits: int | None = Field(default=None, ge=0, le=32)  # differs from an earlier clip in at most this many


SceneDetection = Literal["off", "content"]
