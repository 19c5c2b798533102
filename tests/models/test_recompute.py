"""Operations that are computed again in the backward pass: the same values and gradients, and less is kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from models.layers import RMSNorm
from models.networks.modulation import modulate, normed_and_modulated
from models.recompute import gelu_linear, recomputed


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(output, inputs, torch.randn(output.shape).to(output.dtype)))


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


@pytest.mark.parametrize("groups", [None, ((1, 2), (2, 4))])
def test_norm_and_modulation_are_the_plain_ones_bit_for_bit(groups):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, requires_grad=True)
    shift, scale = (torch.randn(2, 3, 8, requires_grad=True) for _ in range(2))
    norm = nn.LayerNorm(8, eps=1e-3, elementwise_affine=False)
    one = normed_and_modulated(x, norm, shift, scale, groups)
    other = modulate(layer_norm(x, (8,), eps=1e-3), shift, scale, groups)
    assert torch.equal(one, other)
    inputs = [x, shift, scale]
    for first, second in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_rms_norm_is_the_formula_bit_for_bit_and_keeps_its_input(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8).to(dtype).requires_grad_()
    norm = RMSNorm(8)
    norm.weight.data.uniform_(0.5, 2)
    exact = x.float()
    plain = (exact * torch.rsqrt((exact * exact).mean(-1, keepdim=True) + norm.eps) * norm.weight).to(dtype)
    assert torch.equal(norm(x), plain)
    inputs = [x, norm.weight]
    for first, second in zip(gradients(norm(x), inputs), gradients(plain, inputs), strict=True):
        assert torch.equal(first, second)
    assert kept_values(lambda: norm(x)) == x.numel() + 8


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_gelu_and_linear_layer_are_the_plain_ones_and_keep_the_input_of_gelu(has_bias, autocast):
    torch.manual_seed(0)
    h, layer = torch.randn(2, 5, 32, requires_grad=True), nn.Linear(32, 8, bias=has_bias)
    inputs = [h, *layer.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        one, other = gelu_linear(h, layer, "tanh"), layer(gelu(h, approximate="tanh"))
    assert torch.equal(one, other)
    for first, second in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        assert first.dtype == second.dtype
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    assert kept_values(lambda: gelu_linear(h, layer)) == h.numel() + layer.weight.numel()
    assert kept_values(lambda: layer(gelu(h))) >= 2 * h.numel()


def test_a_layer_with_hooks_is_called_as_a_module():
    """As ZeRO 3 needs, which gathers weights in hooks."""
    layer, calls = nn.Linear(4, 4), []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    gelu_linear(torch.zeros(1, 4), layer)
    assert calls == [1]


def test_only_the_gradients_that_are_needed_are_computed():
    x, frozen = torch.randn(4, requires_grad=True), torch.randn(4)
    (gradient,) = torch.autograd.grad(recomputed(torch.mul, x, frozen).sum(), x)
    assert torch.equal(gradient, frozen)
    layer = nn.Linear(4, 4).requires_grad_(False)
    gelu_linear(x, layer).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("function", [lambda x: recomputed(torch.sin, x), lambda x: gelu_linear(x, nn.Linear(4, 4))])
def test_a_second_derivative_is_refused(function):
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(function(x).sum(), x, create_graph=True)
