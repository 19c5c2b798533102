"""The one list of stages: consistent in itself, and read by the command line, the plan, `submit` and the report."""

from pathlib import Path

from typer.testing import CliRunner

from launch.commands import app
from launch.config import load_config
from launch.jobs import COMMANDS
from launch.plan import describe_plan
from launch.stages import FOLDERS, NAMES, STAGES, stages_of
from pipeline.run.context import RunContext

CONFIG = load_config(Path("demo"))


def test_names_and_folders_are_those_on_disk_and_on_the_command_line():
    assert NAMES == ("draw", "shard", "train autoencoder", "encode", "train dit", "train distill", "sample", "evaluate")
    assert tuple(FOLDERS) == ("videos", "clips", "autoencoder", "latents", "dit", "distill", "samples", "evaluation")


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


def test_a_run_with_a_student_samples_that():
    assert stages_of(CONFIG, ("sample",))[0].required_folders().keys() == {"dit"}
    assert not stages_of(CONFIG, ("train distill",))[0].is_needed()
    config = load_config(Path("demo"), ["distill={}"])
    stages = {stage.name: stage for stage in stages_of(config)}
    assert stages["sample"].required_folders().keys() == {"distill"}
    assert stages["train distill"].is_needed()
    assert "1000 steps" in stages["train distill"].describe()
