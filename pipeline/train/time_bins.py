"""The loss by time: a flow is learnt at all times at once, and its average hides at which of them it is bad."""

import torch
from jaxtyping import Float
from torch import Tensor

NUM_TIME_BINS = 4  # of [0, 1], from noise to data


def binned(loss: Float[Tensor, " b"], t: Tensor) -> dict[str, Tensor]:
    """Per bin, the share of the batch's samples in it, and the sum of their losses divided by the batch's size.

    Both may be averaged over batches of equal size and over ranks; `bin_means` then makes exact means of them.

    Args:
        t: one time per sample, or several (b ...), whose mean decides.
    """
    with torch.no_grad():
        number = (t.reshape(len(t), -1).mean(1) * NUM_TIME_BINS).long().clamp(0, NUM_TIME_BINS - 1)
        inside = number[:, None] == torch.arange(NUM_TIME_BINS, device=t.device)
        sums = torch.where(inside, loss[:, None].float(), 0.0).mean(0)
        shares = inside.float().mean(0)
    values = {f"loss_t{n}": part for n, part in enumerate(sums.unbind())}
    return values | {f"share_t{n}": part for n, part in enumerate(shares.unbind())}


def bin_means(values: dict[str, float]) -> dict[str, float]:
    """Values with the parts of `binned` made into the mean loss of each bin; a bin without samples is left out."""
    result = {name: value for name, value in values.items() if not name.startswith(("loss_t", "share_t"))}
    for n in range(NUM_TIME_BINS):
        if share := values.get(f"share_t{n}"):
            result[f"loss_t{n}"] = values[f"loss_t{n}"] / share
    return result
