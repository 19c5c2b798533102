"""Fixtures that tests of several packages share, and how tests are spread over the processes of `pytest -n`.

Imports are inside the fixtures: a test file loads only what it needs.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.paths import CLIPS_DIR

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Fixtures that take long to make: the tests that use one run in one process (`--dist loadgroup`), and before others.
COSTLY = ("step_runs", "watched_runs", "often_saved", "straight")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook, and would run before
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by the costly fixture that they share, or by the file whose fixtures they share."""
    first: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        names = getattr(item, "fixturenames", ())
        group = next((name for name in COSTLY if name in names), None)
        if group is None and _shares_fixtures_of_its_file(item):
            group = item.nodeid.split("::")[0]
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
        (others if group is None else first).append(item)
    items[:] = first + others


def _shares_fixtures_of_its_file(item: pytest.Item) -> bool:
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.values() if info is not None else ()
    return any(definition.scope in ("module", "class") for stack in definitions for definition in stack)


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real videos, valid and broken, in a folder beside the checkout; without them the tests fail."""
    assert CLIPS_DIR.is_dir(), f"the test videos are missing: {CLIPS_DIR}"
    return CLIPS_DIR


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray cluster with two workers, the default of every run."""
    from launch.cluster import connected
    from launch.config import ClusterConfig

    with connected(ClusterConfig(object_store_mib=128)):
        yield


@pytest.fixture(scope="session")
def shape_videos(tmp_path_factory) -> Path:
    """Five videos of three shapes, an image with an orientation tag, and a broken image."""
    from testing.shapes import write_shape_videos

    return write_shape_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def mixed_dataset(tmp_path_factory) -> Path:
    """A dataset of 40 clips in two buckets, a quarter of them for validation, with three rejected sources."""
    from testing.datasets import write_mixed_dataset

    return write_mixed_dataset(tmp_path_factory.mktemp("mixed") / "run" / "clips")


@pytest.fixture
def shapes_dir(tmp_path) -> Path:
    """A folder with `a.mp4`, `sub/b.mp4` and a text file."""
    from testing.shapes import write_two_videos

    return write_two_videos(tmp_path / "videos")


@pytest.fixture(scope="session")
def text_encoder_dir(tmp_path_factory) -> Path:
    """A small T5 encoder with random weights, in the layout of a model hub."""
    from testing.text_encoders import write_text_encoder

    return write_text_encoder(tmp_path_factory.mktemp("t5"))
