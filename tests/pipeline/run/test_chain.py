"""A stage is refused where anything behind it has changed, with the commands that mend it in order."""

from pathlib import Path

import pytest

from pipeline.run.chain import DamagedRecordError
from pipeline.run.context import RunContext, StageOrderError
from pipeline.run.stage_record import begin

FOLDERS = ("clips", "autoencoder", "latents", "dit", "samples")
NEEDS = {"clips": (), "autoencoder": ("clips",), "latents": ("clips", "autoencoder"), "dit": ("latents",)}
STAGES = {"clips": "shard", "autoencoder": "train autoencoder", "latents": "encode", "dit": "train dit"}


def run_stage(run_dir: Path, folder: str, *, finish: bool = True, **settings: object) -> None:
    """Run a stage as the commands do: its inputs are the builds of the folders that it needs, and its settings."""
    run = RunContext(run_dir, "", FOLDERS)
    builds = {name: run.build_of(name, STAGES[name]) for name in NEEDS[folder]}
    opened = begin(run_dir / folder, STAGES[folder], builds | settings)
    if finish and not opened.complete:
        opened.finish([], {})


@pytest.fixture
def finished(tmp_path) -> Path:
    for folder in NEEDS:
        run_stage(tmp_path, folder)
    return tmp_path


def refusal(run_dir: Path, folder: str) -> str:
    with pytest.raises(StageOrderError) as refused:
        RunContext(run_dir, "", FOLDERS).build_of(folder, STAGES[folder])
    return str(refused.value)


def test_a_finished_chain_is_up_to_date(finished):
    for folder in NEEDS:
        assert RunContext(finished, "", FOLDERS).build_of(folder, STAGES[folder])


def test_latents_of_other_clips_are_refused_with_the_commands_in_order(finished):
    """One video more and `shard`; without this, `train dit --resume` would go on with latents of other clips."""
    run_stage(finished, "clips", source="one video more")
    told = refusal(finished, "latents")
    assert f"{finished / 'autoencoder'} was made before clips changed" in told
    assert f"{finished / 'latents'} was made before clips changed" in told
    assert "in this order: `train autoencoder`, `encode`; or `run`" in told
    run_stage(finished, "autoencoder")
    assert "in this order: `encode`; or" in refusal(finished, "latents")
    run_stage(finished, "latents")
    run_stage(finished, "dit")
    assert RunContext(finished, "", FOLDERS).build_of("dit", "train dit")


def test_what_is_far_behind_is_found_too(finished):
    """The checkpoint names the latents of today; the latents name other clips than those of today."""
    run_stage(finished, "clips", source="one video more")
    assert "in this order: `train autoencoder`, `encode`, `train dit`; or" in refusal(finished, "dit")
    assert f"{finished / 'dit'} depends on these" in refusal(finished, "dit")


def test_a_stage_behind_that_was_interrupted_is_not_passed_over(finished):
    run_stage(finished, "autoencoder", finish=False, steps=2)
    told = refusal(finished, "latents")
    assert f"{finished / 'autoencoder'} is not finished" in told
    assert "in this order: `train autoencoder`, `encode`; or" in told


def test_a_folder_that_was_deleted_leaves_what_was_made_from_it_usable(finished):
    (finished / "clips" / "stage.json").unlink()
    (finished / "clips").rmdir()
    assert RunContext(finished, "", FOLDERS).build_of("dit", "train dit")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_a_record_behind_that_cannot_be_read_is_named(finished, content):
    """The clips may have changed since; nothing says so any more."""
    path = finished / "autoencoder" / "stage.json"
    path.write_bytes(content)
    for folder in ("latents", "dit"):
        with pytest.raises(DamagedRecordError, match=rf"^{path} is damaged, .*{finished / folder} is out of date; "):
            RunContext(finished, "", FOLDERS).build_of(folder, STAGES[folder])
    assert RunContext(finished, "", FOLDERS).build_of("clips", "shard")
    assert "is not finished" in refusal(finished, "autoencoder")
