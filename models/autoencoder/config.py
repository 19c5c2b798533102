"""Configuration of the autoencoder."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AutoencoderConfig(BaseModel):
    """Size of the autoencoder. It always compresses 4 x in time and 8 x in height and width."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent_channels: int = Field(default=8, ge=1)
    width: int = Field(default=48, ge=8)  # channels next to the pixels
    deep_width: int = Field(default=96, ge=8)  # channels next to the latents
    num_blocks: int = Field(default=1, ge=1)  # residual blocks per resolution
    kl_weight: float = Field(default=1e-6, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        folded = 8 * self.width  # channels of 2 x 2 x 2 folded values, which the shortcuts share out evenly
        if folded % self.deep_width:
            fitting = [width for width in range(8, folded + 1) if folded % width == 0]
            nearest = min(fitting, key=lambda width: abs(width - self.deep_width))
            raise ValueError(f"deep_width is {self.deep_width}, but it must divide 8 x width = {folded}: use {nearest}")
        return self
