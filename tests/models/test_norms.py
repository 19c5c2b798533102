"""Norms with a backward pass that is written out: values, gradients, and what they keep."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from models.norms import head_norm, modulated_layer_norm, rms_norm
from testing.kept import kept_values

EPS = 1e-3


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def plain_head_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * (gain * x.shape[-1] ** 0.5 / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPS))


def plain_modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, :, None], layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale[:, :, None])


Norm = tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]], int]
"""The norm, the same as torch derives it, the shapes of its inputs, and the numbers that it keeps for its rows."""

NORMS: dict[str, Norm] = {
    "rms": (partial(rms_norm, eps=EPS), plain_rms_norm, [(3, 5, 8), (8,)], 3 * 5),
    "head": (partial(head_norm, eps=EPS), plain_head_norm, [(2, 5, 3, 8), (3, 1)], 2 * 5 * 3),
    "modulated": (
        partial(modulated_layer_norm, eps=EPS),
        plain_modulated_layer_norm,
        [(2, 3, 4, 8), (2, 3, 8), (2, 3, 8)],
        2 * (2 * 3 * 4),
    ),
}


@pytest.fixture(params=NORMS)
def norm(request) -> Norm:
    return NORMS[request.param]


def inputs_of(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def test_values_are_those_of_the_plain_operations_bit_for_bit(norm):
    own, plain, shapes, _ = norm
    inputs = inputs_of(shapes)
    assert torch.equal(own(*inputs), plain(*inputs))


def test_gradients_are_those_of_the_plain_operations_in_double_precision(norm):
    own, plain, shapes, _ = norm
    inputs = inputs_of(shapes)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    (wanted,) = inputs_of([own(*inputs).shape], seed=1)
    found = torch.autograd.grad(own(*inputs), inputs, wanted)
    expected = torch.autograd.grad(plain(*exact), exact, wanted.double())
    for first, second in zip(found, expected, strict=True):
        torch.testing.assert_close(first.double(), second, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["rms", "head"])
def test_in_bfloat16_gradients_have_its_type_and_its_precision(name):
    own, plain, shapes, _ = NORMS[name]
    x, weight = inputs_of(shapes)
    half = x.detach().bfloat16().requires_grad_()
    exact = [half.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    (wanted,) = inputs_of([x.shape], seed=1)
    found = torch.autograd.grad(own(half, weight), [half, weight], wanted.bfloat16())
    expected = torch.autograd.grad(plain(*exact), exact, wanted.bfloat16().double())
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32]
    for first, second in zip(found, expected, strict=True):
        assert (first.double() - second).norm() < 0.01 * second.norm()


def test_the_input_and_a_number_or_two_a_row_are_kept(norm):
    own, _, shapes, num_numbers = norm
    inputs = inputs_of(shapes)
    weights = inputs[1:] if own is not NORMS["modulated"][0] else inputs[2:]  # the shift is not needed
    assert kept_values(lambda: own(*inputs)) == sum(each.numel() for each in (inputs[0], *weights)) + num_numbers


def test_only_the_gradients_that_are_needed_are_computed(norm):
    own, _, shapes, _ = norm
    for needed in range(len(shapes)):
        inputs = [each.requires_grad_(number == needed) for number, each in enumerate(inputs_of(shapes))]
        own(*inputs).sum().backward()
        assert [each.grad is not None for each in inputs] == [number == needed for number in range(len(shapes))]


def test_a_row_of_zeros_has_a_finite_gradient(norm):
    own, plain, shapes, _ = norm
    inputs = [torch.zeros(shapes[0]).requires_grad_(), *inputs_of(shapes)[1:]]
    expected = torch.autograd.grad(plain(*inputs).sum(), inputs)
    for first, second in zip(torch.autograd.grad(own(*inputs).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(first, second)


def test_a_second_derivative_is_refused(norm):
    own, _, shapes, _ = norm
    inputs = inputs_of(shapes)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(own(*inputs).sum(), inputs[0], create_graph=True)
