"""A run as it is at one moment of a training, which goes on meanwhile."""

import shutil
from pathlib import Path

import pytest

from pipeline.run import snapshot as module
from pipeline.run.snapshot import remove_snapshots, snapshot

FILES = {
    "config.yaml": "name: demo\n",
    "run.lock": "held",
    "clips/shard.tar": "pixels",
    "logs/driver.log": "one\n",
    "autoencoder/latest": "step_0000009\n",
    "autoencoder/checkpoints/step_0000009/checkpoint.json": "of the autoencoder",
    "dit/latest": "step_0000006\n",
    "dit/metrics.jsonl": "one\n",
    "dit/checkpoints/step_0000003/checkpoint.json": "old",
    "dit/checkpoints/step_0000006/checkpoint.json": "new",
    "dit/checkpoints/step_0000006/rank_00000.safetensors": "weights",
}


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "demo"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


def train_on(run_dir: Path) -> None:
    """Save two more checkpoints, keep the last, and write to the logs."""
    for name in ("step_0000009", "step_0000012"):
        (run_dir / "dit" / "checkpoints" / name).mkdir()
        (run_dir / "dit" / "checkpoints" / name / "checkpoint.json").write_text("newer", encoding="utf-8")
        (run_dir / "dit" / "latest").write_text(f"{name}\n", encoding="utf-8")
    for name in ("step_0000003", "step_0000006"):
        shutil.rmtree(run_dir / "dit" / "checkpoints" / name)
    for name in ("logs/driver.log", "dit/metrics.jsonl"):
        with (run_dir / name).open("a", encoding="utf-8") as file:
            file.write("two\n")


def test_it_has_the_newest_checkpoint_and_does_not_move(run_dir):
    expected = {name: text for name, text in FILES.items() if name != "run.lock" and "0000003" not in name}
    with snapshot(run_dir, "dit") as still:
        assert still.name == "demo"
        assert contents(still) == expected
        train_on(run_dir)
        assert contents(still) == expected
        weights = still / "dit" / "checkpoints" / "step_0000006" / "rank_00000.safetensors"
        assert not weights.is_symlink()
        assert weights.stat().st_nlink == 1  # the training has deleted its own
    assert not list(run_dir.glob(".tmp-*"))
    assert (run_dir / "clips" / "shard.tar").read_text() == "pixels"


def test_a_checkpoint_on_another_disk_is_linked_by_name(run_dir, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", refuse)
    with snapshot(run_dir, "dit") as still:
        assert contents(still)["dit/checkpoints/step_0000006/rank_00000.safetensors"] == "weights"
    assert contents(run_dir) == FILES


def test_without_a_checkpoint_there_is_none(run_dir):
    (run_dir / "dit" / "latest").unlink()
    with pytest.raises(FileNotFoundError), snapshot(run_dir, "dit"):
        pass
    (run_dir / ".tmp-snapshot-left").mkdir()
    remove_snapshots(run_dir)
    assert not list(run_dir.glob(".tmp-*"))
