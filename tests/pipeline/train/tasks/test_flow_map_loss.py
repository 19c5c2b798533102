"""A student of a tiny diffusion transformer: taught, resumed, and sampled in as many calls as it takes steps."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from models.flow.guidance import guide
from models.flow.path import expand
from models.flow.spec import FlowMapSpec, FlowSpec
from models.networks.protocol import Conditions, JumpEnd
from models.text.caption import joined
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.torchrun import train_here
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.train.loop import train
from pipeline.train.tasks.flow_batch import FlowQuery
from pipeline.train.tasks.flow_map_loss import FlowMapLoss
from pipeline.train.tasks.teacher import taught_velocity
from testing.records import SMALL
from testing.tiny import CONFIG, SHAPE, batch_of, losses

MAP = FlowMapSpec(max_guidance=4.0)


@pytest.fixture(scope="module")
def student(to_be_taught, tmp_path_factory):
    """The task of a student, and a training of eight steps."""
    run_dir = tmp_path_factory.mktemp("student")
    task = replace(to_be_taught, flow=FlowSpec(caption_dropout=0.3, map=MAP))
    train_here(partial(train, task, CONFIG, run_dir), 1)
    return task, run_dir


def test_a_student_starts_as_its_teacher_wherever_its_jumps_end(student):
    task, _ = student
    loss = task.build().eval()
    assert isinstance(loss, FlowMapLoss)
    (teacher,) = loss._teacher
    batch = batch_of(task, range(4))
    x = torch.randn(4, *SHAPE)
    ends = JumpEnd(torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    ours = loss.network.given(Conditions(batch.fps, jump=ends))(x, batch.t, batch.caption)
    assert torch.equal(ours, teacher.given(Conditions(batch.fps))(x, batch.t, batch.caption))
    assert not any("teacher" in name for name in loss.state_dict())


def test_what_a_clip_learns_is_a_function_of_its_position(student):
    task, _ = student
    whole, part = batch_of(task, range(32)), batch_of(task, range(8, 12))
    assert whole.jump is not None
    assert part.jump is not None
    assert whole.guidance is not None
    assert part.guidance is not None
    for name in ("t", "q", "s"):
        assert torch.equal(getattr(whole.jump, name)[8:12], getattr(part.jump, name))
    assert torch.equal(whole.guidance[8:12], part.guidance)
    assert 1 <= whole.guidance.min() < 2 < 3 < whole.guidance.max() <= 4
    assert 6 < int((whole.jump.s > whole.t).sum()) < 26


def test_jumps_without_length_learn_the_guided_velocity_of_the_teacher(student):
    task, _ = student
    loss = task.build().eval()
    batch = batch_of(task, range(16))
    assert batch.jump is not None
    assert batch.guidance is not None
    assert batch.null is not None
    at = loss.path.at(batch.t, batch.x_1)
    x_t = at.point(batch.x_0, batch.x_1)
    (teacher,) = loss._teacher
    network = teacher.given(Conditions(batch.fps))
    null = joined(*[batch.null] * 16)
    with torch.no_grad():
        expected = guide(network(x_t, batch.t, batch.caption), network(x_t, batch.t, null), expand(batch.guidance, x_t))
    taught = taught_velocity(teacher, batch, x_t, batch.t, is_guided=True)
    torch.testing.assert_close(taught, expected)
    still = replace(batch, jump=replace(batch.jump, q=batch.t, s=batch.t))
    own = network(x_t, batch.t, batch.caption)
    torch.testing.assert_close(loss(still)["total"], (own - expected).square().mean())
    torch.testing.assert_close(
        loss(replace(batch, jump=None))["total"], (own - at.velocity(batch.x_0, batch.x_1)).square().mean()
    )


def test_a_student_learns_and_resumes_bit_for_bit(student, tmp_path):
    task, run_dir = student
    module, start = task.build(), task.build().state_dict()
    assert any((start[name] != value).any() for name, value in load_master(module, run_dir).items() if "jump" in name)
    shutil.copytree(run_dir / "checkpoints" / "step_0000004", tmp_path / "checkpoints" / "step_0000004")
    (tmp_path / "latest").write_text("step_0000004\n")
    train_here(partial(train, task, CONFIG, tmp_path), 1)
    assert losses(tmp_path) == losses(run_dir)[4:]
    assert open_checkpoint(tmp_path).record.files == open_checkpoint(run_dir).record.files


def load_master(module, run_dir):
    from pipeline.checkpoint.read import load_weights

    return load_weights(open_checkpoint(run_dir), "master")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_is_sampled_in_one_call_a_step(student, steps):
    model = open_model(student[1])
    config = SampleConfig(solver="flow_map", steps=steps, guidance_scale=3.0, precision="fp32")
    check_can_sample(model, config)
    sampler = ClipSampler(model, config, torch.device("cpu"))
    requests = [
        PromptRequest(id=f"{seed:012}", prompt="clip 1", seed=seed, guidance_scale=scale, bucket=SMALL.name)
        for seed, scale in ((1, 3.0), (2, 3.0), (1, 1.0))
    ]
    clips, calls = sampler.sample(requests[:2])
    assert calls == steps
    assert (clips[0] != clips[1]).any()
    alone, _ = sampler.sample(requests[:1])
    assert (alone[0] == clips[0]).all()
    unguided, _ = sampler.sample(requests[2:])
    assert (unguided[0] != clips[0]).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance_scale": 5.0}, "was trained with scales from 1 to 4: use one of them"),
        ({"guidance": "apg"}, "sample.guidance: the solver flow_map has its guidance in the network"),
        ({"negative_prompt": "x"}, "sample.negative_prompt: the solver flow_map"),
        ({"flow_path": "cosine"}, "sample.flow_path: the solver flow_map"),
        ({"sde_sigma": 0.5}, "sample.sde_sigma: above 0"),
        ({"schedule": "pyramid"}, "sample.schedule is 'pyramid'"),
    ],
)
def test_what_jumps_do_not_read_is_refused(student, settings, said):
    with pytest.raises(CheckpointError, match=said):
        check_can_sample(open_model(student[1]), SampleConfig(solver="flow_map", **settings))


def test_a_flow_is_not_sampled_by_jumps(straight):
    with pytest.raises(CheckpointError, match="was not trained as a flow map"):
        check_can_sample(open_model(straight[2]), SampleConfig(solver="flow_map"))


def test_previews_of_a_student_jump(student):
    task, _ = student
    task = replace(task, sampling=tuple({"solver": "flow_map", "steps": 3}.items()))
    asked: list[FlowQuery] = []

    def evaluate(query: FlowQuery):
        asked.append(query)
        return {"predicted": -query.x_t}

    task.previewer(torch.device("cpu")).clip(evaluate, "clip 0", 0)
    ends = [query.jump for query in asked if query.jump is not None]
    assert [round(end.times.item(), 3) for end in ends] == [0.333, 0.667, 1]
    assert {end.guidance.item() for end in ends} == {3.0}
