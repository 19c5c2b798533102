"""Settings of the encode stage."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from data.dataset.compression import COMPRESSION
from data.records import AddedLater, Runtime, Settings
from models.autoencoder.config import CALL_FRAMES
from pipeline.run.config import Precision

MIN_TILE, TILE_MULTIPLE = 64, 16  # pixels


class TextEncoderConfig(Settings):
    """A pretrained text encoder, frozen, that embeds the captions."""

    folder: Annotated[Path, Runtime]
    """Folder of a text encoder in the format of the Hugging Face hub: config.json, tokenizer files, safetensors."""
    max_tokens: int = Field(default=128, ge=1)
    """Number of tokens that are embedded and stored for each clip; longer captions are truncated."""

    def resolved(self) -> "TextEncoderConfig":
        """The same settings with an absolute folder, as workers run in other directories."""
        return self.model_copy(update={"folder": self.folder.resolve()})


class EncodeConfig(Settings):
    """How clips are encoded."""

    batch: int = Field(default=16, ge=1)
    """Number of clips of one shape that the autoencoder encodes together; fewer if they have too many frames."""
    chunk_frames: int = Field(
        default=CALL_FRAMES, ge=COMPRESSION.temporal_factor, multiple_of=COMPRESSION.temporal_factor
    )
    """Largest number of frames in one call of the autoencoder, over all its clips; fewer where a published autoencoder
    needs it. A longer clip is encoded alone, in chunks of at most this length, with the same result up to rounding. A
    multiple of 4.
    """
    tile: Annotated[int | None, AddedLater(None)] = Field(default=None, ge=MIN_TILE, multiple_of=TILE_MULTIPLE)
    """Side in pixels of the tiles in which larger frames are encoded, one after another, which saves memory. Tiles
    overlap by a quarter and are blended; results differ slightly from those of whole frames. None: whole frames.
    """
    precision: Precision = "auto"
    """Floating-point type of the autoencoder's matrix products: auto takes bf16 where the hardware has instructions for
    it, otherwise fp32.
    """
    text: TextEncoderConfig | None = None
    """Pretrained text encoder of the captions; None stores no embeddings, and the DiT is trained to read captions as
    bytes.
    """
