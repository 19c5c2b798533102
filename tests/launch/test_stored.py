"""The copy of a run in a store: when it is fetched, when it is renewed, and what a store that fails costs."""

from pathlib import Path

import fsspec
import pytest

from launch import run
from launch.config import RunConfig
from launch.overrides import ConfigError
from launch.stored import fetch, place_of
from pipeline.run import run_files, stored_run
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


def stored(config: RunConfig) -> set[str]:
    """The stages whose files are in the store."""
    folder = config.runs_dir.parent / "look" / str(len(list(config.runs_dir.parent.glob("look/*"))))
    pull_run(place_of(config), folder)
    return {path.name for path in folder.glob("stage-*")}


def test_a_run_is_stored_after_each_stage_and_fetched_where_its_folder_is_missing(config, tmp_path, monkeypatch):
    assert fetch(config) is None
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1), Stage(2, stops=True), Stage(3)])
    with pytest.raises(StoppedError):
        run.run_stages(config)
    assert stored(config) == {"stage-1", "stage-2"}
    assert fetch(config) is None  # its folder is there

    elsewhere = config.model_copy(update={"runs_dir": tmp_path / "elsewhere"})
    fetched = fetch(elsewhere)
    assert fetched is not None
    assert fetched.num_copied == 3  # with config.yaml
    assert {path.name for path in elsewhere.run_dir.glob("stage-*")} == {"stage-1", "stage-2"}
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(3)])
    run.run_stages(elsewhere)
    assert stored(config) == {"stage-1", "stage-2", "stage-3"}


def test_a_store_that_fails_costs_no_stage_and_is_an_error_at_the_end(config, monkeypatch, caplog):
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1), Stage(2)])
    files = fsspec.url_to_fs(place_of(config))[0]

    def refuse(*_: object) -> None:
        raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        patch.setattr(files, "pipe_file", refuse)
        with pytest.raises(StoredRunError, match=r"tiny cannot be used \(Access Denied\)"):
            run.run_stages(config)
    assert caplog.text.count("the run is not in its store yet: ") == 1
    assert {path.name for path in config.run_dir.glob("stage-*")} == {"stage-1", "stage-2"}
    run.run_stages(config)
    assert stored(config) == {"stage-1", "stage-2"}


def test_a_fetch_that_was_interrupted_goes_on(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "stages_of", lambda *_: [Stage(1)])
    run.run_stages(config)
    elsewhere = config.model_copy(update={"runs_dir": tmp_path / "elsewhere"})
    with monkeypatch.context() as patch:
        patch.setattr(run_files, "RECORDS", ("none", run_files.CONFIG_NAME))
        patch.setattr(stored_run, "file_sha256", lambda path: "0" * 64 if "config" in Path(path).name else real(path))
        with pytest.raises(StoredRunError, match=r"what is stored of config\.yaml is damaged"):
            fetch(elsewhere)
    assert (elsewhere.run_dir / "stage-1").is_file()
    assert fetch(elsewhere) is not None
    assert (elsewhere.run_dir / "config.yaml").is_file()


real = stored_run.file_sha256


def test_what_cannot_be_a_store_is_refused(config, monkeypatch):
    for store, reason in (("runs", "it is no URI"), ("s3://a:b@bucket/runs", "the URI holds a password")):
        with pytest.raises(ValueError, match=reason):
            RunConfig(name="tiny", store=store)
    with pytest.raises(StoredRunError, match="file:///x/tiny is no object store"):
        fetch(config.model_copy(update={"store": "file:///x"}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ConfigError, match="store is not for torchrun; give `pull` before it and `push` after it"):
        fetch(config)
