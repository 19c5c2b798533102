"""What the flow task draws per sample: dropped captions and times per frame."""

from dataclasses import replace

import torch

from data.dataset.reader import PayloadReader
from data.stream.loader import Sample
from models.text.bytes import CaptionTokens
from pipeline.train.tasks.flow_preview import FlowQuery
from testing.networks import with_open_gates
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


def test_the_network_is_told_the_frame_rate_of_each_clip(straight):
    task, folder, _ = straight
    rows = [replace(task.subsets()[0].rows[0], fps=fps) for fps in (8.0, 24.0)]
    content = PayloadReader(folder).read(rows[0])
    model = task.model.model_copy(update={"clip_conditions": ("fps",)})
    told = replace(task, model=model)
    batch = told.collate([Sample(7, rows, number, content) for number in range(2)])
    assert batch.fps.tolist() == [8.0, 24.0]
    assert told.validation_batch(rows[1], content).fps.tolist() == [24.0] * 4
    torch.manual_seed(0)
    module = with_open_gates(told.build())
    loss = module(batch)["total"]
    assert not torch.equal(module(replace(batch, fps=torch.full((2,), 8.0)))["total"], loss)
    caption = CaptionTokens.encode(["a dot"], task.model.caption_bytes)
    queries = (FlowQuery(batch.x_1[:1], batch.t[:1], caption, fps) for fps in batch.fps.split(1))
    slow, fast = (module(query)["predicted"] for query in queries)
    assert not torch.equal(slow, fast)
    plain = with_open_gates(task.build())  # does not read it
    assert torch.equal(plain(replace(batch, fps=torch.full((2,), 8.0)))["total"], plain(batch)["total"])


def test_the_first_frame_of_a_share_of_the_clips_is_given_and_has_no_loss(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    samples = [Sample(position, rows, 0, content) for position in range(400)]
    given = replace(task, flow=task.flow.model_copy(update={"first_frame_share": 0.3}))
    batch, plain = given.collate(samples), task.collate(samples)
    assert batch.known is not None
    assert plain.known is None
    assert not batch.known[..., 1:].any()
    assert abs(float(batch.known[..., 0].float().mean()) - 0.3) < 0.07
    assert torch.equal(batch.t, torch.where(batch.known, 1.0, plain.t[:, None, None]))
    torch.manual_seed(0)
    module = with_open_gates(given.build())
    few = given.collate(samples[:8])
    assert few.known is not None
    assert few.known.any()
    hidden = replace(few, x_0=torch.where(few.known[..., None, None], 100.0, few.x_0))
    assert torch.equal(module(hidden)["total"], module(few)["total"])  # what the noise would be there does not matter
    shown = replace(few, x_1=torch.where(few.known[..., None, None], few.x_1 + 1, few.x_1))
    assert not torch.allclose(module(shown)["total"], module(few)["total"])  # other frames see the given one
