"""Settings of the encode stage."""

from pathlib import Path

from pydantic import Field

from data.records import Settings
from pipeline.run.config import Precision

CALL_FRAMES = 512  # of pixels: one call holds no more, over all its clips


class TextEncoderConfig(Settings):
    """A frozen encoder that reads the captions, instead of one trained with the DiT."""

    folder: Path
    """Of the hub's files: config.json, a tokenizer, safetensors."""
    max_tokens: int = Field(default=128, ge=1)
    """Captions are cut there; every clip stores as many embeddings."""

    def resolved(self) -> "TextEncoderConfig":
        """With a folder that workers find too."""
        return self.model_copy(update={"folder": self.folder.expanduser().resolve()})


class EncodeConfig(Settings):
    """How clips are encoded."""

    batch: int = Field(default=16, ge=1)
    """Clips per call."""
    chunk_frames: int = Field(default=CALL_FRAMES, ge=4, multiple_of=4)
    """Per call: longer clips come alone, in chunks."""
    precision: Precision = "auto"
    """TODO"""
    text: TextEncoderConfig | None = None
    """None: captions stay bytes, which the DiT learns to read."""
