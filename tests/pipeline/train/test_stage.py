"""A training is refused where what it would read is out of date."""

from pathlib import Path

import pytest

from launch.config import load_config
from launch.stages import FOLDERS, stages_of
from pipeline.run.context import RunContext, StageOrderError
from pipeline.run.stage_record import begin


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
