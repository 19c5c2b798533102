"""What a computation keeps for its backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor


def kept_values(compute: Callable[[], Tensor]) -> int:
    """Number of values that the graph keeps, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = compute()
    del output
    return sum(storages.values())
