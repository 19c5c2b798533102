"""What a start of a run leaves in its log, whichever way it ends."""

import logging
from pathlib import Path

import pytest

from data.errors import DatasetError
from launch.config import load_config
from launch.run import StartOptions, started
from pipeline.run.context import StoppedError


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (StoppedError("stopped, saved at step 30"), "WARNING reelflow: stopped, saved at step 30"),
        (KeyboardInterrupt(), "WARNING reelflow: interrupted"),
        (DatasetError("clips/shard-1.tar is cut short"), "ERROR reelflow: clips/shard-1.tar is cut short"),
        (ZeroDivisionError("division by zero"), "ERROR reelflow: an unexpected error"),
    ],
)
def test_the_log_of_a_run_says_what_ended_a_start_and_the_console_does_not(error, logged, tmp_path, capsys):
    config = load_config(Path("demo"), [f"runs_dir={tmp_path}"])

    def start() -> None:
        with started(config, StartOptions()):
            logging.getLogger("launch.run").info("draw: new")
            raise error

    with pytest.raises(type(error)):
        start()
    log = (config.run_dir / "logs" / "driver.log").read_text(encoding="utf-8")
    assert "INFO launch.run: draw: new" in log
    assert logged in log
    assert ("ZeroDivisionError: division by zero" in log) is isinstance(error, ZeroDivisionError)
    assert capsys.readouterr().out == ""


def test_a_start_that_ends_well_adds_nothing(tmp_path):
    config = load_config(Path("demo"), [f"runs_dir={tmp_path}"])
    with started(config, StartOptions()):
        logging.getLogger("launch.run").info("draw: nothing to do")
    (line,) = (config.run_dir / "logs" / "driver.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith("INFO launch.run: draw: nothing to do")
