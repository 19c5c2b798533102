"""The function of the project that computes attention; `packed.py` has the one for packed sequences."""

from jaxtyping import Bool, Float
from torch import Tensor

from models.attention.backends import choose_backend
from models.attention.call import Call


def attention(
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n heads d"]:
    """softmax(q k^T / sqrt(d)) v for every head, by the first of `BACKENDS` that takes the call, or the wanted one.

    Args:
        mask: True where a key may be attended to; None means everywhere. A sample without such a key gets zeros.

    Raises:
        AttentionBackendError: the wanted kernel does not take the call.
    """
    backend = choose_backend(Call.of(query, key, value, "full" if mask is None else "masked"))
    return backend.run(query, key, value, mask)
