"""Norms whose backward pass is written out: it keeps their input and a number or two for each row.

torch's own derivative of the same operations keeps several tensors as large as the input, and passes over them about
twice as often. The values are those of the plain operations, bit for bit; gradients agree to rounding. Inside of
`torch.compile` these are the plain operations: the compiler decides itself what it keeps.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, native_layer_norm

from models.recompute import check_first_order


def rms_norm(x: Float[Tensor, "*batch d"], weight: Float[Tensor, " d"], eps: float) -> Float[Tensor, "*batch d"]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in float32 (Zhang & Sennrich 2019, eq. 4).

    Returns:
        in the type of `x`.
    """
    if torch.compiler.is_compiling():
        return _rms_normed(x, weight, eps)[0]
    return _RmsNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType] - `apply` has no types


def head_norm(
    x: Float[Tensor, "b n heads d"], gain: Float[Tensor, "heads 1"], eps: float
) -> Float[Tensor, "b n heads d"]:
    """x / (|x| + eps) * gain sqrt(d) over the last axis (Henry et al. 2020, eq. 4); the norm is taken in float32.

    Returns:
        in the type of `x`.
    """
    if torch.compiler.is_compiling():
        return _head_normed(x, gain, eps)[0]
    return _HeadNorm.apply(x, gain, eps)  # pyright: ignore[reportReturnType]


def modulated_layer_norm(
    x: Float[Tensor, "b f s d"], shift: Float[Tensor, "b f d"], scale: Float[Tensor, "b f d"], eps: float
) -> Float[Tensor, "b f s d"]:
    """Layer norm without weights (Ba et al. 2016, eq. 4), then x (1 + scale) + shift; all in float32."""
    if torch.compiler.is_compiling():
        return _modulated(x, shift, scale, eps)[0]
    return _ModulatedLayerNorm.apply(x, shift, scale, eps)  # pyright: ignore[reportReturnType]


def _rms_normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    exact = x.float()
    inverse = torch.rsqrt((exact * exact).mean(-1, keepdim=True) + eps)
    return (exact * inverse * weight).to(x.dtype), inverse


def _head_normed(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x * (gain * x.shape[-1] ** 0.5 / (norm + eps)).to(x.dtype), norm


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    normal, mean, inverse = native_layer_norm(x, x.shape[-1:], None, None, eps)
    return torch.addcmul(shift.unsqueeze(2), normal, (1 + scale).unsqueeze(2)), mean, inverse


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ANN401 - torch's
        output, inverse = _rms_normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        check_first_order()
        x, weight, inverse = ctx.saved_tensors
        gradient, normal = gradients[0].float(), x.float() * inverse
        of_x, of_weight = None, None
        if ctx.needs_input_grad[0]:
            of_normal = gradient * weight
            along = torch.linalg.vecdot(of_normal, normal).unsqueeze(-1) / x.shape[-1]
            of_x = of_normal.addcmul_(normal, along, value=-1).mul_(inverse).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * normal).flatten(0, -2).sum(0).to(weight.dtype)
        return of_x, of_weight, None


class _HeadNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # noqa: ANN401 - torch's
        output, norm = _head_normed(x, gain, eps)
        ctx.save_for_backward(x, gain, norm)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        check_first_order()
        x, gain, norm = ctx.saved_tensors
        (gradient,) = gradients
        inverse = x.shape[-1] ** 0.5 / (norm + ctx.eps)
        # The derivative with respect to the gain, and, times the gain, to the logarithm of the scale of a row.
        of_scale = (gradient * x).sum(-1, keepdim=True, dtype=torch.float32) * inverse
        of_x, of_gain = None, None
        if ctx.needs_input_grad[0]:
            # A row of zeros has no direction: its norm has the derivative 0, as in torch.
            along = of_scale * gain / ((norm + ctx.eps) * norm.clamp_min(torch.finfo(norm.dtype).tiny))
            of_x = torch.addcmul(gradient * (gain * inverse).to(x.dtype), x, along.to(x.dtype), value=-1)
        if ctx.needs_input_grad[1]:
            of_gain = of_scale.flatten(0, -3).sum(0).to(gain.dtype)
        return of_x, of_gain, None


class _ModulatedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:  # noqa: ANN401 - torch's
        output, mean, inverse = _modulated(x, shift, scale, eps)
        ctx.save_for_backward(x, scale, mean, inverse)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        check_first_order()
        x, scale, mean, inverse = ctx.saved_tensors
        (gradient,) = gradients
        of_x, of_shift, of_scale = None, None, None
        if ctx.needs_input_grad[0]:
            of_normal = gradient * (1 + scale).unsqueeze(2)
            arguments = (of_normal, x, x.shape[-1:], mean, inverse, None, None, [True, False, False])
            of_x = torch.ops.aten.native_layer_norm_backward(*arguments)[0]
        if ctx.needs_input_grad[1]:
            of_shift = gradient.sum(2)
        if ctx.needs_input_grad[2]:
            of_scale = ((x - mean) * inverse).mul_(gradient).sum(2)
        return of_x, of_shift, of_scale, None
