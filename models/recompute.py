"""GELU and a linear layer, which keep only their input for the backward pass, and compute GELU again there.

It is as large as the hidden layer of a feed-forward block, and cheap. Inside of `torch.compile` these are the plain
operations: the compiler decides itself what it keeps. Norms, the other cheap operations of a block: `norms.py`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

Approximation = Literal["none", "tanh"]


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


def check_first_order() -> None:
    """For backward passes that are written out.

    Raises:
        RuntimeError: a graph of the gradient is wanted, which would be wrong without a word.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("networks have no second derivative here: use create_graph=False")


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, approximate: Approximation) -> Tensor:  # noqa: ANN401 - torch's
        ctx.approximate = approximate
        ctx.save_for_backward(h, weight)
        return linear(gelu(h, approximate=approximate), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        check_first_order()
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
