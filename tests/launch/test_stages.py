"""The one list of stages: consistent in itself, and read by the command line, the plan, `submit` and the report."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.commands import app
from launch.config import load_config
from launch.jobs import COMMANDS
from launch.overrides import ConfigError
from launch.plan import describe_plan
from launch.stages import FOLDERS, NAMES, STAGES, stages_of
from models.flow.spec import DistributionMatchingSpec
from pipeline.run.context import RunContext
from pipeline.train.flow_stage import TrainDistillStage

CONFIG = load_config(Path("demo"))


def test_names_and_folders_are_those_on_disk_and_on_the_command_line():
    names = "draw, shard, train autoencoder, encode, train tokenizer, train dit, train distill, sample, evaluate"
    assert ", ".join(NAMES) == names
    assert " ".join(FOLDERS) == "videos clips autoencoder latents tokenizer dit distill samples evaluation"


def test_a_stage_needs_only_folders_of_stages_before_it():
    made = {}
    for stage in stages_of(CONFIG):
        assert {folder: need.stage for folder, need in stage.needs.items()}.items() <= made.items(), stage.name
        made[stage.folder] = stage.name


def test_every_stage_but_drawing_has_a_command_and_can_be_submitted():
    for entry in STAGES:
        done = CliRunner().invoke(app, [*entry.name.split(), "--help"])
        assert (done.exit_code == 0) == (entry.name != "draw"), done.output
        assert (entry.name in COMMANDS) == (entry.name != "draw")
        if entry.name != "draw":
            assert entry.stage.__doc__ is not None
            assert entry.stage.__doc__.split("\n")[0].split()[0] in done.output


def test_a_command_runs_the_stages_of_its_entry_only():
    assert [stage.name for stage in stages_of(CONFIG, ("train dit", "shard", "draw"))] == ["draw", "shard", "train dit"]
    plan = describe_plan(CONFIG, ("draw", "shard"))
    assert "draw the videos" in plan
    assert "encode" not in plan


def test_drawing_is_no_part_of_a_run_on_real_videos():
    real = load_config(Path("real-tiny"))
    draw = stages_of(real, ("draw",))[0]
    assert not draw.is_needed()
    draw.execute(RunContext(run_dir=Path("nowhere"), config_yaml=""))
    assert not Path("nowhere").exists()


def test_a_run_on_tokens_trains_a_tokeniser_first():
    stages = {stage.name: stage for stage in stages_of(CONFIG)}
    assert not stages["train tokenizer"].is_needed()
    assert stages["train dit"].required_folders().keys() == {"latents"}
    config = load_config(Path("demo-tokens"))
    stages = {stage.name: stage for stage in stages_of(config)}
    assert stages["train tokenizer"].is_needed()
    assert "of 320 tokens" in stages["train tokenizer"].describe()
    assert stages["train dit"].required_folders().keys() == {"latents", "tokenizer"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer=null", "dit.flow.tokens is not null, but tokenizer is null: set both"),
        ("sample.solver=heun", "sample.solver is heun, but dit predicts tokens: use jumps"),
        ("dit.train.mixed_buckets=true", "dit.train.mixed_buckets is set, but dit predicts tokens"),
        ("dit.train.start_from=x", "dit.train.start_from is set, but dit predicts tokens"),
        ("distill={}", "distill trains a flow map of latents, but dit predicts tokens"),
        ("dit.flow.prediction=data", "tokens is set, whose states jump, but prediction is of a flow of latents"),
        ("tokenizer.train.global_batch=33", "tokenizer.train.global_batch is 33"),
        ("tokenizer.model.levels=[300,300]", "a vocabulary of 90000 tokens"),
    ],
)
def test_what_a_network_of_tokens_cannot_have_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Path("demo-tokens"), [override])


def test_a_run_with_a_student_samples_that():
    assert stages_of(CONFIG, ("sample",))[0].required_folders().keys() == {"dit"}
    assert not stages_of(CONFIG, ("train distill",))[0].is_needed()
    config = load_config(Path("demo"), ["distill={}"])
    stages = {stage.name: stage for stage in stages_of(config)}
    assert stages["sample"].required_folders().keys() == {"distill"}
    assert stages["train distill"].is_needed()
    assert "1000 steps" in stages["train distill"].describe()
    matched = ["distill={kind: distribution_matching, matching: {calls: 8, shift: 3, max_guidance: 4}}"]
    sampled = ["sample.solver=renoise", "sample.steps=4"]
    coupled = ["dit.flow.coupled_clips=2"]
    student = stages_of(load_config(Path("demo"), matched + sampled + coupled), ("train distill",))[0]
    assert isinstance(student, TrainDistillStage)
    assert student.is_needed()
    assert student.flow.map is None
    assert student.flow.coupled_clips == 1
    assert student.flow.matching == DistributionMatchingSpec(calls=8, shift=3, max_guidance=4)
    for change, said in (
        ("sample.steps=3", "sample.steps is 3, but the student is trained for 8: use 1 or 2 or 4 or 8"),
        ("sample.shift=2", "sample.shift is 2, but the student is trained with 3"),
        ("sample.guidance_scale=5", "set distill.matching.max_guidance to it"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(Path("demo"), [*matched, *sampled, change])
