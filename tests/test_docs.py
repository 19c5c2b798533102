"""The documentation: it builds as a site without a warning, and its commands are ones that there are."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from launch.commands import app
from launch.config import load_config
from testing.paths import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(ROOT.glob("docs/**/*.md"))
COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(python -m (?:launch|benchmarks|testing)\b|reelflow )(.*)")
NOT_COMMANDS = re.compile(r"reelflow (samples and fine-tunes models|evaluate\b.*$)")
"""Sentences that begin with the program's name, and the one stage that is named without its configuration."""


def commands_of(page: Path) -> list[str]:
    """Commands of the program in code blocks and in inline code, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", prose)
    return [line.strip() for line in lines if COMMAND.match(line.strip()) and not NOT_COMMANDS.match(line.strip())]


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands_of(page)})


def exit_code(arguments: list[str]) -> int:
    """Of a command line that is parsed as the program does, and not run: 2 where there is no such command or option."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    groups = [root]
    while groups:
        for command in groups.pop().commands.values():
            if isinstance(command, TyperGroup):
                groups.append(command)
            else:
                command.callback = lambda **_: None
    with pytest.raises(SystemExit) as ended:
        root.main(arguments, prog_name="reelflow")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_there_are_commands_in_the_documentation():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value[:60])
def test_every_command_of_the_documentation_is_one(page, command):
    match = COMMAND.match(command)
    assert match is not None
    start, rest = match[1].strip(), match[2]
    arguments = shlex.split(rest, comments=True)
    if start in ("reelflow", "python -m launch") and not rest.startswith("."):
        arguments = [argument for argument in arguments if argument != "..."]
        if arguments:
            assert exit_code(arguments) == 0
        is_here = not any(argument.startswith("s3://") for argument in arguments[1:2])  # not a run in a store
        if arguments[:1] in (["demo"], ["run"]) and "CONFIG" not in arguments and is_here:
            overrides = [value for option, value in pairwise(arguments) if option == "--set"]
            load_config(Path("demo" if arguments[0] == "demo" else arguments[1]), overrides)
        return
    module = f"{start.removeprefix('python -m ')}{arguments[0]}" if rest.startswith(".") else arguments[0]
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    source = Path(spec.origin).read_text(encoding="utf-8")
    for option in arguments[1:]:
        if option.startswith("--"):
            assert f'"{option.partition("=")[0]}"' in source, f"{module} has no {option}"


@pytest.mark.parametrize("wrong", ["runs CONFIG", "run CONFIG --dry", "train", "job states JOB", "run"])
def test_what_is_no_command_is_found(wrong):
    assert exit_code(shlex.split(wrong)) == 2


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix() for page in (tmp_path / "site").rglob("index.html")}
    for page in ROOT.glob("docs/**/*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert ("index.html" if name == "index" else f"{name}/index.html") in pages
