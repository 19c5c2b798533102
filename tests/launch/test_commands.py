"""Options of the command line: each is used, or refused by name where it would change nothing."""

import pytest
from typer.testing import CliRunner

from launch.commands import app


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("sample demo --output clips", "--output is for a checkpoint, and demo is no folder of one"),
        ("sample demo --prompts a.txt --set sample.prompts=b.txt", "--prompts and --set sample.prompts name the same"),
        ("inspect . --clips 3", "--clips is the number of clips that a page shows; give --html FOLDER too"),
        ("run demo --dry-run --quiet", "--dry-run only prints, and --quiet prints warnings only"),
        ("shard demo --verbose --quiet", "--verbose and --quiet contradict each other"),
        ("export . x.safetensors --raw --average ema", "--raw and --average name different weights"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments.split(), env={"COLUMNS": "1000", "TERMINAL_WIDTH": "1000"})
    assert done.exit_code == 2, done.output
    assert told in done.output
    assert not list(tmp_path.iterdir())
