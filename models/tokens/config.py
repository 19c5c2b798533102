"""Configuration of the tokeniser of latents. Nothing here loads torch."""

from math import prod
from typing import Annotated

from pydantic import Field, model_validator

from data.records import MAX_CHANNELS, Settings

MAX_TOKENS = 2**16
"""Upper limit of a vocabulary: a network gives a logit for each of its tokens at every place."""


class TokenizerConfig(Settings):
    """Size of the tokeniser of latents (`models/tokens/tokenizer.py`)."""

    levels: tuple[Annotated[int, Field(ge=2, le=MAX_TOKENS)], ...] = Field(default=(8, 5, 5, 5), min_length=1)
    """Values that each channel of a code may have; their product is the number of tokens of the vocabulary."""
    codes: int = Field(default=2, ge=1, le=64)
    """Tokens at each latent position: more of them reconstruct better, and are harder to predict."""
    width: int = Field(default=64, ge=8, le=MAX_CHANNELS)
    """Channels of the convolutions before and after the codes."""
    depth: int = Field(default=2, ge=0)
    """Residual blocks before the codes, and as many after them; with 0 both are a linear layer at each position."""

    @property
    def num_tokens(self) -> int:
        """Of the vocabulary."""
        return prod(self.levels)

    @model_validator(mode="after")
    def _check(self) -> "TokenizerConfig":
        if self.num_tokens > MAX_TOKENS:
            raise ValueError(
                f"levels is {list(self.levels)}, a vocabulary of {self.num_tokens} tokens, more than {MAX_TOKENS}: use "
                "fewer or smaller levels, and more codes"
            )
        return self
