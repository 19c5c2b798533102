"""Configuration of the networks that predict the velocity."""

from pydantic import Field, model_validator

from data.records import Settings
from models.text.config import TextConfig


class DiTConfig(Settings):
    """Size of the transformer."""

    width: int = Field(default=192, ge=32)
    """TODO"""
    depth: int = Field(default=6, ge=1)
    """TODO"""
    heads: int = Field(default=3, ge=1)
    """TODO"""
    mlp_ratio: int = Field(default=4, ge=1)
    """TODO"""
    patch_size: int = Field(default=2, ge=1)
    """Latent pixels per token side; one latent frame per token."""
    text: TextConfig = TextConfig()
    """TODO"""

    @model_validator(mode="after")
    def _check(self) -> "DiTConfig":
        for owner, width, heads in (("", self.width, self.heads), ("text.", self.text.width, self.text.heads)):
            if (nearest := nearest_heads(width, heads)) != heads:
                if nearest is None:
                    raise ValueError(f"{owner}width is {width}, but it must be a multiple of 8")
                raise ValueError(
                    f"{owner}heads is {heads}, but {owner}width {width} must split into heads of a multiple of 8 "
                    f"channels: use {nearest} heads"
                )
        return self


def nearest_heads(width: int, heads: int, multiple: int = 1) -> int | None:
    """The number of heads nearest to `heads` that splits `width` into multiples of 8 channels; None: there is none.

    Args:
        multiple: what must divide the number.
    """
    fitting = [h for h in range(multiple, width + 1, multiple) if width % h == 0 and width // h % 8 == 0]
    return min(fitting, key=lambda h: abs(h - heads), default=None)


NetworkConfig = DiTConfig
"""The configuration of any network that predicts a velocity."""
