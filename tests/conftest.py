"""Fixtures that tests of several packages share, and how tests are spread over the processes of `pytest -n`.

Imports are inside the fixtures: a test file loads only what it needs.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.paths import CLIPS_DIR, STARTUP_DIR

gc.disable()  # until all is imported
# Processes of the tests look for garbage less often, see testing/startup/sitecustomize.py.
if str(STARTUP_DIR) not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP_DIR), *filter(None, paths)])
# Two processes of tests share the cores with all that they start: threads do not wait actively. Those of NumPy always
# do, so it has one. With one thread for torch too, all tests together took longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Ray looks for new log files once a second, not ten times.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "1")
# Idle workers that Ray keeps for what comes next: more than the default, one a CPU, so that fewer start anew.
os.environ.setdefault("RAY_num_workers_soft_limit", "6")
# None before it is asked for: a training, whose workers have an environment of their own, would never use them.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# Folders whose files share fixtures that take minutes to make: all their tests run in one process of `pytest -n`.
ONE_PROCESS = ("tests/pipeline/train/monitor/", "tests/pipeline/train/", "tests/pipeline/checkpoint/")
LONG_FILES = ("tests/system/test_faults.py", "tests/launch/test_jobs.py")
LONG = (*LONG_FILES, *ONE_PROCESS, "tests/system/", "tests/pipeline/", "tests/launch/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take long, so that no process ends long after the others."""
    items.sort(key=lambda item: next((n for n, folder in enumerate(LONG) if item.nodeid.startswith(folder)), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, and of the folders above all files."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return next((folder for folder in ONE_PROCESS if file.startswith(folder)), file)

    return ByFixtures(config, log)


def pytest_collection_finish() -> None:
    """Compute from the first test on as each process of the product does, which tests compare with this one.

    What has been imported is never garbage: looking through it takes most of a second whenever DeepSpeed, or a test,
    asks for a collection.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    if torch := sys.modules.get("torch"):
        from pipeline.run.precision import prepare_to_compute

        prepare_to_compute(torch.device("cpu"))
    if "pipeline.train.monitor.throughput" in sys.modules:
        from testing.operations import count_operations_once

        count_operations_once()


@pytest.fixture(scope="module", autouse=True)
def own_linear() -> Iterator[None]:
    """An engine of ZeRO 3 replaces the linear function of torch for its whole process: here, for the file of a test."""
    yield
    if torch := sys.modules.get("torch"):
        torch.nn.functional.linear = torch._C._nn.linear


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real videos, valid and broken, in a folder beside the checkout; without them the tests fail."""
    assert CLIPS_DIR.is_dir(), f"the test videos are missing: {CLIPS_DIR}"
    return CLIPS_DIR


@pytest.fixture(scope="module")
def cluster() -> None:
    """A local Ray cluster with two workers, which the tests of one process share: commands that run here join it."""
    from testing.clusters import share_cluster

    share_cluster()


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


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A training of eight steps, with given frames, several averages of its weights and two checkpoints."""
    from models.flow.spec import FlowSpec, GivenFrames
    from testing.sample_faults import write_model

    flow = FlowSpec(caption_dropout=0.3, first_frame_share=0.3, given=GivenFrames(prefix=0.3, ends=0.3))
    return write_model(tmp_path_factory.mktemp("model"), flow)
