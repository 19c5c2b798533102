"""The entry point of a job: a command that dies is started again, one that ends is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.files.jsonl import read_jsonl
from launch.job_environment import (
    FILE_VARIABLE,
    JobEnvironmentError,
    check_is_name,
    check_names,
    load_in_worker,
    read_environment_file,
)
from launch.supervise import MISSING, RESTARTS_NAME, Restart, main, supervise
from testing.paths import ROOT

DYING = """
import os, signal, sys
from pathlib import Path
starts = Path(sys.argv[1]); starts.open("a").write("x")
if len(starts.read_text()) <= int(sys.argv[2]):
    os.kill(os.getpid(), getattr(signal, sys.argv[3]))
sys.exit(int(sys.argv[4]))
"""


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr("launch.supervise.FIRST_PAUSE_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("deaths", "exit_code", "restarts", "starts", "returned"),
    [(0, 0, 3, 1, 0), (2, 0, 3, 3, 0), (9, 0, 2, 3, 137), (0, 1, 3, 1, 1), (1, 130, 3, 2, 130), (9, 0, 0, 1, 137)],
)
def test_a_command_that_dies_is_started_again_so_often(tmp_path, deaths, exit_code, restarts, starts, returned):
    count, run_dir = tmp_path / "starts", tmp_path / "run"
    command = [sys.executable, "-c", DYING, str(count), str(deaths), "SIGKILL", str(exit_code)]
    assert supervise(command, run_dir, restarts, os.environ | {"REELFLOW_JOB": "x-1"}) == returned
    assert len(count.read_text()) == starts
    recorded = read_jsonl(run_dir / "logs" / RESTARTS_NAME, Restart) if starts > 1 else []
    assert [(each.number, each.ended_by) for each in recorded] == [(n, "SIGKILL") for n in range(1, starts)]


def test_a_command_that_is_stopped_is_not_started_again(tmp_path):
    """Ray sends SIGTERM to the entry point and to all below it."""
    command = [sys.executable, "-c", DYING, str(tmp_path / "starts"), "9", "SIGTERM", "0"]
    both = [sys.executable, "-c", "import os, signal; os.kill(os.getppid(), signal.SIGTERM); os.kill(os.getpid(), 9)"]
    assert supervise(both, tmp_path, 3, os.environ) == 137
    assert not (tmp_path / "logs").exists()
    assert supervise(command, tmp_path, 1, os.environ) == 143  # SIGTERM to the command alone is a death


def test_a_supervisor_that_is_killed_leaves_no_command_behind(tmp_path):
    waits = "import signal, sys, time\nfrom pathlib import Path\n"
    waits += f"signal.signal(signal.SIGTERM, lambda *_: (Path({str(tmp_path / 'told')!r}).touch(), sys.exit()))\n"
    waits += f"Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)\n"
    code = "import os, sys; from pathlib import Path; from launch.supervise import supervise\n"
    code += f"supervise([sys.executable, '-c', {waits!r}], Path({str(tmp_path)!r}), 3, os.environ)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        _wait_for(tmp_path / "ready")
        process.kill()
        _wait_for(tmp_path / "told")


def _wait_for(path: Path) -> None:
    import time

    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_variables_are_given_by_name_and_read_where_the_job_runs(tmp_path, monkeypatch):
    file = tmp_path / "variables"
    file.write_text("# keys\nexport ONE='a b'\nTWO=c=d\n\n", encoding="utf-8")
    assert read_environment_file(file) == {"ONE": "a b", "TWO": "c=d"}
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    monkeypatch.delenv("TWO", raising=False)
    load_in_worker()
    assert os.environ.pop("TWO") == "c=d"
    os.environ.pop("ONE")
    assert check_is_name("API_KEY") == "API_KEY"
    check_names(["ONE"], {"ONE": ""})


def test_values_are_in_no_message(tmp_path):
    file = tmp_path / "variables"
    file.write_text("secret\n", encoding="utf-8")
    for call, told in (
        (lambda: read_environment_file(file), "line 1 is not NAME=VALUE"),
        (lambda: read_environment_file(tmp_path / "none"), "cannot be read on"),
        (lambda: check_is_name("KEY=secret"), r"--env KEY=\.\.\.: give the name"),
        (lambda: check_is_name("secret!"), "--env what was given: give the name"),
        (lambda: check_names(["KEY"], {}), "KEY must be set on the cluster's machines"),
    ):
        with pytest.raises(JobEnvironmentError, match=told) as caught:
            call()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "none.yaml"], "there is no such config file"),
        (["--config", "demo", "--env", "REELFLOW_NONE"], "REELFLOW_NONE must be set on the cluster's machines"),
    ],
)
def test_a_missing_variable_or_configuration_ends_the_job_at_once(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["supervise", "--command", "shard", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == MISSING
    assert told in capsys.readouterr().out
