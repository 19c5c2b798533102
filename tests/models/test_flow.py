"""Flow matching as a whole: frames with times of their own, every solver, path, prediction and guidance rule."""

import math

import jaxtyping
import pytest
import torch
from torch import Tensor

from models.flow.field import Field, from_velocity
from models.flow.grid import autoregressive, full_sequence, pyramid, starting_at
from models.flow.guidance import Apg, Branches, CfgZeroStar, Guidance, Plain, Rescaled, guided
from models.flow.path import CosinePath, Path, StraightPath, VariancePreservingPath
from models.flow.solver import (
    ab2,
    clamped,
    ddim,
    dpmpp_2m,
    euler,
    euler_maruyama,
    falling_diffusion,
    heun,
    midpoint,
    rk4,
    unipc,
)
from models.flow.spec import Prediction
from testing.gaussians import VideoData, affine_moments, ar1, constant_diffusion, numbers, steps

PATHS: list[Path] = [StraightPath(), CosinePath(), VariancePreservingPath()]
RULES = [Plain(3.0), Plain(3.0, 0.2, 0.7), CfgZeroStar(3.0), Apg(3.0), Rescaled(3.0)]
SCHEDULES = [full_sequence, pyramid, autoregressive]
TOLERANCES = {  # of the covariance after 24 steps a frame
    euler: 0.12,
    ddim: 0.2,
    midpoint: 1e-3,
    heun: 0.012,
    rk4: 2e-3,
    ab2: 0.012,
    dpmpp_2m: 0.02,
    unipc: 0.015,
}

name_of = lambda value: getattr(value, "__name__", None) or type(value).__name__  # noqa: E731


