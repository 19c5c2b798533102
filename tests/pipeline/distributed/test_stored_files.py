"""The files of a run on machines that share a store alone: two folders, and the actor's object in this process."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data.dataset.parts import ShardParts
from pipeline.distributed import stored_files
from pipeline.distributed.stored_folders import StoredFolders
from pipeline.run import whole_run
from pipeline.run.objects import StoredRunError
from pipeline.run.shared_files import SupersededError
from pipeline.run.stored_run import push_run
from pipeline.run.whole_run import WholeRun
from pipeline.train.control import STOP_NAME, request_save_and_stop
from testing.other_machine import OtherMachine

SHARD, COMMIT = "clips/shard-0.tar", "clips/shard-0.commit.json"


class WentAway(OSError):
    """What a store raises that does not answer."""


@pytest.fixture
def place(request) -> str:
    return f"memory://{request.node.name}/demo"


@pytest.fixture
def home(tmp_path) -> Path:
    """The folder of the run on the machine of the command."""
    folder = tmp_path / "home" / "demo"
    (folder / "clips").mkdir(parents=True)
    return folder


@pytest.fixture
def other(tmp_path, home, place, monkeypatch) -> OtherMachine:
    """Another machine, which has nothing."""
    for module in (stored_files, whole_run):
        monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    return OtherMachine(tmp_path / "other" / "demo", place, "files-x", whole=WholeRun(home, place))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def counted(files: Any, name: str, monkeypatch, failures: int = 0) -> list[str]:
    """Arguments of the calls of a method of a store, of which the first ones fail."""
    calls, original = [], getattr(files, name)

    def call(*arguments: str) -> Any:
        calls.append(Path(arguments[0]).name)
        if len(calls) <= failures:
            raise WentAway("it went away")
        return original(*arguments)

    monkeypatch.setattr(files, name, call)
    return calls


def test_files_are_fetched_where_they_are_missing_or_others(home, other, place, monkeypatch):
    for name in (SHARD, COMMIT, "clips/part/more.tar"):
        write(home, name, f"the first {name}")
    shard, fetched = other.run_dir / SHARD, counted(fsspec.url_to_fs(place)[0], "get_file", monkeypatch)
    other.fetch(shard, other.run_dir / "clips/none.tar", Path("/elsewhere/x.tar"))
    assert names_in(other.run_dir) == {SHARD}
    assert shard.read_bytes() == (home / SHARD).read_bytes()
    assert shard.stat().st_mtime_ns == (home / SHARD).stat().st_mtime_ns
    other.fetch(shard)
    assert len(fetched) == 1
    other.fetch_folder(other.run_dir / "clips")
    assert len(fetched) == 3
    assert names_in(other.run_dir) - {stored_files.FETCH_LOCK} == {SHARD, COMMIT, "clips/part/more.tar"}
    write(home, SHARD, "the second")
    other.fetch(shard)
    assert shard.read_text(encoding="utf-8") == "the second"
    with pytest.raises(ValueError, match=r"'\.\./secret' is no file of a run's folder"):
        other.whole.offer(["../secret"])


def test_on_the_machine_of_the_command_nothing_is_copied(home, place):
    here = OtherMachine(home, place, "files-x")  # whatever it asked would be an error
    (home / ".tmp-files-x").touch()
    shard = write(home, SHARD, "shard")
    here.fetch(shard)
    here.fetch_folder(home / "clips")
    here.publish(shard)
    here.discard(home / "clips")
    assert here.where_whole(len, "four") == 4
    with here.kept_alike(home / "clips", ("save",)):
        pass
    assert names_in(home) == {SHARD, ".tmp-files-x"}


@pytest.mark.parametrize("failing", ["put_file", "get_file"])
def test_an_interrupted_publish_never_shows_a_commit_without_its_shard(home, other, place, monkeypatch, failing):
    for name in (SHARD, COMMIT):
        write(home, name, f"the first {name}")
        write(other.run_dir, name, f"another {name}")
    shard, commit = other.run_dir / SHARD, other.run_dir / COMMIT
    with monkeypatch.context() as patch:
        calls = counted(fsspec.url_to_fs(place)[0], failing, patch, failures=99)
        with pytest.raises(StoredRunError, match=r"demo cannot be used \(it went away\)"):
            other.publish(shard, record=commit)
        assert len(calls) >= 3
    if failing == "put_file":  # nothing has come to the run
        assert {name: (home / name).read_text(encoding="utf-8") for name in names_in(home)} == {
            SHARD: f"the first {SHARD}",
            COMMIT: f"the first {COMMIT}",
        }
    else:  # the commit of the shard that would be replaced was removed before
        assert names_in(home) == {SHARD}
    other.publish(shard, record=commit)
    assert (home / SHARD).read_bytes() == shard.read_bytes()
    assert (home / COMMIT).read_bytes() == commit.read_bytes()


@pytest.mark.parametrize("failing", ["put_file", "get_file"])
def test_a_request_that_fails_is_repeated(home, other, place, monkeypatch, failing):
    shard = write(other.run_dir, SHARD, "shard")
    calls = counted(fsspec.url_to_fs(place)[0], failing, monkeypatch, failures=2)
    other.publish(shard)
    assert len(calls) == 3
    assert (home / SHARD).read_text(encoding="utf-8") == "shard"


def test_a_damaged_content_is_named_and_not_taken(home, other, place):
    files, root = fsspec.url_to_fs(place)
    write(home, SHARD, "shard")
    (sent,) = other.whole.offer([SHARD]).values()
    files.pipe_file(f"{root}/objects/{sent.sha256}", b"other")
    with pytest.raises(StoredRunError, match=rf"what is stored of {SHARD} is damaged; push the run again"):
        other.fetch(other.run_dir / SHARD)
    assert names_in(other.run_dir) == set()


def test_a_content_that_a_push_removed_is_stored_again(home, other, place):
    files, root = fsspec.url_to_fs(place)
    write(home, SHARD, "shard")
    other.whole.offer([SHARD])
    files.rm(f"{root}/objects", recursive=True)
    other.fetch(other.run_dir / SHARD)
    assert (other.run_dir / SHARD).read_text(encoding="utf-8") == "shard"


def test_what_a_push_has_stored_is_not_read_again(home, other, place, monkeypatch):
    write(home, "config.yaml", "name: demo")
    write(home, SHARD, "shard")
    push_run(home, place)
    read = counted(whole_run, "described", monkeypatch)
    again = replace(other, whole=WholeRun(home, place))
    again.fetch(other.run_dir / SHARD)
    assert (other.run_dir / SHARD).read_text(encoding="utf-8") == "shard"
    assert read == []
    write(home, SHARD, "another shard")
    again.fetch(other.run_dir / SHARD)
    assert (other.run_dir / SHARD).read_text(encoding="utf-8") == "another shard"
    assert len(read) == 1


def test_an_earlier_start_of_a_training_is_refused(home, other):
    first, second = other.of_start("first"), other.of_start("second")
    (home / "dit" / "checkpoints" / ".tmp-step_0000001-x").mkdir(parents=True)
    first.begin(home / "dit")
    assert not list(home.rglob(".tmp-*"))
    path = write(other.run_dir, "dit/checkpoints/.tmp-step_0000002-x/rank_00000.safetensors", "weights")
    first.publish(path)
    second.begin(home / "dit")
    assert not list(home.rglob("rank_*"))
    for call in (lambda: first.publish(path), lambda: first.where_whole(len, "x")):
        with pytest.raises(SupersededError, match="another start of this training has begun"):
            call()
    assert second.where_whole(len, "x") == 1


def test_the_folder_of_a_training_is_kept_alike(home, other, monkeypatch):
    monkeypatch.setattr(stored_files, "ALIKE_SECONDS", 0.02)
    there, here = home / "dit", other.run_dir / "dit"
    for name in ("metrics.jsonl", "checkpoints/step_0000003/checkpoint.json", "ray/x"):
        write(there, name, f"{name}\n")  # equal contents are one object, which `memory://` cannot give to two at a time
    for name in ("checkpoints/step_0000006/checkpoint.json", "compiled/kept"):
        write(here, name, "of an earlier start")
    files = other.of_start("s")
    files.begin(there)
    with files.kept_alike(here, (STOP_NAME,)):
        assert names_in(here) == {"metrics.jsonl", "checkpoints/step_0000003/checkpoint.json", "compiled/kept"}
        assert not (here / "checkpoints" / "step_0000006").exists()
        with (here / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("two\n")
        write(other.run_dir, "logs/rank-1.log", "said")
        request_save_and_stop(there)
        while not (here / STOP_NAME).exists():
            time.sleep(0.001)
        (here / STOP_NAME).unlink()
        while (there / STOP_NAME).exists():
            time.sleep(0.001)
        os.replace(write(here, "new", "three\n"), here / "metrics.jsonl")  # noqa: PTH105 - as `published` does
    assert (there / "metrics.jsonl").read_text(encoding="utf-8") == "three\n"
    assert (home / "logs/rank-1.log").read_text(encoding="utf-8") == "said"


def test_a_command_outside_of_runs_gives_the_folders_that_it_reads(tmp_path, home, place, other):
    """A model that lies elsewhere on the machine of the command comes to the other one, which gives clips back."""
    models = tmp_path / "models"
    write(models, "step_0000003/rank", "weights")
    write(models, "step_0000003/checkpoint.json", "whole")
    there = tmp_path / "other" / "models"  # the same path in truth, where machines have file systems of their own
    read = replace(other, run_dir=there, whole=WholeRun(models, place, is_run=False))
    folders = StoredFolders(other, (read,))
    folders.fetch_folder(there / "step_0000003")
    assert names_in(there) == {"step_0000003/rank", "step_0000003/checkpoint.json", "fetch.lock"}
    folders.publish(write(other.run_dir, "clip.mp4", "pixels"))
    assert (home / "clip.mp4").read_text(encoding="utf-8") == "pixels"
    assert names_in(models) == {"step_0000003/rank", "step_0000003/checkpoint.json"}
    folders.fetch(other.run_dir / "clip.mp4", there / "step_0000003" / "rank", tmp_path / "elsewhere")


def test_which_machine_is_that_of_the_command_is_known_by_the_folder_that_it_writes(tmp_path, place):
    folders = StoredFolders.new(tmp_path / "clips", [tmp_path / "a", tmp_path / "b", tmp_path / "a"], place)
    assert [files.run_dir for files in folders.read] == [tmp_path / "a", tmp_path / "b"]
    assert len({files.name for files in (folders.written, *folders.read)}) == 3
    marker = folders.written.run_dir / f".tmp-{folders.written.name}"
    assert {files.marker for files in folders.read} == {marker}
    assert not any(files.is_run for files in folders.read)


def test_of_a_dataset_shards_come_in_parts_and_other_files_whole(home, other, place):
    write(home, SHARD, "x" * 3000)
    write(home, "clips/index.parquet", "rows")
    write(other.run_dir, "clips/shard-1.tar", "whole, of an earlier start")
    write(home, "clips/shard-1.tar", "whole")
    in_parts = replace(other, parts=True)
    in_parts.fetch_dataset(other.run_dir / "clips")
    assert names_in(other.run_dir / "clips") == {
        "index.parquet",
        "shard-1.tar",
        *(f"shard-0.tar.part{suffix}" for suffix in ("", ".blocks", ".json")),
    }
    assert (other.run_dir / "clips" / "shard-1.tar").read_text(encoding="utf-8") == "whole"
    shard = ShardParts(other.run_dir / SHARD)
    assert shard.bring(2000, 100) == 3000
    assert os.pread(shard.descriptor, 100, 2000) == b"x" * 100
    other.fetch_dataset(other.run_dir / "clips")
    assert (other.run_dir / SHARD).read_text(encoding="utf-8") == "x" * 3000
