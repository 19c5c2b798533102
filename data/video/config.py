"""Settings of the encoders that write clips. Nothing here loads a decoder or an encoder."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.records import Settings

Codec = Literal["h264", "hevc", "av1"]
PixelFormat = Literal["yuv420p", "yuv444p"]
X264_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"),
)
PRESETS: dict[Codec, tuple[str, ...]] = {
    "h264": X264_PRESETS,
    "hevc": X264_PRESETS,
    "av1": tuple(str(number) for number in range(14)),
}
"""From the fastest to the slowest; of av1 from the slowest to the fastest."""
DEFAULT_CRF: dict[Codec, int] = {"h264": 14, "hevc": 16, "av1": 20}
DEFAULT_PRESET: dict[Codec, str] = {"h264": "veryfast", "hevc": "veryfast", "av1": "8"}
MIN_SIDE: dict[Codec, int] = {"hevc": 32}
"""Pixels of a side below which an encoder does not give equal bytes for equal frames."""
MAX_CRF: dict[Codec, int] = {"h264": 51, "hevc": 51, "av1": 63}


class VideoConfig(Settings):
    """How clips are compressed into MP4 files. Equal frames give equal bytes."""

    codec: Codec = "h264"
    """Compression: h264, which every player and browser shows; hevc and av1, which take less space at equal quality and
    more time, and which not every browser shows. A codec whose encoder the installed FFmpeg lacks is refused.
    """
    crf: Annotated[int | None, Field(ge=0)] = None
    """Constant rate factor, from 0 (best; up to 51, of av1 up to 63); lower is better and larger. None: 14 for h264, 16
    for hevc, 20 for av1.
    """
    pixel_format: PixelFormat = "yuv420p"
    """How pixels are stored: yuv420p has a quarter of the colours' resolution, and is what browsers show; yuv444p keeps
    all of it (not with av1).
    """
    preset: str | None = None
    """Effort of the encoder: slower ones make smaller files. For h264 and hevc ultrafast to placebo, for av1 13 (fast)
    to 0. None: veryfast, and 8 for av1.
    """

    @field_validator("preset", mode="before")
    @classmethod
    def _as_text(cls, preset: Any) -> Any:  # noqa: ANN401 - whatever a file holds
        return str(preset) if isinstance(preset, int) and not isinstance(preset, bool) else preset

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crf is not None and self.crf > MAX_CRF[self.codec]:
            raise ValueError(f"crf is {self.crf}, but {self.codec} takes 0 to {MAX_CRF[self.codec]}")
        if self.preset is not None and self.preset not in (known := PRESETS[self.codec]):
            raise ValueError(f"preset is {self.preset!r}, but {self.codec} takes {', '.join(known)}")
        if self.codec == "av1" and self.pixel_format == "yuv444p":
            raise ValueError("pixel_format is yuv444p, which the encoder of av1 does not take: use yuv420p, or hevc")
        return self

    def resolved(self) -> "VideoConfig":
        """With a value for every field."""
        crf = DEFAULT_CRF[self.codec] if self.crf is None else self.crf
        return self.model_copy(update={"crf": crf, "preset": self.preset or DEFAULT_PRESET[self.codec]})

    def size_refusal(self, height: int, width: int) -> str | None:
        """Why frames of this size cannot be written, and a way out; None: they can."""
        least = MIN_SIDE.get(self.codec, 1)
        if min(height, width) >= least:
            return None
        return (
            f"codec {self.codec} takes frames of at least {least} pixels a side, not {height} x {width} (smaller ones "
            "would have other bytes each time): use h264 or av1"
        )
