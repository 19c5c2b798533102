"""Where a run is: in a folder, or in a store with a folder of this machine to work in."""

from pathlib import Path

import pytest

from launch.config import ClusterConfig, RunConfig, dump_config, load_config
from launch.jobs import RUN_DIR, STAGE, JobOptions, _entrypoint, absolute_paths
from launch.overrides import ConfigError
from pipeline.ingest.config import DataConfig
from testing.commands import launch_here


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reelflow"


def demo(*settings: str) -> RunConfig:
    return load_config(Path("demo"), settings)


@pytest.mark.parametrize("uri", ["s3://bucket/some/runs", "gs://bucket/runs", "az://bucket", "s3://bucket/runs/"])
def test_a_run_in_a_store_works_in_a_folder_of_this_machine_and_shares_none(uri, cache, tmp_path):
    config = demo(f"runs_dir={uri}")
    stored = uri.rstrip("/")
    assert config.place == f"{stored}/demo"
    assert config.run_dir == cache / "runs" / stored.replace("://", "/") / "demo"
    assert (config.is_stored_run, config.cluster.shared_folder, config.store) == (True, False, None)
    (tmp_path / "saved.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "saved.yaml") == config
    assert absolute_paths(config).runs_dir == stored


def test_a_folder_is_what_it_was():
    config = demo("runs_dir=some/runs")
    assert (config.run_dir, config.place, config.cluster.shared_folder) == (Path("some/runs/demo"), None, True)
    config = demo("runs_dir=some/runs", "store=s3://bucket/runs/")
    assert (config.run_dir, config.place) == (Path("some/runs/demo"), "s3://bucket/runs/demo")
    assert not config.is_stored_run


def test_two_places_never_have_the_same_folder(tmp_path):
    uris = ("s3://a/b", "gs://a/b", "s3://a/B", "s3://a/b%2Fc", "s3://a/b/c", "s3://a/b:c", "s3://a/b?c", "s3://a/b~c")
    folders = {demo(f"runs_dir={uri}", f"local_dir={tmp_path}").run_dir for uri in uris}
    assert len(folders) == len(uris)
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["store=s3://b/other"], r"runs_dir is s3://b/runs, .* and store is s3://b/other: leave store out"),
        (["cluster.shared_folder=true"], r"shared_folder is true, but runs_dir is s3://b/runs, .*: leave cluster\.sh"),
        (["runs_dir=runs", "local_dir=x"], r"local_dir is x, but runs_dir runs is a folder, .*: leave local_dir out"),
        (["runs_dir=s3://key:secret@b/runs"], r"runs_dir: the URI holds a password"),
        (["runs_dir=s3://b/runs?token=x"], r"runs_dir: the URI holds credentials \(its parameter token\)"),
        (["runs_dir=https://b/runs"], r"runs_dir: it must be a path, or .* \(memory, s3, gs, az\)"),
        (["runs_dir=file:///runs"], r"runs_dir: it must be a path, or"),
        (["runs_dir=s3://"], r"runs_dir: 's3://' names no folder of a store"),
        (["runs_dir=s3://b//runs"], r"runs_dir: 's3://b//runs' names no folder of a store: it has an empty part"),
        (["runs_dir=s3://b/../runs"], r"names no folder of a store"),
        (
            ["cluster.shard_parts=true", "dit.train.cache={folder: x, limit_gib: 1}"],
            r"dit\.train\.cache copies whole sha",
        ),
        (
            ["runs_dir=runs", "cluster.shard_parts=true"],
            r"shard_parts is true, but the machines see .*: leave cluster\.sh",
        ),
        (["cluster.address=auto", "data.source=my/videos"], r"source is the folder my/videos .* \(runs_dir is in a st"),
    ],
)
def test_what_contradicts_a_run_in_a_store_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        demo("runs_dir=s3://b/runs", *settings)
    assert "secret" not in str(caught.value)


def test_one_machine_alone_may_have_its_videos_in_a_folder():
    assert demo("runs_dir=s3://b/runs", "data.source=my/videos").data.source == "my/videos"


def test_a_program_gives_sections_as_records():
    config = RunConfig(name="x", runs_dir="s3://b/runs", cluster=ClusterConfig(object_store_mib=100))
    assert (config.cluster.shared_folder, config.cluster.object_store_mib) == (False, 100)
    with pytest.raises(ValueError, match=r"leave cluster\.shared_folder out"):
        RunConfig(name="x", runs_dir="s3://b/runs", cluster=ClusterConfig(shared_folder=True))
    assert RunConfig(name="x", data=DataConfig()).cluster.shared_folder


def test_a_job_that_is_resumed_reads_the_configuration_where_the_run_is():
    for run_dir, config in (
        ("/runs/demo", "/runs/demo/config.yaml"),
        ("s3://b/runs/demo", "s3://b/runs/demo/config.yaml"),
    ):
        wanted = {RUN_DIR: run_dir, STAGE: "run"}
        command = _entrypoint(wanted, is_shipped=False, options=JobOptions())
        assert command == f"exec python -m launch.supervise --command run --config {config} --restarts 3"


def test_torchrun_is_told_to_pull_and_push(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    done = launch_here("train", "dit", "demo", "--set", "runs_dir=memory://torchrun/runs")
    assert done.returncode == 1
    assert "runs_dir is in an object store, which is not for torchrun; give `pull` before it" in done.stderr


def test_the_plan_says_where_the_run_is_and_where_it_works(cache):
    done = launch_here("run", "demo", "--set", "runs_dir=s3://b/runs", "--dry-run")
    assert f"plan, in s3://b/runs/demo, which works in {cache}/runs/s3/b/runs/demo," in done.stdout
    assert not cache.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "runs/demo/dit", "--output", "s3://b/clips"],
        ["push", "s3://b/runs/demo", "s3://b/other"],
        ["remake", "s3://b/clips/x.mp4"],
    ],
)
def test_a_uri_where_a_path_is_expected_is_no_folder_of_that_name(words):
    done = launch_here(*words)
    assert done.returncode == 2
    assert "is in a store, and this has to be a path" in done.stderr
