"""Folders of stored runs, as commands read them on this machine."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.config import load_config
from launch.local_copies import local_copies
from launch.overrides import ConfigError
from pipeline.run.objects import StoredRunError
from pipeline.run.stored_run import push_run
from testing.commands import launch_here

NEWEST, OLDER = "dit/checkpoints/step_0000020", "dit/checkpoints/step_0000010"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reelflow"


@pytest.fixture
def pushed(tmp_path, request) -> tuple[Callable[..., None], str]:
    """What stores files of a run, and its place."""
    run_dir, place = tmp_path / "runs" / "demo", f"memory://{request.node.name}/runs/demo"

    def push(**contents: str) -> None:
        for name, text in contents.items():
            (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (run_dir / name).write_text(text, encoding="utf-8")
        push_run(run_dir, place)

    files = {f"{folder}/{name}": folder for folder in (NEWEST, OLDER) for name in ("rank", "checkpoint.json")}
    files |= {"config.yaml": "name: demo\nruns_dir: /elsewhere\ncluster: {shared_folder: true}\n", "clips/a.tar": "a"}
    push(**files, **{"dit/latest": "step_0000020\n", "dit/stage.json": "{}", "samples/x.mp4": "x"})
    return push, place


def names_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {"run.lock"}


def test_of_a_training_the_newest_checkpoint_is_fetched(pushed):
    _, place = pushed
    with local_copies(f"{place}/dit") as (folder,):
        assert folder.parent.name == "demo"
        found = names_in(folder.parent)
        expected = {"config.yaml", "dit/latest", "dit/stage.json", f"{NEWEST}/rank", f"{NEWEST}/checkpoint.json"}
        assert found == expected
    with local_copies(f"{place}/{OLDER}") as (folder,):
        assert (folder / "rank").read_text(encoding="utf-8") == OLDER


def test_folders_of_one_run_are_in_one_copy_and_paths_are_left_alone(pushed, tmp_path):
    _, place = pushed
    with local_copies(f"{place}/samples", str(tmp_path), f"{place}/dit/", also=("clips", "latents")) as folders:
        samples, path, training = folders
        assert path == tmp_path
        assert samples.parent == training.parent
        assert {"samples/x.mp4", "clips/a.tar", f"{NEWEST}/rank"} <= names_in(samples.parent)


def test_a_copy_that_is_read_does_not_change_and_is_shared_while_it_is_current(pushed):
    push, place = pushed
    with local_copies(f"{place}/samples") as (first,), local_copies(f"{place}/samples") as (second,):
        assert first == second
        push(**{"samples/x.mp4": "another", "samples/y.mp4": "y"})
        with local_copies(f"{place}/samples") as (third,):
            assert third != first
            assert (third / "x.mp4").read_text(encoding="utf-8") == "another"
        assert (first / "x.mp4").read_text(encoding="utf-8") == "x"
    with local_copies(f"{place}/samples") as (fourth,):
        assert fourth == first
        assert {path.name for path in fourth.iterdir()} == {"x.mp4", "y.mp4"}
        assert (fourth / "x.mp4").read_text(encoding="utf-8") == "another"


def test_what_is_not_stored_is_named(pushed):
    _, place = pushed
    with (
        pytest.raises(StoredRunError, match=r"other/dit is no stored run, nor a folder of one"),
        local_copies(f"{place.removesuffix('demo')}other/dit"),
    ):
        pass
    with (
        pytest.raises(StoredRunError, match=r"demo has no folder latents; it has clips, dit, samples"),
        local_copies(f"{place}/latents"),
    ):
        pass


@pytest.mark.parametrize("end", ["", "/", "/config.yaml"])
def test_the_configuration_of_a_stored_run_goes_on_where_it_is_stored(pushed, end):
    push, place = pushed
    config = load_config(place + end, ["seed=3"])
    assert (config.place, config.seed, config.cluster.shared_folder) == (place, 3, False)
    push(**{"config.yaml": "name: another"})
    with pytest.raises(ConfigError, match=r"demo holds the run another: .*; push it to memory://.*/runs/another"):
        load_config(place)


def test_inspect_reads_a_stored_folder(pushed):
    _, place = pushed
    done = launch_here("inspect", f"{place}/dit")
    assert done.returncode == 1
    assert f"copies{os.sep}1" in done.stderr  # the damaged checkpoint, in its copy
