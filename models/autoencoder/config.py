"""Configuration of the autoencoder. Nothing here loads torch."""

from pydantic import Field, model_validator

from data.dataset.compression import COMPRESSION, Compression
from data.records import MAX_CHANNELS, Settings


class AutoencoderConfig(Settings):
    """Size of the autoencoder. It compresses 4 x in time and 8 x in height and width."""

    latent_channels: int = Field(default=8, ge=1)
    """Channels of a latent."""
    width: int = Field(default=48, ge=8, le=MAX_CHANNELS)
    """Channels of the layers at a quarter of the pixels' height and width."""
    deep_width: int = Field(default=96, ge=8, le=MAX_CHANNELS)
    """Channels of the layers at an eighth of the pixels' height and width; it must divide 8 x `width`."""
    num_blocks: int = Field(default=1, ge=1)
    """Residual blocks at each resolution, in the encoder and in the decoder."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight in the loss of the KL divergence of the latents to N(0, I), in nats per latent value."""

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        folded = 8 * self.width  # channels of 2 x 2 x 2 folded values, of which the shortcuts average equal groups
        if folded % self.deep_width:
            fitting = [width for width in range(8, folded + 1) if folded % width == 0]
            nearest = min(fitting, key=lambda width: abs(width - self.deep_width))
            raise ValueError(f"deep_width is {self.deep_width}, but it must divide 8 x width = {folded}: use {nearest}")
        return self

    @property
    def compression(self) -> Compression:
        """The strides of the autoencoder in time and space."""
        return COMPRESSION

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (c, t, h, w) of the latent of a clip.

        Raises:
            ValueError: the clip cannot be encoded: not 4k + 1 frames, or sides that are not multiples of 8 pixels.
        """
        return (self.latent_channels, *self.compression.latent_grid(num_frames, height, width))
