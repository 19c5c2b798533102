"""A student of a tiny diffusion transformer and its critic: taught, resumed, and sampled in a call a step."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from models.flow.spec import DistributionMatchingSpec, FlowMapSpec, FlowSpec
from models.networks.protocol import Conditions, JumpEnd
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.torchrun import train_here
from pipeline.evaluate.likelihood import LikelihoodError, _check
from pipeline.sample.checks import check_can_sample, open_weaker
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import TrainedModel, open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.train.base import open_base
from pipeline.train.loop import train
from pipeline.train.tasks.distribution_matching import DistributionMatchingTask
from pipeline.train.tasks.distribution_matching_loss import DistributionMatchingLoss
from testing.records import SMALL
from testing.tiny import CONFIG, SHAPE, batch_of, column, losses

MATCHING = DistributionMatchingSpec(calls=4, critic_updates=3, max_guidance=4.0)


def task_of(task, matching=MATCHING, **flow):
    flow = FlowSpec.model_validate({"caption_dropout": 0.3, "matching": matching, **flow})
    return DistributionMatchingTask.of(replace(task, flow=flow))


@pytest.fixture(scope="module")
def student(to_be_taught, tmp_path_factory):
    """The task of a student, and a training of eight steps."""
    task, run_dir = task_of(to_be_taught), tmp_path_factory.mktemp("student")
    train_here(partial(train, task, CONFIG, run_dir), 1)
    return task, run_dir


def loss_of(task) -> DistributionMatchingLoss:
    torch.manual_seed(0)
    loss = task.build()
    assert isinstance(loss, DistributionMatchingLoss)
    return loss


def test_student_and_critic_start_as_the_teacher_whatever_they_are_told(to_be_taught):
    task = task_of(to_be_taught)
    loss, batch, x = loss_of(task).eval(), batch_of(task, range(4)), torch.randn(4, *SHAPE)
    (teacher,) = loss._teacher
    expected = teacher.given(Conditions(batch.fps))(x, batch.t, batch.caption)
    ends = JumpEnd(torch.tensor([1.0, 1.0, 0.5, 1.5]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for network in (loss.network, loss.critic):
        assert torch.equal(network.given(Conditions(batch.fps, jump=ends))(x, batch.t, batch.caption), expected)
    assert not any("teacher" in name for name in loss.state_dict())


def test_what_a_clip_learns_by_is_a_function_of_its_position(to_be_taught):
    task = task_of(to_be_taught)
    whole, part = batch_of(task, range(32)), batch_of(task, range(8, 12))
    assert whole.simulation is not None
    assert part.simulation is not None
    assert whole.guidance is not None
    assert part.guidance is not None
    for name in ("call", "between", "student_noise", "critic_noise", "critic_t"):
        assert torch.equal(getattr(whole.simulation, name)[8:12], getattr(part.simulation, name))
    assert torch.equal(whole.guidance[8:12], part.guidance)
    assert set(whole.simulation.call.tolist()) == {0, 1, 2, 3}
    assert whole.simulation.between.shape == (32, 3, *SHAPE)
    assert 1 <= whole.guidance.min() < 2 < 3 < whole.guidance.max() <= 4


def test_a_critic_that_estimates_as_its_teacher_does_teaches_nothing(to_be_taught):
    """As at the start without guidance; with guidance the two differ."""
    for largest, is_zero in ((1.0, True), (4.0, False)):
        task = task_of(to_be_taught, MATCHING.model_copy(update={"max_guidance": largest}))
        assert (loss_of(task).eval()(batch_of(task, range(4)))["student"].item() == 0) == is_zero


def test_no_loss_reaches_the_other_network_and_the_student_has_one_by_turns(to_be_taught):
    task = task_of(to_be_taught)
    batch, gradients = batch_of(task, range(4)), []
    for num_updates in (0, 1, 2, 3):
        loss = loss_of(task)
        loss.num_updates = num_updates
        losses = loss(batch)
        losses["total"].backward()
        is_turn = num_updates % 3 == 0
        assert ("student" in losses) == is_turn
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in loss.network.parameters()) == is_turn
        gradients.append([p.grad for p in loss.critic.parameters() if p.grad is not None])
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))


def test_given_frames_stay_what_they_are_and_teach_nothing(to_be_taught):
    task = task_of(to_be_taught, first_frame_share=1.0)
    batch, loss = batch_of(task, range(4)), loss_of(task)
    assert batch.known is not None
    assert batch.simulation is not None
    made = loss._made(batch, batch.simulation, loss.grid[:-1])
    assert torch.equal(made[:, :, 0], batch.x_1[:, :, 0])
    assert not torch.equal(made[:, :, 1], batch.x_1[:, :, 1])
    changed = replace(batch, x_1=torch.cat([batch.x_1[:, :, :1], torch.zeros_like(batch.x_1[:, :, 1:])], 2))
    for name, value in loss(batch).items():
        assert torch.equal(value, loss(changed)[name]), name  # it sees nothing of the clip but what is given


def test_a_student_learns_and_resumes_bit_for_bit(student, tmp_path):
    task, run_dir = student
    shutil.copytree(run_dir / "checkpoints" / "step_0000004", tmp_path / "checkpoints" / "step_0000004")
    (tmp_path / "latest").write_text("step_0000004\n")
    train_here(partial(train, task, CONFIG, tmp_path), 1)
    assert losses(tmp_path) == losses(run_dir)[4:]
    assert open_checkpoint(tmp_path).record.files == open_checkpoint(run_dir).record.files


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_changes_no_loss(student, tmp_path, stage):
    """Also at stage 3, where the student's gradients are not computed in most steps; and resumed in one of them."""
    task, _ = student
    for steps in (5, 8):
        config = CONFIG.model_copy(update={"zero_stage": stage, "steps": steps, "schedule": "constant"})
        train_here(partial(train, task, config, tmp_path / "other"), 1)
    config = CONFIG.model_copy(update={"schedule": "constant"})
    train_here(partial(train, task, config, tmp_path / "same"), 1)
    for name in ("total", "critic", "gradient_norm"):
        np.testing.assert_allclose(column(tmp_path / "other", name), column(tmp_path / "same", name), rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_is_sampled_in_one_call_a_step(student, steps):
    model = open_model(student[1])
    config = SampleConfig(solver="renoise", steps=steps, guidance_scale=3.0, precision="fp32")
    check_can_sample(model, config)
    sampler = ClipSampler(model, config, torch.device("cpu"))
    requests = [
        PromptRequest(id=f"{seed:012}", prompt="clip 1", seed=seed, guidance_scale=3.0, bucket=SMALL.name)
        for seed in (1, 2)
    ]
    clips, calls = sampler.sample(requests)
    assert calls == steps
    assert (clips[0] != clips[1]).any()
    assert (sampler.sample(requests[:1])[0][0] == clips[0]).all()
    assert not requests[0].model_copy(update={"settings": config}).is_of_noise_alone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"solver": "heun"}, "was trained by distribution matching, and jumps to the data from every time: use the"),
        ({"solver": "flow_map"}, "sample.solver is flow_map, but .* was trained by distribution matching"),
        ({"solver": "heun", "sde_sigma": 0.5}, "sample.solver is heun, but"),
        ({"steps": 3}, "sample.steps is 3, but the student is trained for 4: use 1 or 2 or 4"),
        ({"steps": 8}, "sample.steps is 8, but the student is trained for 4"),
        ({"shift": 2.0}, "sample.shift is 2, but the student is trained with 1"),
        ({"grid": "karras"}, "sample.grid is 'karras', but the student is trained at even times"),
        ({"guidance_scale": 5.0}, "was trained with scales from 1 to 4: use one of them"),
        ({"guidance": "apg"}, "sample.guidance: the solver renoise has its guidance in the network"),
        ({"flow_path": "cosine"}, "sample.flow_path: the solver renoise"),
        ({"schedule": "pyramid"}, "sample.schedule is 'pyramid'"),
    ],
)
def test_what_a_student_was_not_trained_for_is_refused(student, settings, said):
    with pytest.raises(CheckpointError, match=said):
        check_can_sample(open_model(student[1]), SampleConfig(**{"solver": "renoise", "steps": 4, **settings}))


