"""The house rules that a machine can check: directions of import, who starts Ray, nothing unpickled."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("data", "models", "pipeline", "launch")
MAY_IMPORT = {  # of the project's own rooms, and of the heavy libraries that belong to one room
    "data": set(),
    "models": set(),
    "pipeline": {"data", "models", "ray", "deepspeed"},
    "launch": {"data", "models", "pipeline", "ray"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    watched = {*ROOMS, "ray", "deepspeed"}
    for path in (ROOT / room).rglob("*.py"):
        foreign = (imports_of(path) & watched) - {room} - MAY_IMPORT[room]
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_only_the_cluster_module_starts_ray():
    callers = [
        path.name
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "ray.init(" in path.read_text(encoding="utf-8")
    ]
    assert callers == ["cluster.py"]


def test_nothing_is_unpickled():
    """Formats on disk hold tensors, JSON and video; torch.load and pickle appear nowhere."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "torch.load(" not in text, path
            assert "pickle" not in imports_of(path), path


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = "import sys, launch.commands; print([m for m in ('torch', 'ray', 'deepspeed') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_gitignore_does_not_hide_the_packages():
    """Ray honours .gitignore when it ships the code: a package listed there vanishes from the cluster."""
    hidden = subprocess.run(
        ["git", "check-ignore", *[f"{room}/__init__.py" for room in ROOMS]], cwd=ROOT, capture_output=True, text=True
    )
    assert hidden.stdout == ""
