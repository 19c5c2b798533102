"""What decides which kernel can compute a call of attention: everything but the values of the tensors."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.traced import constant_when_traced

Form = Literal["full", "masked", "packed"]
"""Every query attends to every key of its sample; to those that a mask allows; sequences lie one after the other."""


class Call(NamedTuple):
    """One call of attention."""

    device: str
    """Kind of the device that holds the tensors: cpu, cuda, meta."""
    capability: tuple[int, int] | None
    """Compute capability of an NVIDIA GPU, such as (9, 0) for Hopper; None elsewhere."""
    dtypes: tuple[torch.dtype, ...]
    """Of queries, keys and values."""
    channels: int
    """Of a head."""
    num_queries: int
    """Of a sample; of all sequences together where they are packed."""
    num_keys: int
    form: Form
    is_compiling: bool = False
    """Whether torch.compile traces the call."""

    @staticmethod
    def of(query: Tensor, key: Tensor, value: Tensor, form: Form) -> "Call":
        """The call with these tensors (... n heads d)."""
        return Call(
            query.device.type,
            nvidia_capability(query.device),
            (query.dtype, key.dtype, value.dtype),
            query.shape[-1],
            query.shape[-3],
            key.shape[-3],
            form,
            torch.compiler.is_compiling(),
        )


@constant_when_traced
def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of an NVIDIA GPU; None of any other device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" and torch.version.hip is None else None
