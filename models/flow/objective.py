"""The training objective: the training times, the regression target, and the coupling of noise and data.

Conditional flow matching, denoising score matching and DDPM training are one squared error,

    L = E_{t, x_0, x_1} weight(t) || prediction_theta(x_t, t) - prediction(x_0, x_1, t) ||²,

with prediction = velocity (Lipman et al. 2022, eq. 9; Holderrieth & Erives 2025, algorithm 3), score (Lipman et al.
eq. 2; Holderrieth & Erives algorithm 4), noise (Ho et al. 2020, eq. 14) or data, on any path.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.flow.field import check_prediction, velocity_weight
from models.flow.grid import shift_time
from models.flow.path import Path, expand, nonzero
from models.flow.spec import LossWeight, Prediction, TimeLaw


def training_times(law: TimeLaw, uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Turn numbers in (0, 1) into times in [0, 1] that follow `law`, in increasing order of the numbers."""
    if law.law == "uniform":
        t = uniform
    elif law.law == "mode":
        t = uniform + law.mode_scale * ((math.pi / 2 * uniform).cos().square() - 1 + uniform)
    else:
        t = torch.sigmoid(law.mean + law.std * torch.special.ndtri(uniform))
    return shift_time(t, law.shift)


def stratified(positions: Int[Tensor, " b"], offset: float) -> Float[Tensor, " b"]:
    """Numbers in (0, 1) that cover the interval evenly over every stretch of consecutive positions, float64.

    Multiples of the golden ratio modulo 1 (Weyl's sequence): a global batch of any size, on any number of workers, gets
    times as evenly spread as by stratified sampling, although each depends on its own position alone.

    Args:
        offset: where the sequence starts, in [0, 1).
    """
    golden = (math.sqrt(5) - 1) / 2
    tiny = 2.0**-40
    return ((positions.double() * golden + offset) % 1.0).clamp(tiny, 1 - tiny)


def target(path: Path, prediction: Prediction, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """What a network of this prediction regresses at x_t."""
    check_prediction(prediction)
    if prediction == "data":
        return x_1
    if prediction == "noise":
        return x_0
    at = path.at(t, x_1)
    return -x_0 / nonzero(at.b) if prediction == "score" else at.velocity(x_0, x_1)


def matching_loss(
    path: Path,
    prediction: Prediction,
    predicted: Float[Tensor, "b ..."],
    x_0: Float[Tensor, "b ..."],
    x_1: Float[Tensor, "b ..."],
    t: Tensor,
    weight: LossWeight = "plain",
    known: Bool[Tensor, "b 1 t"] | None = None,
) -> Float[Tensor, " b"]:
    """Each sample's mean squared error against its target.

    Named special cases: straight path and velocity is flow matching; VP and noise is DDPM's simple loss; score
    is denoising score matching. `weight` "velocity" turns any of them into the velocity's loss, whatever is predicted.

    Args:
        known: frames that are given and have no loss, at least one of each sample is not; None: there are none.
    """
    if known is not None:
        t = torch.where(known, 0.5, t)  # any time at which the error that is left out is finite
    error = (predicted.to(x_1) - target(path, prediction, x_0, x_1, t)).square()
    if weight == "velocity" or prediction == "velocity":
        error = error * velocity_weight(path.at(t, x_1), prediction)
    if known is None:
        return error.flatten(1).mean(1)
    share = 1 - known.float().mean((1, 2))
    return torch.where(expand(known, error), 0.0, error).flatten(1).mean(1) / share


def optimal_coupling(
    x_0: Float[Tensor, "b ..."], x_1: Float[Tensor, "b ..."], conditions: Sequence[Hashable] | None = None
) -> Int[Tensor, " b"]:
    """The permutation of the noises that minimises the sum of squared distances to the data of the batch.

    Minibatch optimal transport (Tong et al. 2023, section 3.2): train on x_0[permutation], x_1; paths cross less.

    Args:
        conditions: of each sample; noise is exchanged among equal ones alone, so that it stays independent of them, as
            it is in sampling (Cheng & Schwing 2025, arXiv 2503.10636, section 3.2). None: there are none.
    """
    from scipy.optimize import linear_sum_assignment

    permutation, samples = torch.arange(len(x_0)), defaultdict(list)
    for number, condition in enumerate([None] * len(x_0) if conditions is None else conditions):
        samples[condition].append(number)
    for group in (torch.tensor(group) for group in samples.values() if len(group) > 1):
        cost = torch.cdist(x_1[group].flatten(1).double(), x_0[group].flatten(1).double()).square()
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        permutation[group] = group[torch.as_tensor(columns)]
    return permutation.to(x_0.device)
