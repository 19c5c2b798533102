"""Terms of the loss against closed forms, and the gradients that the adversarial one gives to each network."""

import math

import pytest
import torch
from torch import nn

from models.autoencoder.losses import (
    MAX_ADAPTIVE_WEIGHT,
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    gradient_difference,
    relativistic,
    with_gradient,
)


def test_the_gradient_term_compares_the_strength_of_slopes():
    """A ramp of slope 0.1 along the height against one of slope -0.3: | 0.1 - 0.3 | / 2, as the width has no slope."""
    rows = torch.arange(6.0).reshape(1, 1, 1, 6, 1).expand(2, 3, 2, 6, 5)
    assert gradient_difference(0.1 * rows, -0.3 * rows).item() == pytest.approx(0.1)
    assert gradient_difference(rows, rows + 7).item() == 0  # a shift of brightness has no gradient


def test_hinge_losses():
    real, made = torch.tensor([3.0, 0.5]), torch.tensor([-2.0, 0.0, 1.0])
    assert discriminator_hinge(real, made).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1 + 2) / 3)
    assert generator_hinge(made).item() == pytest.approx(1 / 3)


def test_the_relativistic_loss_does_not_see_what_both_logits_share():
    real, made = torch.tensor([3.0, 0.5]), torch.tensor([1.0, 0.5])
    expected = (math.log1p(math.exp(-2)) + math.log(2)) / 2
    assert relativistic(real, made).item() == pytest.approx(expected)
    assert relativistic(real + 5, made + 5).item() == pytest.approx(expected)


def test_the_adaptive_weight_is_the_ratio_of_norms():
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 2.0]])).item() == pytest.approx(2.5, rel=1e-5)
    assert adaptive_weight(torch.ones(2), torch.zeros(2)).item() == MAX_ADAPTIVE_WEIGHT
    half = torch.full((2**16,), 2.0, dtype=torch.float16)  # whose sum of squares is no number of 16 bits
    assert adaptive_weight(half, half).item() == pytest.approx(1.0, rel=1e-5)


def test_a_gradient_that_is_given_is_that_of_the_whole_graph():
    torch.manual_seed(0)
    generator, discriminator, noise = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 4), nn.SiLU()), torch.randn(2, 3)
    generator_hinge(discriminator(generator(noise))).backward()
    expected = [parameter.grad for parameter in generator.parameters()]
    generator.zero_grad()
    discriminator.zero_grad()
    made = generator(noise)
    leaf = made.detach().requires_grad_()
    value = generator_hinge(discriminator(leaf))
    term = with_gradient(made, value, torch.autograd.grad(value, leaf)[0])
    assert term.item() == value.item()
    term.backward()
    for parameter, gradient in zip(generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
