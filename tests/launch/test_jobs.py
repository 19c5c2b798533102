"""Jobs on a real Ray cluster with a real dashboard: submit, follow, status, stop."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from data.dataset.manifest import read_manifest
from launch.cluster import ClusterError
from launch.config import load_config
from launch.jobs import NO_AGENT, absolute_paths, status, stop, submit
from testing.commands import TINY, launch


def test_a_job_is_told_places_that_do_not_depend_on_where_it_was_submitted():
    mix = "data.mix={a: {source: x/*.mp4}, b: {source: s3://bucket/y}, c: {source: synthetic}}"
    sources = {name: part.source for name, part in absolute_paths(load_config(Path("demo"), [mix])).data.mix.items()}
    assert sources == {"a": str(Path("x/*.mp4").absolute()), "b": "s3://bucket/y", "c": "synthetic"}
    names = ("runs_dir", "data.captions", "encode.text.folder", "dit.train.start_from", "dit.train.cache.folder")
    names += ("autoencoder.train.cache.folder", "sample.prompts", "sample.text_encoder")
    given = [f"{name}=x/{name}" for name in names]
    given += [f"{section}.train.cache.limit_gib=1" for section in ("dit", "autoencoder")]
    told = absolute_paths(load_config(Path("demo"), given))
    for name in names:
        assert attrgetter(name)(told) == Path(f"x/{name}").absolute()


RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A cluster of one node, as `ray start --head` makes it; `ray stop` would end those of other tests too."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RAY_AUTH_MODE": "disabled"}
    command = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    # Other clusters of this machine, and for a minute those that were killed, hold the port that is the default.
    command += [f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true", "--disable-usage-stats"]
    command += ["--object-store-memory=134217728"]
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,  # a short name: a socket's path has 107 bytes
        log.open("w") as said,
        subprocess.Popen(
            [*command, f"--temp-dir={folder}", "--block"], env=environment, stdout=said, stderr=said
        ) as head,
    ):
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            head.terminate()


@pytest.fixture(autouse=True)
def _no_auth(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_submit_and_follow_a_stage(address, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    done = launch("submit", "shard", str(config), "--address", address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted tiny-shard-" in done.stdout
    assert "shard: done" in done.stdout  # the job's own log
    assert "SUCCEEDED" in done.stdout
    assert read_manifest(tmp_path / "runs" / "tiny" / "clips").num_samples == 26


def test_a_cluster_that_still_starts_is_asked_again(address, tmp_path, monkeypatch):
    """Its dashboard says so until a node's agent is there, which takes a busy machine long."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    submit_job, answers = JobSubmissionClient.submit_job, [NO_AGENT, NO_AGENT, "something else"]

    def answer(client: JobSubmissionClient, **job: Any) -> str:
        if answers:
            raise RuntimeError(f"Request failed with status code 500: {answers.pop(0)}")
        return submit_job(client, **job)

    monkeypatch.setattr(JobSubmissionClient, "submit_job", answer)
    with pytest.raises(ClusterError, match=r"refused the job: .* something else"):
        submit("shard", config, (), address)
    answers += [NO_AGENT]
    job = submit("shard", config, (), address)
    assert status(job, address) in ("PENDING", "RUNNING")
    stop(job, address)
    answers += [NO_AGENT] * 99
    with pytest.raises(ClusterError, match=NO_AGENT):
        submit("shard", config, (), address)


@pytest.mark.slow
def test_stop_a_job(address, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    many = "data.synthetic.num_videos=50000"
    done = launch("submit", "shard", str(config), "--set", many, "--address", address, "--no-follow")
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    deadline = time.monotonic() + 90
    while not (tmp_path / "runs" / "tiny" / "videos" / "000").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "RUNNING" in launch("job", "status", job, "--address", address).stdout
    assert launch("job", "stop", job, "--address", address).returncode == 0
    while "STOPPED" not in launch("job", "status", job, "--address", address).stdout:
        assert time.monotonic() < deadline
    assert not list((tmp_path / "runs").rglob("*.tar"))


def test_errors_of_submission(address, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    said = launch("submit", "dance", str(config), "--address", address)
    assert said.returncode == 1
    assert "there is no stage 'dance'; stages are run, demo, shard" in said.stderr
    said = launch("submit", "shard", str(config), "--address", f"http://127.0.0.1:{free_port()}")
    assert "no Ray dashboard answers" in said.stderr
    said = launch("submit", "shard", str(config), "--set", "dit.typo=1", "--address", address)
    assert "dit.typo: there is no such field" in said.stderr
    assert "there is no job 'nothing'" in launch("job", "status", "nothing", "--address", address).stderr
