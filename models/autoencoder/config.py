"""Configuration of the autoencoder."""

from pydantic import Field, model_validator

from data.records import Settings


class AutoencoderConfig(Settings):
    """Size of the autoencoder. It always compresses 4 x in time and 8 x in height and width."""

    latent_channels: int = Field(default=8, ge=1)
    """TODO"""
    width: int = Field(default=48, ge=8)
    """Channels next to the pixels."""
    deep_width: int = Field(default=96, ge=8)
    """Channels next to the latents."""
    num_blocks: int = Field(default=1, ge=1)
    """Residual blocks per resolution."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """TODO"""

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        folded = 8 * self.width  # channels of 2 x 2 x 2 folded values, which the shortcuts share out evenly
        if folded % self.deep_width:
            fitting = [width for width in range(8, folded + 1) if folded % width == 0]
            nearest = min(fitting, key=lambda width: abs(width - self.deep_width))
            raise ValueError(f"deep_width is {self.deep_width}, but it must divide 8 x width = {folded}: use {nearest}")
        return self
