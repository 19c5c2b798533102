"""A training is refused where what it would read is out of date, or where its checkpoints are away."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.config import load_config
from launch.stages import FOLDERS, stages_of
from models.autoencoder.config import PerceptualError
from pipeline.checkpoint.record import LAST_SAVE_NAME, CheckpointError, LastSave
from pipeline.run.context import RunContext, StageOrderError
from pipeline.run.stage_record import STAGE_RECORD_NAME, OpenStage, begin, read_stage_record
from pipeline.train.stage import TrainStage
from testing.features import write_features


@pytest.mark.parametrize("allowed_changes", [None, []], ids=["anew", "resume"])
def test_no_training_goes_on_with_latents_of_other_clips(tmp_path, allowed_changes):
    run = RunContext(tmp_path, "", FOLDERS, allowed_changes=allowed_changes)
    builds: dict[str, str] = {}
    needs = {"clips": (), "autoencoder": ("clips",), "latents": ("clips", "autoencoder")}
    for folder, names in needs.items():
        opened = begin(tmp_path / folder, f"stage of {folder}", {name: builds[name] for name in names})
        opened.finish([], {})
        builds[folder] = opened.record.build
    begin(tmp_path / "clips", "shard", {"source": "one video more"}).finish([], {})
    (stage,) = stages_of(load_config(Path("demo")), ("train dit",))
    with pytest.raises(StageOrderError, match="first, in this order: `stage of autoencoder`, `stage of latents`; or"):
        stage.execute(run)
    assert not (tmp_path / "dit").exists()


@pytest.fixture
def trained(tmp_path) -> tuple[TrainStage, RunContext, OpenStage]:
    """A training that is complete according to its record, and whose checkpoints are on a disk that is away."""
    run = RunContext(tmp_path, "", FOLDERS)
    (stage,) = stages_of(load_config(Path("demo")), ("train autoencoder",))
    assert isinstance(stage, TrainStage)
    folder = run.folder_of(stage)
    opened = begin(folder, stage.name, {"clips": "c1"}, stage.continues())
    (folder / LAST_SAVE_NAME).write_text(LastSave(step=7).model_dump_json())
    opened.finish([folder / "latest", folder / "checkpoints" / "step_0000007" / "checkpoint.json"], {})
    return stage, run, opened


@pytest.mark.parametrize("was_complete", [True, False])
def test_a_training_whose_checkpoints_are_away_is_refused_and_its_record_stays(trained, was_complete):
    """Otherwise the latents would be out of date once the disk is mounted again."""
    stage, run, opened = trained
    opened.record.complete = was_complete
    opened.save()
    path = run.folder_of(stage) / STAGE_RECORD_NAME
    before = path.read_bytes()
    with (
        pytest.raises(CheckpointError, match=r"one was saved at step 7: .* are missing.* not mounted"),
        run.opened(stage, {"clips": "c1"}),
    ):
        pass
    assert path.read_bytes() == before


def test_checkpoints_that_are_away_do_not_keep_a_training_from_starting_anew(trained):
    stage, run, opened = trained
    with run.opened(stage, {"clips": "c2"}) as anew:
        assert anew is not None
    archived = run.run_dir / "autoencoder.superseded-1"
    assert read_stage_record(archived) == opened.record


def test_resuming_with_changed_inputs_needs_a_checkpoint_too(trained):
    stage, run, opened = trained
    resuming = replace(run, allowed_changes=["clips"])
    with pytest.raises(CheckpointError, match="one was saved at step 7"), resuming.opened(stage, {"clips": "c2"}):
        pass
    assert read_stage_record(run.folder_of(stage)) == opened.record


def test_a_perceptual_network_that_cannot_be_used_is_refused_before_any_stage_runs(tmp_path):
    options = [f"autoencoder.loss.perceptual={{network: {tmp_path / 'none.pt'}}}"]
    (stage,) = stages_of(load_config(Path("demo"), options), ("train autoencoder",))
    with pytest.raises(PerceptualError, match=r"none\.pt: there is no such file"):
        stage.check()
    write_features(tmp_path / "none.pt")
    stage.check()
    settings = stage.settings(RunContext(tmp_path, "", FOLDERS))
    assert settings["loss"]["perceptual"].keys() == {"weight", "network"}
    assert str(tmp_path) not in str(settings)


def test_without_new_terms_the_settings_are_those_of_before():
    (stage,) = stages_of(load_config(Path("demo")), ("train autoencoder",))
    settings = stage.settings(RunContext(Path(), "", FOLDERS))
    assert list(settings) == ["model", "train", "seed"]
    assert list(settings["model"]) == ["latent_channels", "width", "deep_width", "num_blocks", "kl_weight"]
    assert settings["model"]["kl_weight"] == 0.001
    assert "image_share" not in settings["train"]
