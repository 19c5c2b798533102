"""Networks whose weights are bfloat16, beside those of float32 weights under autocast."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def types_of(network: nn.Module, call: Callable[[Any], Tensor]) -> tuple[dict[str, list[torch.dtype]], Tensor]:
    """The types of what each layer takes and returns under autocast, by the layer's name; and the result."""
    types: dict[str, list[torch.dtype]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, outputs: Any) -> None:  # noqa: ANN401 - of any layer
            tensors = [leaf for leaf in tree_leaves((inputs, outputs)) if isinstance(leaf, Tensor)]
            types[name] = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]

        return hook

    hooks = [layer.register_forward_hook(note(name)) for name, layer in network.named_modules()]
    with torch.autocast("cpu", torch.bfloat16):
        result = call(network)
    for hook in hooks:
        hook.remove()
    return types, result


def check_half_weights(network: nn.Module, call: Callable[[Any], Tensor]) -> None:
    """With bfloat16 weights each layer computes in the types that it computes in with float32 weights, and alike."""
    half = deepcopy(network).bfloat16()
    (types, result), (half_types, half_result) = (types_of(each, call) for each in (network, half))
    assert half_types == types
    difference = (half_result - result).norm() / result.norm()
    assert difference < 0.02
