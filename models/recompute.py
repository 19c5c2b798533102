"""Cheap operations that keep only their inputs for the backward pass, and compute there again what they need.

Between two matrix products of a block, norms, modulations and activations each keep a tensor as large as the tokens.
Computing them again takes a few percent of the time of a block and gives the same bits; their inputs are kept anyway.
Inside of `torch.compile` these are the plain operations: the compiler decides itself what it keeps.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

Approximation = Literal["none", "tanh"]


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, of which only `tensors` are kept for the backward pass.

    Args:
        function: of these tensors alone, without random numbers. It is called without autocast in the backward pass.
    """
    if torch.compiler.is_compiling():
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)  # pyright: ignore[reportReturnType] - `apply` has no types


def gelu_linear(
    h: Float[Tensor, "*batch d"], layer: nn.Module, approximate: Approximation = "none"
) -> Float[Tensor, "*batch e"]:
    """`layer(gelu(h))`, of which a plain linear layer keeps `h` alone for the backward pass.

    Other layers (with adapters, or with the hooks by which ZeRO 3 gathers weights) keep gelu(h) too.
    """
    if torch.compiler.is_compiling() or type(layer) is not nn.Linear or _has_hooks(layer):
        return layer(gelu(h, approximate=approximate))
    return _GeluLinear.apply(h, layer.weight, layer.bias, approximate)  # pyright: ignore[reportReturnType]


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)


def _check_first_order() -> None:
    """Raises RuntimeError where a graph of the gradient is wanted, which would be wrong without a word."""
    if torch.is_grad_enabled():
        raise RuntimeError("operations that are computed again have no second derivative: use create_graph=False")


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        _check_first_order()
        (gradient,) = gradients
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
            output = ctx.function(*tensors)
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradient))
        return None, *(next(found) if need else None for need in needed)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, approximate: Approximation) -> Tensor:  # noqa: ANN401 - torch's
        ctx.approximate = approximate
        ctx.save_for_backward(h, weight)
        return linear(gelu(h, approximate=approximate), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        _check_first_order()
        (gradient,) = gradients
        h, weight = ctx.saved_tensors
        of_h, of_weight, of_bias, _ = ctx.needs_input_grad
        # Products are in the type that the forward one was computed in, which autocast may have chosen.
        rows = gradient.reshape(-1, gradient.shape[-1])
        found: list[Tensor | None] = [None, None, None]
        if of_weight:
            active = gelu(h, approximate=ctx.approximate).reshape(-1, h.shape[-1])
            found[1] = (rows.mT @ active.to(rows.dtype)).to(weight.dtype)
            del active  # before the next large tensors
        if of_bias:
            found[2] = rows.sum(0)
        if of_h:
            of_active = (rows @ weight.to(rows.dtype)).to(h.dtype).reshape(h.shape)
            found[0] = torch.ops.aten.gelu_backward(of_active, h, approximate=ctx.approximate)
        return *found, None
