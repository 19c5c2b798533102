"""Conversions between velocity, data, noise and score, in float64."""

import pytest
import torch

from models.flow.field import Field, from_velocity, to_velocity
from models.flow.objective import target
from models.flow.path import (
    StraightPath,
)
from testing.checkerboard import SQUARES, posterior_mean
from testing.gaussians import PATHS, PREDICTIONS, GaussianData, each_path, numbers, steps, times


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_are_inverse_pairs(path, prediction):
    x_0, x_1 = numbers(2, 9, 4).unbind(0)
    t = steps(8, 0.05, 0.95)
    at = path.at(t, x_1)
    point = path.sample(x_0, x_1, t)
    predicted = from_velocity(at, prediction, point.x_t, point.velocity)
    torch.testing.assert_close(predicted, target(path, prediction, x_0, x_1, t), rtol=1e-12, atol=1e-12)
    again = to_velocity(at, prediction, point.x_t, predicted)
    torch.testing.assert_close(again, point.velocity, rtol=1e-12, atol=1e-12)


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversions_are_finite_at_both_ends(path, prediction, dtype):
    x_0, x_1 = numbers(2, 2, 4).to(dtype).unbind(0)
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    at, point = path.at(t, x_1), path.sample(x_0, x_1, t)
    assert bool(point.velocity.isfinite().all())
    assert bool(from_velocity(at, prediction, point.x_t, x_1 - x_0).isfinite().all())
    assert bool(to_velocity(at, prediction, point.x_t, x_0).isfinite().all())


def test_a_field_can_change_its_path_after_training():
    """The optimal network of one path, moved to another, is the other path's optimal network."""
    for old in PATHS:
        for new in PATHS:
            x, t = numbers(6, 1), times(0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
            if isinstance(old, StraightPath) and old.sigma_min:
                continue  # it never gets rid of all noise: other paths end beyond it
            moved = GaussianData(old, 0.7, 0.6).field.on(new)
            expected = GaussianData(new, 0.7, 0.6).velocity(x, t)
            keep = new.log_ratio(t) > old.log_ratio(times(0.0))  # not every path starts at pure noise
            x, t, expected = x[keep], t[keep], expected[keep]
            torch.testing.assert_close(moved.velocity(x, t), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_field_gives_all_four_from_any_prediction(prediction):
    for path in PATHS:
        data = GaussianData(path, 0.7, 0.6)
        x, t = numbers(5, 2), steps(4, 0.1, 0.9)
        at, velocity = path.at(t, x), data.velocity(x, t)
        field = Field(
            lambda y, s, p=path, d=data: from_velocity(p.at(s, y), prediction, y, d.velocity(y, s)), path, prediction
        )
        for wanted in PREDICTIONS:
            got = getattr(field, wanted)(x, t)
            torch.testing.assert_close(got, from_velocity(at, wanted, x, velocity), rtol=1e-11, atol=1e-11)


def test_the_score_is_the_gradient_of_the_log_density():
    for path in PATHS:
        data, x = GaussianData(path, 0.7, 0.6), numbers(5, 1)
        for t in (0.2, 0.6, 0.9):
            mean, std = data.moments(t)
            torch.testing.assert_close(
                data.field.score(x, times(t).expand(5)), -(x - mean) / std**2, rtol=1e-9, atol=1e-9
            )


def test_checkerboard_posterior_mean_against_quadrature():
    """The benchmark's closed form, by adding up the board in small pieces."""
    path, x, t = StraightPath(), numbers(6, 2), times(0.05, 0.3, 0.5, 0.7, 0.8, 0.9)
    pitch = 1 / 64
    inner = (torch.arange(64, dtype=torch.float64) + 0.5) * pitch
    points = (SQUARES[:, None] + torch.cartesian_prod(inner, inner)).flatten(0, 1)
    at = path.at(t, x)
    weights = (-(x[:, None] - at.a[:, None] * points).square().sum(-1) / (2 * at.b**2)).softmax(1)
    torch.testing.assert_close(posterior_mean(path, x, t), weights @ points, rtol=0, atol=2e-3)