def test_where_velocities_are_needed_a_student_is_refused(student, straight):
    model, teacher = open_model(student[1]), open_model(straight[2])
    assert isinstance(model, TrainedModel)
    with pytest.raises(LikelihoodError, match="has no velocity to follow: name its teacher"):
        _check(model, student[0].dataset_dir)
    with pytest.raises(CheckpointError, match="was trained by distribution matching, without velocities"):
        open_weaker(teacher, student[1])
    with pytest.raises(CheckpointError, match="was trained by distribution matching, which no training starts from"):
        open_base(student[1])
    with pytest.raises(CheckpointError, match=r"sample.solver is renoise, but .* was not trained as a flow map"):
        check_can_sample(teacher, SampleConfig(solver="renoise"))


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        ({"map": FlowMapSpec()}, "map and matching are both set"),
        ({"sigma_min": 0.1}, "matching is set, whose student jumps to the data, but sigma_min is 0.1"),
        ({"path": "vp"}, "matching is set, but on the path vp"),
        ({"prediction": "data"}, "matching is set, whose network predicts velocities"),
        ({"times_per": "frame"}, "matching is set, and jumps are those of whole clips"),
    ],
)
def test_a_flow_that_a_student_cannot_learn_is_refused(flow, said):
    with pytest.raises(ValueError, match=said):
        FlowSpec.model_validate({"matching": MATCHING, **flow})
