"""What comes to the files of a folder, bit by bit."""

from pathlib import Path

import pytest

from data.files.publish import publish_text
from pipeline.run import written as written_files
from pipeline.run.whole_run import Addition
from pipeline.run.written import WrittenFiles


@pytest.fixture
def run_dir(tmp_path) -> Path:
    for folder in ("dit/checkpoints", "dit/stalls", "logs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dit" / "metrics.jsonl").write_bytes(b"one\n")
    return tmp_path


def test_ends_wholes_and_removals_are_told_once(run_dir):
    metrics, stall = run_dir / "dit" / "metrics.jsonl", run_dir / "dit" / "stalls" / "rank.txt"
    written = WrittenFiles(run_dir, (run_dir / "dit", run_dir / "logs"))
    assert written.take() == ([], [])
    with metrics.open("ab") as file:
        file.write(b"two\n")
    stall.write_bytes(b"stack")
    (run_dir / "dit" / "checkpoints" / "rank_00000.safetensors").write_bytes(b"published as a whole")
    assert written.take() == (
        [
            Addition("dit/metrics.jsonl", b"two\n", is_whole=False),
            Addition("dit/stalls/rank.txt", b"stack", is_whole=True),
        ],
        [],
    )
    publish_text(metrics, "one\ntwo\nthree, in another file\n")
    stall.unlink()
    assert written.take() == (
        [Addition("dit/metrics.jsonl", b"one\ntwo\nthree, in another file\n", is_whole=True)],
        ["dit/stalls/rank.txt"],
    )
    assert written.take() == ([], [])


def test_a_file_that_the_run_has_is_made_once_and_its_end_is_told(run_dir):
    written = WrittenFiles(run_dir, (run_dir / "dit",))
    written.adopt("dit/save")
    assert written.take() == ([], [])
    (run_dir / "dit" / "save").unlink()
    written.adopt("dit/save")  # it is known here, so it has just been answered
    assert written.take() == ([], ["dit/save"])


def test_a_file_that_is_removed_the_moment_it_is_seen_is_told_as_gone(run_dir, monkeypatch):
    written, state = WrittenFiles(run_dir, (run_dir / "dit",)), written_files._state

    def removed_first(path: Path) -> written_files._State:
        (run_dir / "dit" / "save").unlink(missing_ok=True)
        return state(path)

    with monkeypatch.context() as patch:
        patch.setattr(written_files, "_state", removed_first)
        written.adopt("dit/save")
    (run_dir / "dit" / "save").unlink(missing_ok=True)
    assert written.take() == ([], ["dit/save"])