@pytest.fixture
def unchecked(monkeypatch):
    """Without the checks of shapes, which double the time of small calls; other tests here make the same with them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def predictions_of(path: Path) -> list[Prediction]:
    """Those that a network can be trained for: the noise says nothing of the data where a = 0."""
    return ["velocity", "data", "noise"] if isinstance(path, VariancePreservingPath) else ["velocity", "data"]


def predicting(data: VideoData, prediction: Prediction) -> Field:
    path = data.path
    return Field(lambda x, t: from_velocity(path.at(t, x), prediction, x, data.velocity(x, t)), path, prediction)


def as_guided(field: Field, rule: Guidance) -> Field:
    """Both branches alike, so that every rule leaves the distribution as it is."""
    return guided(Branches(field.function, field.function), field.path, field.prediction, rule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_every_combination_reaches_the_videos_covariance(unchecked, path, schedule):
    """Solver x prediction. With times per frame, any way from noise to data has the same end (Chen et al. 2024)."""
    covariance = ar1(3, 0.8)
    data, basis = VideoData(path, covariance), torch.eye(3, dtype=torch.float64)[:, None]  # b 1 frames
    times = schedule(steps(24), 3)
    for solver, tolerance in TOLERANCES.items():
        for prediction in predictions_of(path):
            field = predicting(data, prediction)
            end = solver(field, basis, times)[:, 0]  # linear: the rows are the map
            assert (end.T @ end - covariance).abs().max() < tolerance, (solver, prediction)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_every_guidance_rule_keeps_what_both_branches_agree_on(unchecked, path, schedule):
    """Schedule x solver x prediction x guidance rule: with the test above, every combination reaches the covariance."""
    data, basis = VideoData(path, ar1(2, 0.8)), torch.eye(2, dtype=torch.float64)[:, None]
    times = schedule(steps(3), 2)  # enough for every solver's history
    for solver in TOLERANCES:
        for prediction in predictions_of(path):
            field = predicting(data, prediction)
            end = solver(field, basis, times)
            for rule in RULES:
                again = solver(as_guided(field, rule), basis, times)
                torch.testing.assert_close(
                    again, end, rtol=0, atol=1e-8, msg=lambda m, s=solver, r=rule: f"{s} {r}: {m}"
                )


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@pytest.mark.parametrize(("solver", "order"), [(heun, 2), (ab2, 2), (unipc, 2)], ids=name_of)
def test_the_order_is_kept_while_some_frames_have_ended(unchecked, solver, order, schedule, prediction):
    covariance, errors = ar1(4, 0.8), []
    field = predicting(VideoData(StraightPath(), covariance), prediction)
    basis = torch.eye(4, dtype=torch.float64)[:, None]
    for num_steps in (24, 48, 96):
        end = solver(field, basis, schedule(steps(num_steps), 4))[:, 0]
        errors.append((end.T @ end - covariance).abs().max().item())
    assert math.log2(errors[1] / errors[2]) > order - 0.25, errors


@pytest.mark.parametrize("solver", TOLERANCES, ids=name_of)
def test_a_frame_that_pauses_keeps_its_state(solver):
    """Also where the network, undefined there, answers with anything."""
    schedule = torch.tensor([[0.0, 0.2], [0.3, 0.2], [0.3, 0.2], [0.6, 0.2], [1.0, 0.2]])
    schedule = torch.cat([schedule[:2], schedule[3:], torch.tensor([[1.0, 0.7], [1.0, 1.0]])]).double()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t == 1, 1e30, 0.5 * x)

    start = numbers(2, 1, 2)
    for rows in range(2, len(schedule) + 1):
        end = solver(Field(network, StraightPath(), "data"), start, schedule[:rows])
        assert bool(end.isfinite().all())
        if rows <= 4:
            assert torch.equal(end[..., 1], start[..., 1])


@pytest.mark.parametrize("path", PATHS, ids=name_of)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_diffusion_ends_in_the_videos_covariance_on_every_schedule(unchecked, path, schedule):
    covariance, errors = ar1(3, 0.8), []
    data = VideoData(path, covariance)
    for num_steps in (60, 120):
        grid = schedule(steps(num_steps), 3)
        count = len(grid) - 1
        probes = torch.cat([torch.zeros(1, 3 * (count + 1)), torch.eye(3 * (count + 1))]).double()
        rows = probes.reshape(len(probes), 1, count + 1, 3)
        end = euler_maruyama(
            Field(data.velocity, path),
            rows[:, :, 0],
            grid,
            falling_diffusion(path, 1.0),
            lambda k, r=rows: r[:, :, 1 + k],
        )[:, 0]
        effects = end[1:] - end[0]
        errors.append((effects.T @ effects - covariance).abs().max().item())
    assert errors[1] < 0.06
    assert errors[1] < 0.65 * errors[0]


def test_a_frames_last_step_is_free_of_noise():
    """In a pyramid frames end one after the other; none keeps noise of the step in which it ends."""
    grid, asked = pyramid(steps(4), 3), []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.full((1, 1, 3), 1e6, dtype=torch.float64)

    field = Field(lambda x, t: torch.ones_like(x), StraightPath(), "data")
    end = euler_maruyama(field, numbers(1, 1, 3), grid, constant_diffusion(1.0), noise)
    torch.testing.assert_close(end, torch.ones_like(end), rtol=0, atol=1e-6)
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("solver", [heun, rk4, unipc, dpmpp_2m], ids=name_of)
def test_known_frames_give_the_conditional_of_the_rest(solver):
    """Frames held at t = 1 are clean from the start; the others then follow the Gaussian conditional."""
    covariance, known = ar1(3, 0.8), 1.3
    field = Field(VideoData(StraightPath(), covariance).velocity, StraightPath())
    probes = torch.tensor([[known, 0, 0], [known, 1, 0], [known, 0, 1]], dtype=torch.float64)[:, None]
    for schedule in (full_sequence, pyramid, autoregressive):
        times = starting_at(schedule(steps(100), 3), torch.tensor([1.0, 0.0, 0.0]))
        end = solver(field, probes, times)[:, 0]
        assert torch.equal(end[:, 0], torch.full((3,), known, dtype=torch.float64))
        rest, given = covariance[1:, 1:], covariance[1:, :1]
        torch.testing.assert_close(end[0, 1:], (given * known)[:, 0], rtol=0, atol=2e-3)
        effects = end[1:, 1:] - end[0, 1:]
        torch.testing.assert_close(effects.T @ effects, rest - given @ given.T, rtol=0, atol=2e-3)


def test_a_schedule_needs_a_frame_to_sample():
    with pytest.raises(ValueError, match="all frames are known"):
        starting_at(full_sequence(steps(3), 2), torch.ones(2))


@pytest.mark.parametrize("path", PATHS, ids=name_of)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_clamping_ends_at_what_is_known(path, prediction):
    """With every solver, also where the path's velocity is infinite at its end, and with noise."""
    field = predicting(VideoData(path, ar1(3, 0.8)), prediction)
    x_0, known, mask = numbers(2, 1, 3), numbers(2, 1, 3, seed=1), torch.tensor([1, 0, 0])
    held = clamped(field, known, mask, x_0)
    ends = {solver: solver(held, x_0, steps(50)) for solver in TOLERANCES}
    sde = euler_maruyama(held, x_0, steps(50), constant_diffusion(0.5), lambda step: numbers(2, 1, 3, seed=step))
    for end in (*ends.values(), sde):
        assert torch.equal(end[..., 0], known[..., 0])
        assert end.abs().max() < 4
    assert not torch.allclose(ends[heun][..., 1:], heun(field, x_0, steps(50))[..., 1:], atol=1e-2)
    with pytest.raises(ValueError, match="change the path before clamping"):
        held.on(CosinePath())


def test_clamping_is_biased_towards_the_unconditional():
    """An AR(1) frame after one of 1.3 has mean 1.04 and variance 0.36; clamping gives 0.45 and 0.67."""
    known, mask = torch.tensor([[[1.3, 0]]] * 3, dtype=torch.float64), torch.tensor([1, 0])
    x_0 = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()[:, None]
    field = Field(VideoData(StraightPath(), ar1(2, 0.8)).velocity, StraightPath())
    end = rk4(clamped(field, known, mask, x_0), x_0, steps(100))[:, 0]
    mean, effects = end[0], end[1:] - end[0]
    assert mean[1].item() == pytest.approx(0.45, abs=5e-3)
    assert effects[:, 1].square().sum().item() == pytest.approx(0.67, abs=5e-3)


def test_moments_of_a_sample():
    mean, variance = affine_moments(lambda x, noise: 2 + 3 * x + 4 * noise(0), 1)
    assert (mean, variance) == (2, 25)
