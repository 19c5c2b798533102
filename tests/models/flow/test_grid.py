"""Time grids and schedules over frames."""

import pytest
import torch

from models.flow.grid import (
    autoregressive,
    check_grid,
    euler_scheduler_grid,
    full_sequence,
    karras_grid,
    linear_quadratic_grid,
    pyramid,
    uniform_grid,
    unipc_scheduler_grid,
    whole_thousandths,
)
from models.flow.path import (
    CosinePath,
    StraightPath,
    VariancePreservingPath,
)
from testing.gaussians import steps, times


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_the_times_of_published_schedulers_are_those_of_diffusers(num_steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler  # seconds, not while collecting

    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(num_steps)
    torch.testing.assert_close(1 - euler_scheduler_grid(num_steps, shift), torch.as_tensor(euler.sigmas).double())

    unipc = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, final_sigmas_type="zero"
    )
    unipc.set_timesteps(num_steps)
    grid = unipc_scheduler_grid(num_steps, shift)
    torch.testing.assert_close(1 - grid, unipc.sigmas.double())
    seen = 1000 * (1 - whole_thousandths(grid[:-1].float()))
    torch.testing.assert_close(seen, unipc.timesteps.float(), rtol=0, atol=1e-3)
    for each in (grid, euler_scheduler_grid(num_steps, shift)):
        check_grid(each)


def test_grids():
    torch.testing.assert_close(uniform_grid(4), times(0.0, 0.25, 0.5, 0.75, 1.0))
    grid = linear_quadratic_grid(20, 10, 0.025)
    assert len(grid) == 21
    torch.testing.assert_close(grid[:11], steps(10) * 0.025)
    assert grid[-1].item() == pytest.approx(1.0)
    assert bool((grid.diff() > 0).all())
    for path in (VariancePreservingPath(), CosinePath()):
        grid = karras_grid(10, path, sigma_min=0.01, sigma_max=50.0)
        assert bool((grid.diff() > 0).all())
        levels = (-path.log_ratio(grid[:-1])).exp() ** (1 / 7)
        torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(9), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        uniform_grid(0)
    with pytest.raises(ValueError, match="between 1 and 9 linear steps, got 10"):
        linear_quadratic_grid(10, 10)


def test_schedules():
    grid = steps(2)
    assert torch.equal(full_sequence(grid, 2), times(0, 0.5, 1)[:, None].expand(3, 2))
    assert pyramid(grid, 3).tolist() == [[0, 0, 0], [0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5], [1, 1, 1]]
    assert autoregressive(grid, 2).tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1]]


@pytest.mark.parametrize("sigma_max", [10.0, 80.0, 1e4])
@pytest.mark.parametrize("path", [VariancePreservingPath(), StraightPath(), StraightPath(sigma_min=0.1), CosinePath()])
def test_karras_grids_rise_between_the_ends_of_the_path(path, sigma_max):
    """Variance preserving starts at b / a = 152, the straight path with sigma_min 0.1 ends at 0.1."""
    for num_steps in (1, 2, 18):
        grid = karras_grid(num_steps, path, sigma_max=sigma_max)
        check_grid(grid)
        assert len(grid) == num_steps + 1
        assert grid[-1] == 1
        largest = (-path.log_ratio(times(0.0))).exp().item()
        assert (grid[0] == 0) == (sigma_max >= largest)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        karras_grid(0, path)
