"""The loss by flow time: the mean over all times hides at which of them a network is poor."""

import torch
from jaxtyping import Float
from torch import Tensor

NUM_TIME_BINS = 4  # equal parts of [0, 1], from noise to data


def binned(loss: Float[Tensor, " b"], t: Tensor, weight: Float[Tensor, " b"] | None = None) -> dict[str, Tensor]:
    """Per time bin, the fraction of samples in it, and the sum of their losses divided by the batch size.

    Both may be averaged over batches of equal size and over ranks, and `bin_means` turns the averages into exact means.

    Args:
        t: times, (b ...); a sample belongs to the bin of its mean time.
        weight: how often each sample counts, 1 on average; None: each counts once.

    Returns:
        Scalars `loss_t0`, ..., `share_t0`, ...
    """
    with torch.no_grad():
        number = (t.reshape(len(t), -1).mean(1) * NUM_TIME_BINS).long().clamp(0, NUM_TIME_BINS - 1)
        inside = number[:, None] == torch.arange(NUM_TIME_BINS, device=t.device)
        counted = inside.float() if weight is None else inside * weight[:, None]
        sums = torch.where(inside, loss[:, None].float() * counted, 0.0).mean(0)
        shares = counted.mean(0)
    values = {f"loss_t{n}": part for n, part in enumerate(sums.unbind())}
    return values | {f"share_t{n}": part for n, part in enumerate(shares.unbind())}


def bin_means(values: dict[str, float]) -> dict[str, float]:
    """`values` with the results of `binned` replaced by the mean loss of each bin; empty bins are left out."""
    result = {name: value for name, value in values.items() if not name.startswith(("loss_t", "share_t"))}
    for n in range(NUM_TIME_BINS):
        if share := values.get(f"share_t{n}"):
            result[f"loss_t{n}"] = values[f"loss_t{n}"] / share
    return result
