"""GELU is computed again in the backward pass: the same values and gradients, and less is kept."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from models.recompute import gelu_linear
from testing.kept import kept_values


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(output, inputs, torch.randn(output.shape).to(output.dtype)))


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
    x, layer = torch.randn(4, requires_grad=True), nn.Linear(4, 4).requires_grad_(False)
    gelu_linear(x, layer).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_a_second_derivative_is_refused():
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gelu_linear(x, nn.Linear(4, 4)).sum(), x, create_graph=True)
