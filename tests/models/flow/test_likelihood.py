"""Log likelihood and divergence against closed forms, in float64."""

from functools import partial

import pytest
import torch

from models.flow.field import Field
from models.flow.likelihood import (
    bits_per_dimension,
    exact_divergence,
    log_likelihood,
    probed_divergence,
    rademacher,
    variational_bound,
)
from models.flow.path import (
    CosinePath,
    StraightPath,
)
from models.flow.solver import (
    dopri5,
)
from testing.gaussians import PATHS, GaussianData, numbers, steps, times


@pytest.mark.parametrize("path", [StraightPath(), CosinePath(), PATHS[-1]], ids=lambda path: type(path).__name__)
def test_likelihood_of_a_gaussian(path):
    """log N(x; mean, std²), by the change of density along the flow (Lipman et al. 2022, eq. 32)."""
    data, x, exact = GaussianData(path, 0.7, 0.6), 0.7 + 0.6 * numbers(5, 3), partial(dopri5, tolerance=5e-11)
    expected = torch.distributions.Normal(times(0.7), times(0.6)).log_prob(x).sum(1)
    torch.testing.assert_close(log_likelihood(data.field, x, steps(1), solver=exact), expected, rtol=0, atol=1e-8)
    # The Jacobian is diagonal, so one probe has no variance; two probes in one batch of ten.
    probes = torch.cat([rademacher(x, torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    probed = log_likelihood(data.field, x.repeat(2, 1), steps(1), probed_divergence(probes), exact)
    torch.testing.assert_close(probed, expected.repeat(2), rtol=0, atol=1e-8)


def test_probed_divergence_is_right_on_average_over_all_probes():
    matrix, x, t = numbers(4, 4), numbers(1, 4, seed=1), times(0.5)
    field = Field(lambda y, s: y @ matrix.T, StraightPath())
    signs = torch.cartesian_prod(*[times(-1, 1)] * 4)
    estimates = torch.stack([probed_divergence(sign[None])(field, x, t)[1] for sign in signs])
    torch.testing.assert_close(estimates.mean(0), exact_divergence(field, x, t)[1])
    torch.testing.assert_close(estimates.mean(), matrix.trace())
    assert estimates.std() > 0.1


def test_bits_per_dimension():
    """A density of 1 / 256 in each dimension takes 8 bits, one of 2 takes -1."""
    log_density = 12 * times(1 / 256, 2).log()
    torch.testing.assert_close(bits_per_dimension(log_density, 12), times(8, -1))


@pytest.mark.parametrize("path", [StraightPath(), CosinePath(), PATHS[2]], ids=lambda path: type(path).__name__)
def test_the_variational_bound_comes_down_to_the_likelihood(path):
    """Noises of -1 and 1 give the mean over a standard normal exactly: the error is quadratic in them."""
    data, x = GaussianData(path, 0.7, 0.6), 0.7 + 0.6 * numbers(4, 1)
    exact = -torch.distributions.Normal(times(0.7), times(0.6)).log_prob(x).sum(1)
    gaps = []
    for count in (60, 120, 240):
        ratios = torch.linspace(-6, 7, count + 1, dtype=torch.float64)  # log a / b, to which steps are even
        grid = path.time_of_log_ratio(ratios[(ratios > path.log_ratio(times(1e-6)))])
        signs = (torch.full_like(x, sign) for sign in (-1.0, 1.0))
        bounds = [variational_bound(data.field, x, grid, lambda _, s=sign: s) for sign in signs]
        gaps.append(((bounds[0] + bounds[1]) / 2 - exact).mean().item())
    assert 0 < gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 0.55 * gaps[1]
    assert abs(8 * gaps[2] - 6 * gaps[1] + gaps[0]) / 3 < 0.01  # the limit, by Richardson's extrapolation
