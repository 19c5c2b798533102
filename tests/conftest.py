"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CLIPS_DIR = Path(__file__).resolve().parent.parent.parent / "shared" / "clips"


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real videos, good and broken. They lie beside the checkout; without them the tests fail."""
    assert CLIPS_DIR.is_dir(), f"the test videos are missing: {CLIPS_DIR}"
    return CLIPS_DIR
