"""Flow maps against the closed form of Gaussian data, in float64."""

import pytest
import torch

from models.flow.field import Field
from models.flow.flow_map import Jump, drawn_jumps, flow_map, flow_map_solver, jump_target
from models.flow.path import CosinePath, PolynomialPath, StraightPath
from models.flow.solver import Counted, rk4
from models.flow.spec import FlowMapSpec
from testing.flow_maps import exact_map
from testing.gaussians import GaussianData, numbers, steps, times

PATHS = [StraightPath(), CosinePath(), PolynomialPath(2.0)]
each_of_these = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


@each_of_these
def test_the_exact_map_is_where_a_solver_goes(path):
    u, x, t, s = exact_map(path, 0.7, 0.4), numbers(5, 1), times(0, 0.1, 0.3, 0.5, 0), times(1, 0.4, 0.9, 0.5, 0.2)
    data = GaussianData(path, 0.7, 0.4)
    for row in range(5):
        one = slice(row, row + 1)
        ends = flow_map(u, x[one], t[one], s[one])
        if s[row] > t[row]:
            solved = rk4(data.field, x[one], steps(40, t[row].item(), s[row].item()))
            torch.testing.assert_close(ends, solved, rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(u(x[one], t[one], s[one]), data.velocity(x[one], t[one]))
    at_once = flow_map(u, x, times(0).expand(5), times(1).expand(5))
    torch.testing.assert_close(at_once, 0.7 + 0.4 * x, rtol=0, atol=1e-12)


@each_of_these
@pytest.mark.parametrize("consistency", ["split", "lagrangian"])
def test_the_exact_map_is_its_own_target(path, consistency):
    """Split jumps to rounding (the semigroup identity), the last short step to first order in its length."""
    u, x = exact_map(path, 0.7, 0.4), numbers(64, 1)
    t = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.rand(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = []
    for length in (1 / 32, 1 / 64):
        spec = FlowMapSpec(consistency=consistency, consistency_share=0.9, lagrangian_step=length)
        jump = drawn_jumps(spec, t, uniform)
        errors.append((jump_target(spec, u, x, jump) - u(x, t, jump.s)).abs().max().item())
    if consistency == "split":
        assert max(errors) < 1e-11
    else:
        assert 0.25 < errors[1] / errors[0] < 0.6, errors


@each_of_these
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_every_number_of_jumps_has_the_same_end_at_one_call_each(path, num_steps):
    u = Counted(exact_map(path, 0.7, 0.4))
    x = numbers(6, 1)
    end = flow_map_solver(u)(Field(lambda x, t: x, path), x, steps(num_steps))
    torch.testing.assert_close(end, 0.7 + 0.4 * x, rtol=0, atol=1e-12)
    assert u.calls == num_steps


def test_jumps_begin_at_the_training_times():
    num = 4000
    uniform = torch.rand(num, 3, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, num)
    jump = drawn_jumps(FlowMapSpec(consistency_share=0.25), t, uniform)
    assert torch.equal(jump.t, t)
    assert bool(((jump.t <= jump.q) & (jump.q <= jump.s) & (jump.s <= 1)).all())
    assert (jump.s > t).float().mean().item() == pytest.approx(0.25, abs=0.03)
    known = torch.tensor([True, False, False]).reshape(1, 1, 3)
    framed = drawn_jumps(FlowMapSpec(consistency_share=0.99), torch.where(known, 1.0, t[:3, None, None]), uniform[:3])
    assert framed.s.shape == (3, 1, 3)
    assert bool((framed.s[..., 0] == 1).all())  # frames that are given stay
    assert bool(torch.equal(framed.s[..., 1], framed.s[..., 2]))
    assert bool((jump.share >= 0).all())
    assert bool((Jump(t, t, t).share == 0).all())
