"""The copy of a run in a store: when it is fetched, when it is renewed, and what a store that fails costs."""

import json
import time
from pathlib import Path

import fsspec
import pytest

from launch import run, stored
from launch.config import ClusterConfig, RunConfig
from launch.overrides import ConfigError
from launch.stored import fetch
from pipeline.run import objects, run_files
from pipeline.run.context import RunContext, StoppedError
from pipeline.run.stored_run import StoredRunError, pull_run


class Stage:
    """Writes a file; the second one is stopped after that."""

    def __init__(self, number: int, stops: bool = False) -> None:
        self.number, self.stops = number, stops

    def check(self) -> None:
        """Nothing."""

    def execute(self, context: RunContext) -> None:
        (context.run_dir / f"stage-{self.number}").write_text("made", encoding="utf-8")
        if self.stops:
            raise StoppedError("stopped as asked")


@pytest.fixture
def config(tmp_path, request) -> RunConfig:
    return RunConfig(name="tiny", runs_dir=tmp_path / "here", store=f"memory://{request.node.name}/")


def stages_in_store(config: RunConfig, tmp_path: Path) -> set[str]:
    """The stages whose files are in the store."""
    folder = tmp_path / "look" / str(len(list(tmp_path.glob("look/*"))))
    pull_run(str(config.place), folder)
    return {path.name for path in folder.glob("stage-*")}


def test_a_run_is_stored_after_each_stage_and_fetched_where_its_folder_is_missing(config, tmp_path, monkeypatch):
    assert fetch(config) is None
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1), Stage(2, stops=True), Stage(3)])
    with pytest.raises(StoppedError):
        run.run_stages(config)
    assert stages_in_store(config, tmp_path) == {"stage-1", "stage-2"}
    assert fetch(config) is None  # its folder is there

    elsewhere = config.model_copy(update={"runs_dir": tmp_path / "elsewhere"})
    fetched = fetch(elsewhere)
    assert fetched is not None
    assert fetched.num_copied == 3  # with config.yaml
    assert {path.name for path in elsewhere.run_dir.glob("stage-*")} == {"stage-1", "stage-2"}
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(3)])
    run.run_stages(elsewhere)
    assert stages_in_store(config, tmp_path) == {"stage-1", "stage-2", "stage-3"}


def test_copies_of_a_machine_give_way_to_the_run_when_the_command_comes_there(config, tmp_path, monkeypatch):
    """Where machines share the folder, what differs is refused instead: it may be all that there is of the run."""
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1)])
    run.run_stages(config)
    there = config.model_copy(update={"runs_dir": tmp_path / "worker"})
    there.run_dir.mkdir(parents=True)
    (there.run_dir / "stage-1").write_text("an older copy", encoding="utf-8")
    with pytest.raises(StoredRunError, match="has 1 files that differ from those stored, such as stage-1"):
        fetch(there)
    apart = there.model_copy(update={"cluster": ClusterConfig(shared_folder=False)})
    assert fetch(apart) is not None
    assert (there.run_dir / "stage-1").read_text(encoding="utf-8") == "made"
    assert (tmp_path / "worker" / "tiny.superseded-1" / "stage-1").read_text(encoding="utf-8") == "an older copy"


def test_a_store_that_fails_costs_no_stage_and_is_an_error_at_the_end(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1), Stage(2)])
    files = fsspec.url_to_fs(str(config.place))[0]

    def refuse(*_: object) -> None:
        raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        patch.setattr(files, "pipe_file", refuse)
        with pytest.raises(StoredRunError, match=r"tiny cannot be used \(Access Denied\)"):
            run.run_stages(config)
    assert caplog.text.count("the run is not in its store yet: ") == 1
    assert {path.name for path in config.run_dir.glob("stage-*")} == {"stage-1", "stage-2"}
    run.run_stages(config)
    assert stages_in_store(config, tmp_path) == {"stage-1", "stage-2"}


class Training(Stage):
    """Saves two checkpoints, each when the one before it has come to the store."""

    def __init__(self, place: str, pulled: Path) -> None:
        self.place, self.pulled = place, pulled

    def execute(self, context: RunContext) -> None:
        """Pull the run after each checkpoint: what a start elsewhere would find if this one were killed now."""
        folder = context.run_dir / "dit"
        for name in ("step_0000003", "step_0000006"):
            checkpoint = folder / "checkpoints" / name
            checkpoint.mkdir(parents=True)
            (checkpoint / "checkpoint.json").write_text(name, encoding="utf-8")
            (folder / "latest").write_text(f"{name}\n", encoding="utf-8")
            deadline = time.monotonic() + 60
            while f"dit/checkpoints/{name}/checkpoint.json" not in names_in(self.place):
                assert time.monotonic() < deadline, name
                time.sleep(0.01)
            pull_run(self.place, self.pulled / name)


