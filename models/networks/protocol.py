"""What the rest of the program knows of a network."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from models.attention.attention import attention


@runtime_checkable
class TokenSplit(Protocol):
    """How processes that compute one sample together share its tokens: each has a part of every frame."""

    def part(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... m d"]:
        """The tokens of this process."""
        ...

    def attention(
        self,
        query: Float[Tensor, "b m heads d"],
        key: Float[Tensor, "b m heads d"],
        value: Float[Tensor, "b m heads d"],
    ) -> Float[Tensor, "b m heads d"]:
        """Self-attention among the tokens of all of them."""
        ...

    def whole(self, tokens: Float[Tensor, "b m d"], num_frames: int) -> Float[Tensor, "b n d"]:
        """The tokens of all of them, in their order."""
        ...


class Unsplit:
    """All tokens are here."""

    def part(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... n d"]:  # noqa: ARG002
        """All of them."""
        return tokens

    def attention(
        self,
        query: Float[Tensor, "b n heads d"],
        key: Float[Tensor, "b n heads d"],
        value: Float[Tensor, "b n heads d"],
    ) -> Float[Tensor, "b n heads d"]:
        """Self-attention."""
        return attention(query, key, value)

    def whole(self, tokens: Float[Tensor, "b n d"], num_frames: int) -> Float[Tensor, "b n d"]:  # noqa: ARG002
        """The same."""
        return tokens
