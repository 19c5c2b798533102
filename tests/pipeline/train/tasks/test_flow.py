"""What the flow task draws per sample: dropped captions and times per frame."""

from dataclasses import replace

import torch

from data.dataset.reader import PayloadReader
from data.stream.loader import Sample
from testing.tiny import SHAPE


def test_caption_drop_is_per_sample_and_at_the_configured_rate(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    batch = task.collate([Sample(position, rows, 0, content) for position in range(400)])
    dropped = (batch.caption.mask.sum(1) == 1).float().mean()
    assert abs(float(dropped) - 0.3) < 0.07


def test_times_per_frame_belong_to_their_position(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    per_frame = replace(task, flow=task.flow.model_copy(update={"times_per": "frame"}))
    t = per_frame.collate([Sample(position, rows, 0, content) for position in range(400)]).t
    assert t.shape == (400, 1, SHAPE[1])
    assert torch.equal(per_frame.collate([Sample(7, rows, 0, content)]).t, t[7:8])
    assert len(t.unique()) == t.numel()
