"""Measures of reconstructions against closed forms."""

import math

import pytest
import torch

from models.autoencoder.quality import C_1, C_2, flicker, high_frequency_energy, ssim

NOISE = torch.rand(2, 3, 4, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_equal_frames_have_a_similarity_of_one():
    assert ssim(NOISE, NOISE).shape == (2, 4)
    torch.testing.assert_close(ssim(NOISE, NOISE), torch.ones(2, 4))
    torch.testing.assert_close(ssim(NOISE[..., :8, :8], NOISE[..., :8, :8]), torch.ones(2, 4))  # less than the window


def test_similarity_of_constant_frames_compares_brightness_alone():
    one, other = torch.full((1, 3, 1, 16, 16), 0.5), torch.full((1, 3, 1, 16, 16), -0.25)
    expected = (2 * 0.5 * -0.25 + C_1) / (0.5**2 + 0.25**2 + C_1)
    assert ssim(one, other).item() == pytest.approx(expected, abs=1e-4)


def test_similarity_is_that_of_the_formula_in_one_window():
    """Frames of the size of the window have one place, whose statistics are weighted sums."""
    x, y = NOISE[:1, :1, :1, :11, :11].double(), NOISE[1:, :1, :1, :11, :11].double()
    row = torch.exp(-((torch.arange(11.0).double() - 5) ** 2) / (2 * 1.5**2))
    weights = torch.outer(row, row) / row.sum() ** 2
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + C_1) * (2 * covariance + C_2)
    expected = expected / (mean_x**2 + mean_y**2 + C_1) / (variance_x + variance_y + C_2)
    assert ssim(x.float(), y.float()).item() == pytest.approx(expected.item(), abs=1e-5)


def wave(cycles_down: int, cycles_right: int) -> torch.Tensor:
    """A wave of amplitude 0.5 on 16 x 16 pixels, with so many cycles along each axis."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    phase = 2 * math.pi * (cycles_down * rows + cycles_right * columns) / 16
    return 0.5 * torch.cos(phase)[None, None, None]


@pytest.mark.parametrize(
    ("cycles", "energy"),
    [((0, 0), 0), ((1, 0), 0), ((4, 0), 0), ((0, 6), 0.125), ((3, 3), 0.125), ((2, 3), 0), ((8, 8), 0.25)],
)
def test_energy_is_that_of_waves_shorter_than_four_pixels(cycles, energy):
    assert high_frequency_energy(0.1 + wave(*cycles)).item() == pytest.approx(energy, abs=1e-6)


def test_only_an_error_that_moves_flickers():
    still = NOISE[:, :, :1].expand(2, 3, 4, 24, 32)
    torch.testing.assert_close(flicker(still), torch.zeros(2, 3))
    steps = torch.tensor([0.0, 0.1, 0.0, -0.2]).reshape(1, 1, 4, 1, 1)
    torch.testing.assert_close(flicker(still + steps), torch.tensor([[0.1, 0.1, 0.2]] * 2))
    assert flicker(NOISE[:, :, :1]).shape == (2, 0)
