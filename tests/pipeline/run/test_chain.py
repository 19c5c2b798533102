"""A stage is refused where anything behind it has changed, with the commands that mend it in order."""

from pathlib import Path

import pytest

from pipeline.run.chain import DamagedRecordError, Need
from pipeline.run.context import RunContext, StageOrderError
from pipeline.run.fingerprints import fingerprint
from pipeline.run.stage_record import StageRecord, begin, read_stage_record

STAGES = {"clips": "shard", "autoencoder": "train autoencoder", "latents": "encode", "dit": "train dit"}
NEEDS = {
    "clips": {},
    "autoencoder": {"clips": Need("shard", "pixels")},
    "latents": {"clips": Need("shard", "clips"), "autoencoder": Need("train autoencoder", "weights")},
    "dit": {"latents": Need("encode", "latents")},
    "samples": {"dit": Need("train dit", "weights")},
}
FOLDERS = tuple(STAGES)


def recorded(folder: Path) -> StageRecord:
    record = read_stage_record(folder)
    assert record is not None
    return record


def run_stage(run_dir: Path, folder: str, *, finish: bool = True, old: bool = False, **settings: object) -> bool:
    """Run a stage as the commands do; returns whether there was anything to do.

    Its inputs are what it needs of other folders, and its settings; its contents are a function of the inputs, in which
    the setting `caption` is no part of the pixels.

    Args:
        old: as an older version would: without contents.
    """
    run, path = RunContext(run_dir, "", NEEDS), run_dir / folder
    record = read_stage_record(path)
    named = {} if record is None else record.inputs
    needed = {name: run.content_of(name, need, named.get(name)) for name, need in NEEDS[folder].items()}

    def contents(_: Path) -> dict[str, str]:
        of_all = recorded(path).inputs
        of_pixels = {name: value for name, value in of_all.items() if name not in ("caption", "stamp")}
        whole = fingerprint({name: value for name, value in of_all.items() if name != "stamp"})
        return {"pixels": f"pixels-{fingerprint(of_pixels)}", **dict.fromkeys(("clips", "weights", "latents"), whole)}

    opened = begin(path, STAGES[folder], needed | settings, describe_reuse=lambda: "all", read_contents=contents)
    if finish and not opened.complete:
        opened.finish([], {}, contents=None if old else contents(path))
        return True
    return not opened.complete


@pytest.fixture
def finished(tmp_path) -> Path:
    for folder in FOLDERS:
        run_stage(tmp_path, folder)
    return tmp_path


def refusal(run_dir: Path, folder: str) -> str:
    with pytest.raises(StageOrderError) as refused:
        RunContext(run_dir, "", NEEDS).finished(folder, STAGES[folder])
    return str(refused.value)


def test_a_finished_chain_is_up_to_date(finished):
    for folder in FOLDERS:
        assert RunContext(finished, "", NEEDS).finished(folder, STAGES[folder])


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
    assert RunContext(finished, "", NEEDS).finished("dit", "train dit")


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
    assert RunContext(finished, "", NEEDS).finished("dit", "train dit")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_a_record_behind_that_cannot_be_read_is_named(finished, content):
    """The clips may have changed since; nothing says so any more."""
    path = finished / "autoencoder" / "stage.json"
    path.write_bytes(content)
    for folder in ("latents", "dit"):
        with pytest.raises(DamagedRecordError, match=rf"^{path} is damaged, .*{finished / folder} is out of date; "):
            RunContext(finished, "", NEEDS).finished(folder, STAGES[folder])
    assert RunContext(finished, "", NEEDS).finished("clips", "shard")
    assert "is not finished" in refusal(finished, "autoencoder")


def test_what_is_made_again_with_the_same_content_leaves_the_rest_valid(finished):
    """As after `touch` of a video."""
    assert run_stage(finished, "clips", stamp="later")
    assert not any(run_stage(finished, folder) for folder in ("autoencoder", "latents", "dit"))


def test_a_changed_caption_passes_by_the_stage_that_does_not_read_it(finished):
    run_stage(finished, "clips", caption="another")
    assert "in this order: `encode`; or" in refusal(finished, "latents")
    assert [run_stage(finished, folder) for folder in ("autoencoder", "latents", "dit")] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "made"),
    [({}, []), ({"stamp": "later"}, []), ({"caption": "x"}, ["latents", "dit"]), ({"video": "x"}, list(FOLDERS[1:]))],
    ids=["nothing", "touch", "caption", "video"],
)
def test_a_run_of_an_older_version_stays_valid_until_the_content_changes(tmp_path, change, made):
    """Its records name builds. The content of a build is noted before its folder changes."""
    for folder in FOLDERS:
        run_stage(tmp_path, folder, old=True)
    before = {folder: (tmp_path / folder / "stage.json").read_bytes() for folder in FOLDERS}
    assert run_stage(tmp_path, "clips", **change) == bool(change)
    assert [folder for folder in FOLDERS[1:] if run_stage(tmp_path, folder)] == made
    after = {folder: (tmp_path / folder / "stage.json").read_bytes() for folder in FOLDERS}
    assert [folder for folder in FOLDERS if before[folder] != after[folder]] == ["clips"] * bool(change) + made
    assert not any(run_stage(tmp_path, folder, **(change if folder == "clips" else {})) for folder in FOLDERS)
    if change:  # and back: the builds that old records name are still known
        run_stage(tmp_path, "clips")
        if made == []:
            assert not any(run_stage(tmp_path, folder) for folder in FOLDERS[1:])


def test_a_training_made_anew_counts_as_changed(finished):
    """Two trainings from the same inputs need not give the same weights: the checkpoint decides."""
    record = recorded(finished / "autoencoder")
    record.contents["weights"] = "weights-of-another-checkpoint"
    (finished / "autoencoder" / "stage.json").write_text(record.model_dump_json())
    assert "in this order: `encode`; or" in refusal(finished, "latents")