def names_in(place: str) -> set[str]:
    """The files of a stored run."""
    files, root = fsspec.url_to_fs(place)
    record = f"{root}/run.json"
    return set(json.loads(files.cat_file(record))["files"]) if files.exists(record) else set()


def test_a_run_is_stored_after_each_checkpoint_while_it_trains(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LOOK_SECONDS", 0.01)
    left = config.run_dir / ".tmp-snapshot-of-a-start-that-was-killed"
    left.mkdir(parents=True)
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1), Training(str(config.place), tmp_path)])
    run.run_stages(config)
    for name in ("step_0000003", "step_0000006"):
        found = {
            path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*") if path.is_file()
        }
        assert found >= {"config.yaml", "stage-1", "dit/latest", f"dit/checkpoints/{name}/checkpoint.json"}
        assert (tmp_path / name / "dit" / "latest").read_text() == f"{name}\n"
        assert len([each for each in found if "checkpoints" in each]) == 1
    assert len([each for each in names_in(str(config.place)) if "checkpoints" in each]) == 2  # once it has ended
    assert not list(config.run_dir.glob(".tmp-*"))


def test_a_store_that_takes_no_checkpoint_is_a_warning(config, tmp_path, monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> None:
        raise StoredRunError("it is full")

    monkeypatch.setattr(stored, "push_held_run", refuse)
    (config.run_dir / "dit" / "checkpoints" / "step_0000003").mkdir(parents=True)
    (config.run_dir / "dit" / "latest").write_text("step_0000003\n", encoding="utf-8")
    assert stored._copied(config, str(config.place), "dit")
    assert "the newest checkpoint is not in the store: it is full" in caplog.text
    (config.run_dir / "dit" / "latest").unlink()
    assert not stored._copied(config, str(config.place), "dit")  # to be tried again


def test_a_fetch_that_was_interrupted_goes_on(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1)])
    run.run_stages(config)
    elsewhere = config.model_copy(update={"runs_dir": tmp_path / "elsewhere"})
    with monkeypatch.context() as patch:
        patch.setattr(run_files, "RECORDS", ("none", run_files.CONFIG_NAME))
        patch.setattr(objects, "file_sha256", lambda path: "0" * 64 if "config" in Path(path).name else real(path))
        with pytest.raises(StoredRunError, match=r"what is stored of config\.yaml is damaged"):
            fetch(elsewhere)
    assert (elsewhere.run_dir / "stage-1").is_file()
    assert fetch(elsewhere) is not None
    assert (elsewhere.run_dir / "config.yaml").is_file()


real = objects.file_sha256


def test_what_cannot_be_a_store_is_refused(config, monkeypatch):
    for store, reason in (("runs", "it is no URI"), ("s3://a:b@bucket/runs", "the URI holds a password")):
        with pytest.raises(ValueError, match=reason):
            RunConfig(name="tiny", store=store)
    with pytest.raises(StoredRunError, match="file:///x/tiny is no object store"):
        fetch(config.model_copy(update={"store": "file:///x"}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(
        ConfigError,
        match="store is in an object store, which is not for torchrun; give `pull` before it and `push` after it",
    ):
        fetch(config)


def test_a_run_in_a_store_goes_from_machine_to_machine_and_one_command_at_a_time_works_on_it(tmp_path, monkeypatch):
    first, second = (
        RunConfig(name="tiny", runs_dir="memory://from-machine-to-machine/runs", local_dir=tmp_path / name)
        for name in ("first", "second")
    )

    def run_here(config: RunConfig, *stages: Stage) -> set[str]:
        monkeypatch.setattr(run, "stages_of", lambda *_: list(stages))
        run.run_stages(config)
        return {path.name for path in config.run_dir.glob("stage-*")}

    assert fetch(first) is None  # nothing is stored
    run_here(first, Stage(1))
    fetched = fetch(second)
    assert fetched is not None
    assert fetched.num_copied == 2  # with config.yaml
    assert run_here(second, Stage(2)) == {"stage-1", "stage-2"}
    assert fetch(first) is not None
    assert fetch(second) is None  # it has what is stored
    run_here(first, Stage(3))
    with pytest.raises(StoredRunError, match=r"another command has stored memory://from-machine-to-machine/runs/tiny"):
        run_here(second, Stage(4))
    assert names_in(str(first.place)) >= {"stage-1", "stage-2", "stage-3"}
    assert fetch(second) is not None
    assert {path.name for path in second.run_dir.glob("stage-*")} == {"stage-1", "stage-2", "stage-3"}
    aside = second.run_dir.with_name("tiny.superseded-1")
    assert (aside / "stage-4").read_text(encoding="utf-8") == "made"
