"""Means of losses by bins of the flow time."""

import torch

from pipeline.train.time_bins import bin_means, binned


def test_bins_of_time():
    loss, t = torch.tensor([1.0, 2.0, 5.0, 3.0]), torch.tensor([0.0, 0.24, 0.5, 1.0])
    values = {name: value.item() for name, value in binned(loss, t).items()}
    assert bin_means(values | {"total": 2.75}) == {"total": 2.75, "loss_t0": 1.5, "loss_t2": 5.0, "loss_t3": 3.0}
    weighted = binned(loss, t, torch.tensor([0.5, 1.5, 1.0, 1.0]))
    assert bin_means({name: value.item() for name, value in weighted.items()})["loss_t0"] == (0.5 * 1 + 1.5 * 2) / 2
    of_frames = torch.tensor([[0.0, 1.0], [0.9, 1.0]])[:, None]  # b 1 t
    assert {n for n, v in binned(loss[:2], of_frames).items() if n.startswith("share") and v > 0} == {
        "share_t2",
        "share_t3",
    }
