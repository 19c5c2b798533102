"""Fixtures shared by the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CLIPS_DIR = Path(__file__).resolve().parent.parent.parent / "shared" / "clips"


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real videos, good and broken. They lie beside the checkout; without them the tests fail."""
    assert CLIPS_DIR.is_dir(), f"the test videos are missing: {CLIPS_DIR}"
    return CLIPS_DIR


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers, as every default run has."""
    from launch.cluster import connected
    from launch.config import ClusterConfig

    with connected(ClusterConfig(object_store_mib=128)):
        yield
