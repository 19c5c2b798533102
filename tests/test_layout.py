"""Tests mirror the tree of the sources: the test of a module is found by its name."""

import pytest

from testing.paths import ROOT

PACKAGES = ("data", "models", "pipeline", "launch")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_test_file_has_the_module_that_it_is_named_after(package):
    tests = sorted((ROOT / "tests" / package).rglob("test_*.py"))
    assert tests, f"there are no tests of {package}"
    for path in tests:
        relative = path.relative_to(ROOT / "tests")
        module = ROOT / relative.with_name(relative.name.removeprefix("test_"))
        assert module.is_file() or module.with_suffix("").is_dir(), f"{path.relative_to(ROOT)} has no {module.name}"


def test_the_tests_are_no_package():
    """`tests/data` must never be imported as `data`: neither an `__init__.py` nor `tests` itself on the path."""
    assert sorted((ROOT / "tests").rglob("__init__.py")) == []


def test_tests_import_no_benchmark():
    files = [path for folder in ("tests", "testing") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("from benchmarks", "import benchmarks"))], path
