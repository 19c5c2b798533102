"""Clusters whose command was killed, on real processes."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launch.abandoned import (
    ClusterRecord,
    ProcessRecord,
    end_abandoned_clusters,
    record_cluster,
    record_of,
    records_dir,
)
from testing.paths import ROOT

COMMAND = """
import time
from launch.cluster import connected
from launch.config import ClusterConfig
with connected(ClusterConfig(object_store_mib=128)):
    print("connected", flush=True)
    time.sleep(600)
"""

FOLLOWING = COMMAND.removesuffix("    time.sleep(600)\n")


@pytest.fixture(autouse=True)
def folder(monkeypatch) -> Iterator[Path]:
    """Records of this test alone, in a folder with a short name: that of a socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rf-") as short:
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield records_dir()


@pytest.mark.slow
def test_what_a_killed_command_leaves_is_ended_before_the_next_cluster(folder):
    with subprocess.Popen([sys.executable, "-c", COMMAND], cwd=ROOT, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "connected\n"
        (path,) = folder.glob("*.json")
        record = ClusterRecord.model_validate_json(path.read_text())
        assert record.command.pid == command.pid
        assert len(record.processes) >= 3
        assert end_abandoned_clusters() == 0  # of a command that is running
        command.send_signal(signal.SIGKILL)
    # Linux has ended most of them, or all, together with the command; the next one ends the others.
    following = subprocess.run([sys.executable, "-c", FOLLOWING], cwd=ROOT, check=True, capture_output=True, text=True)
    assert following.stdout == "connected\n"
    assert not any(known.find() for known in record.processes)
    assert not list(folder.glob("*.json"))


def test_a_number_that_was_given_to_another_process_is_left_alone(folder):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        path = record_cluster([psutil.Process(other.pid)])
        assert path is not None
        record = ClusterRecord.model_validate_json(path.read_text())
        gone = record.command.model_copy(update={"started": record.command.started - 1})
        earlier = record.processes[0].model_copy(update={"started": record.processes[0].started - 1})
        path.write_text(ClusterRecord(command=gone, processes=(earlier,)).model_dump_json())
        assert end_abandoned_clusters() == 0
        assert record_of(psutil.Process(other.pid)).find() is not None
        assert other.poll() is None
        assert not path.exists()
        other.communicate(b"\n")


PROCESS = '{{"command": {{"pid": {}, "started": 1.0}}, "processes": []}}'


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[]", b"", *(PROCESS.format(pid).encode() for pid in (-5, 0, 2**31, 10**30))],
    ids=repr,
)
def test_what_is_no_record_is_removed(folder, content):
    folder.mkdir()
    (folder / "1.json").write_bytes(content)
    (folder / "2.json").mkdir()
    assert end_abandoned_clusters() == 0
    assert list(folder.glob("*.json")) == [folder / "2.json"]


def test_a_folder_that_others_write_to_ends_no_process(folder, caplog):
    """They could name any process of this user there."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        folder.mkdir()
        gone = ProcessRecord(pid=2**31 - 1, started=0.0)
        record = ClusterRecord(command=gone, processes=(record_of(psutil.Process(other.pid)),))
        (folder / "1.json").write_text(record.model_dump_json())
        folder.chmod(0o777)
        assert end_abandoned_clusters() == 0
        assert record_cluster([]) is None
        assert f"{folder} can be written by others" in caplog.text
        assert other.poll() is None
        folder.chmod(0o700)
        assert end_abandoned_clusters() == 1
        assert record.processes[0].find() is None
        assert f"command {gone.pid} was killed; ended 1 processes" in caplog.text
        assert not list(folder.glob("*.json"))
