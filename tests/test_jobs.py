"""Jobs on a real Ray cluster with a real dashboard: submit, follow, status, stop."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_road import ROOT, TINY, launch

from data.shards import read_manifest

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A cluster of one node, as `ray start --head` makes it."""
    port, dashboard = free_port(), free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RAY_AUTH_MODE": "disabled"}
    command = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += ["--include-dashboard=true", "--object-store-memory=134217728", "--disable-usage-stats"]
    command += [f"--temp-dir={tmp_path_factory.mktemp('ray')}"]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stdout + started.stderr
    yield f"http://127.0.0.1:{dashboard}"
    subprocess.run([RAY, "stop", "--force"], env=environment, capture_output=True, timeout=60)


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
    assert ROOT.is_dir()
