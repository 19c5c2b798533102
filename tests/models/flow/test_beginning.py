"""What clips begin with, against closed forms of a Gaussian "video" whose frames are correlated."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.flow.beginning import Beginning
from models.flow.field import Field
from models.flow.grid import autoregressive, full_sequence, pyramid
from models.flow.path import CosinePath, Path, StraightPath, VariancePreservingPath
from models.flow.solver import Solver, heun, rk4, unipc
from testing.gaussians import VideoData, ar1, numbers, steps

NUM = 5
COVARIANCE = ar1(NUM, 0.8)


def field_of(path: Path, covariance: Tensor = COVARIANCE) -> Field:
    """The exact velocity, for states (b 1 t 1 1)."""
    data = VideoData(path, covariance)
    return Field(lambda x, t: data.velocity(x[..., 0, 0], t)[..., None, None], path)


def ends(beginning: Beginning, noise: Tensor, grid: Tensor, path: Path, solver: Solver = rk4) -> Tensor:
    """The frames (b t) that states of this noise (b t) end at."""
    noise = noise[:, None, :, None, None]
    field = beginning.field(field_of(path), noise)
    return solver(field, beginning.state(path, noise), beginning.grid(grid))[:, 0, :, 0, 0]


def given(frames: Tensor, known: list[int]) -> Beginning:
    times = torch.zeros(NUM, dtype=torch.float64)
    times[known] = 1
    return Beginning(frames.expand(NUM + 1, -1)[:, None, :, None, None], times)


@pytest.mark.parametrize("schedule", [None, full_sequence, pyramid, autoregressive])
@pytest.mark.parametrize("known", [[0, 1], [0, 1, 2, 3], [0, 4], [0, 1, 4], [4], [1, 3]], ids=str)
def test_whatever_is_given_the_rest_follows_its_conditional(known, schedule):
    """Extension, interpolation, the last frame alone, and any subset: the Gaussian conditional given those frames."""
    frames, grid = torch.tensor([1.3, 0.4, -0.2, 0.7, -1.1]).double(), steps(60)
    grid = grid if schedule is None else schedule(grid, NUM)
    probes = torch.cat([torch.zeros(1, NUM), torch.eye(NUM)]).double()
    end = ends(given(frames, known), probes, grid, StraightPath())
    assert torch.equal(end[:, known], frames[known].expand(NUM + 1, -1))
    rest = [frame for frame in range(NUM) if frame not in known]
    gain = torch.linalg.solve(COVARIANCE[known][:, known], COVARIANCE[known][:, rest]).T
    torch.testing.assert_close(end[0, rest], gain @ frames[known], rtol=0, atol=2e-3)
    effects = (end[1:] - end[0])[rest][:, rest]
    expected = COVARIANCE[rest][:, rest] - gain @ COVARIANCE[known][:, rest]
    torch.testing.assert_close(effects.T @ effects, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("path", [StraightPath(), CosinePath(), VariancePreservingPath()])
@pytest.mark.parametrize("solver", [heun, unipc])
@pytest.mark.parametrize("start", [0.2, 0.6])
def test_a_varied_clip_has_the_distribution_of_clips(path, solver, start):
    """Clips of the data that are noised and sampled again are clips of the data: covariance and cross-covariance."""
    root = torch.linalg.cholesky(COVARIANCE)
    clips = torch.cat([root.T, torch.zeros(NUM, NUM).double()])  # a basis of the clip, then of its noise
    noise = torch.cat([torch.zeros(NUM, NUM), torch.eye(NUM)]).double()
    times = torch.full((NUM,), start, dtype=torch.float64)
    end = ends(Beginning(clips[:, None, :, None, None], times), noise, steps(200), path, solver)
    torch.testing.assert_close(end.T @ end, COVARIANCE, rtol=0, atol=1e-2)
    kept = torch.trace(end[:NUM].T @ clips[:NUM]) / NUM  # the correlation with the clip that was varied
    later = ends(Beginning(clips[:, None, :, None, None], times + 0.2), noise, steps(200), path, solver)
    assert 0 < kept < torch.trace(later[:NUM].T @ clips[:NUM]) / NUM < 1


def test_all_of_a_clip_varied_from_the_start_is_a_clip_from_noise():
    whole = Beginning(numbers(2, 1, NUM)[..., None, None], torch.zeros(NUM).double())
    noise, grid = numbers(2, NUM, seed=1), steps(7)
    assert torch.equal(whole.grid(grid), grid)
    assert torch.equal(whole.state(StraightPath(), noise[:, None, :, None, None])[:, 0, :, 0, 0], noise)
    assert whole.known is None


def test_the_grid_is_cut_where_a_clip_starts():
    grid = torch.tensor([0.0, 0.25, 0.5, 1.0]).double()
    start = lambda time: Beginning(torch.zeros(1, 1, 2, 1, 1), torch.full((2,), time, dtype=torch.float64))  # noqa: E731
    assert start(0.3).grid(grid).tolist() == [0.3, 0.5, 1.0]
    assert start(0.5).grid(grid).tolist() == [0.5, 1.0]
    assert start(0.9).grid(grid).tolist() == [0.9, 1.0]
    waits = replace(start(0.3), times=torch.tensor([1.0, 0.3], dtype=torch.float64))
    assert waits.grid(grid).tolist() == [[1.0, 0.3], [1.0, 0.5], [1.0, 1.0]]
    assert waits.grid(pyramid(grid, 2)).tolist() == [[1.0, 0.3], [1.0, 0.5], [1.0, 1.0]]
    with pytest.raises(ValueError, match="nothing is left to sample"):
        start(1.0).grid(grid)


@pytest.mark.parametrize("path", [StraightPath(), CosinePath(), VariancePreservingPath()])
def test_what_a_mask_keeps_ends_as_it_is_and_given_frames_do_too(path):
    latents, noise = numbers(2, 1, NUM, 2, 1), numbers(2, 1, NUM, 2, 1, seed=1)
    kept = torch.tensor([True, False]).reshape(1, 1, 1, 2, 1).expand(2, 1, 1, 2, 1)
    field = Field(lambda x, t: x.mean((2, 3), keepdim=True) - x, path)
    for times in (torch.zeros(NUM), torch.full((NUM,), 0.4), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5])):
        beginning = Beginning(latents, times.double(), kept)
        end = heun(beginning.field(field, noise), beginning.state(path, noise), beginning.grid(steps(5)))
        assert torch.equal(end[:, :, :, 0], latents[:, :, :, 0])
        assert torch.equal(end[:, :, times == 1], latents[:, :, times == 1])
        assert not torch.equal(end[:, :, 1, 1], latents[:, :, 1, 1])
