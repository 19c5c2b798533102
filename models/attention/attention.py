"""The only function of the project that computes attention."""

from jaxtyping import Bool, Float
from torch import Tensor

from models.attention.backends import choose_backend


def attention(
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n heads d"]:
    """softmax(q k^T / sqrt(d)) v for every head, by the first of `BACKENDS` that supports the arguments.

    Args:
        mask: True where a key may be attended to; None means everywhere.
    """
    return choose_backend(query, key, mask).run(query, key, value, mask)
