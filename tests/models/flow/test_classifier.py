"""Guidance by a classifier's gradient against closed forms."""

import pytest
import torch
from torch import Tensor

from models.flow.classifier import with_classifier
from models.flow.field import Field
from models.flow.path import CosinePath, Path, StraightPath, VariancePreservingPath
from models.flow.solver import rk4
from testing.gaussians import GaussianData, numbers, steps, times

PATHS = [StraightPath(), CosinePath(), VariancePreservingPath()]


def log_densities(path: Path, x: Tensor, t: Tensor) -> Tensor:
    """Of two classes, N(1, 0.7²) and N(-0.5, 0.7²), at time t, (b 2)."""
    at = path.at(t, x)
    variance = (0.7 * at.a) ** 2 + at.b**2
    return torch.cat([-(x - at.a * mean).square() / (2 * variance) for mean in (1.0, -0.5)], 1)


def mixture(path: Path) -> Field:
    """Of both classes in equal shares."""
    classes = [GaussianData(path, mean, 0.7) for mean in (1.0, -0.5)]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        weights = log_densities(path, x, t).softmax(1)
        return sum((weights[:, i : i + 1] * each.velocity(x, t) for i, each in enumerate(classes)), torch.zeros_like(x))

    return Field(velocity, path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_exact_classifier_gives_the_condition(path):
    """v(x | y) = v(x) + dv/ds grad log p(y | x), Bayes' rule for scores; off at scale 0."""
    x, t = numbers(9, 1), steps(8, 0.05, 0.95)
    field, wanted = mixture(path), GaussianData(path, 1.0, 0.7)
    log_probability = lambda x, t: log_densities(path, x, t).log_softmax(1)[:, 0]  # noqa: E731
    with torch.no_grad():
        guided = with_classifier(field, log_probability, 1.0).velocity(x, t)
        torch.testing.assert_close(guided, wanted.velocity(x, t), rtol=0, atol=1e-10)
        assert torch.equal(with_classifier(field, log_probability, 0.0).velocity(x, t), field.velocity(x, t))


def test_samples_of_the_condition():
    """From t = 0, where the classifier says nothing, and its gradient over a has a limit."""
    path, quantiles = StraightPath(), steps(4, -2, 2)[:, None]
    guided = with_classifier(mixture(path), lambda x, t: log_densities(path, x, t).log_softmax(1)[:, 0], 1.0)
    torch.testing.assert_close(rk4(guided, quantiles, steps(100)), 1 + 0.7 * quantiles, rtol=0, atol=1e-4)
    at_noise = guided.velocity(quantiles, times(0).expand(5))
    torch.testing.assert_close(at_noise, 1 - quantiles, rtol=0, atol=5e-3)
