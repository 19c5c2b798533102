"""Processes that share the tokens of each clip make the clips of one process, up to rounding, and end together."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import wait

import numpy as np
import psutil
import pytest
import torch

from data.dataset.buckets import Bucket
from data.records import Frames
from pipeline.checkpoint.record import CheckpointError
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.plan import Plan
from pipeline.sample.prompts import PlacedPrompt, Prompt, PromptError
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler, NotFiniteError
from pipeline.sample.samplers import SamplingProcess
from pipeline.sample.sharing import LostProcessError, killed_by
from testing.paths import ROOT

ONE = SampleConfig(solver="euler", steps=2, precision="fp32")
TWO = ONE.model_copy(update={"sequence_parallel": 2})


@pytest.fixture(scope="module")
def model(model_dir) -> SampledModel:
    return open_model(model_dir)


@pytest.fixture(scope="module")
def shared(model) -> Iterator[SamplingProcess]:
    process = SamplingProcess(model, TWO, 1)
    yield process
    process.close()


def requests(model: SampledModel, *rows: Prompt, config: SampleConfig = ONE) -> list[PromptRequest]:
    return list(Plan(model, config, [PlacedPrompt(f"row {number}", row) for number, row in enumerate(rows)], 0))


def made(process: SamplingProcess, batch: list[PromptRequest]) -> list[Frames]:
    with process.batch(batch) as sampler:
        return sampler.sample(batch)[0]


def test_shared_clips_are_those_of_one_process_up_to_rounding(model, shared, model_dir):
    weaker = sorted((model_dir / "checkpoints").iterdir())[0]
    plain = [Prompt(prompt="a red circle", seed=1), Prompt(prompt="a blue square", seed=2)]
    windows = [Prompt(prompt="in windows", total_frames=13)]
    guided = [Prompt(prompt="guided", settings={"guidance_checkpoint": str(weaker), "guidance_weights": "master"})]
    other = [Prompt(prompt="of another checkpoint", checkpoint=str(weaker), settings={"weights": "master"})]
    alone = SamplingProcess(model, ONE, 1)
    for rows in (plain, windows, guided, other):
        expected, found = made(alone, requests(model, *rows)), made(shared, requests(model, *rows, config=TWO))
        assert len(found) == len(rows)
        for one, two in zip(expected, found, strict=True):
            assert one.shape == two.shape
            assert np.abs(one.astype(int) - two.astype(int)).max() <= 1
    again = made(shared, requests(model, *plain[::-1], config=TWO))
    first = made(shared, requests(model, *plain, config=TWO))
    assert all(np.array_equal(one, two) for one, two in zip(again[::-1], first, strict=True))


def test_shared_clips_have_addresses_of_their_own(model):
    row = Prompt(prompt="a", seed=1)
    (one,), (two,) = requests(model, row), requests(model, row, config=TWO)
    assert one.id != two.id


def test_after_an_error_other_processes_make_the_next_batch(model, shared, monkeypatch):
    batch = requests(model, Prompt(prompt="a red circle", seed=1), config=TWO)
    before = made(shared, batch)
    with monkeypatch.context() as patch:
        patch.setattr(ClipSampler, "_latents", lambda *_: (torch.full((1, 1, 1, 1, 1), torch.nan), 1))
        with pytest.raises(NotFiniteError):  # in this process; the other one waits for it
            made(shared, batch)
    assert np.array_equal(made(shared, batch)[0], before[0])


@pytest.mark.slow
def test_a_killed_process_is_told_from_an_error_of_a_request(model, shared):
    """So that a job makes the batch again, and does not set its request aside."""
    batch = requests(model, Prompt(prompt="a red circle", seed=1), config=TWO)
    before, others = made(shared, batch), multiprocessing.active_children()
    assert len(others) == 1
    for other in others:
        other.kill()
    with pytest.raises(
        LostProcessError, match=r"ended by signal 9; if memory ran out, lower sample\.sequence_parallel"
    ):
        made(shared, batch)
    assert np.array_equal(made(shared, batch)[0], before[0])


def die_slowly() -> None:
    """As the kernel ends a process: first its files are closed, then it can be waited for."""
    os.closerange(3, 256)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_only_about_to_end_counts_as_killed():
    process = multiprocessing.get_context("spawn").Process(target=die_slowly)
    process.start()
    while not wait([process.sentinel], timeout=10):
        assert process.is_alive()
    assert killed_by([process]) == signal.SIGKILL


def test_what_cannot_be_shared_is_refused_by_name(model):
    with pytest.raises(CheckpointError, match=r"heads is 2, but 3 workers .*: use sample\.sequence_parallel=2"):
        check_can_sample(model, ONE.model_copy(update={"sequence_parallel": 3}))
    odd = Bucket(num_frames=5, height=16, width=48, fps=8)
    with pytest.raises(PromptError, match=r"row 0: a frame of bucket 5x16x48@8 has \d+ tokens, but 2 workers"):
        requests(model, Prompt(prompt="a", bucket=odd.name), config=TWO)


ENDS = """
import sys
from pathlib import Path

import pipeline.sample.sharing as sharing
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.samplers import SamplingProcess

if __name__ == "__main__":
    sharing.GRACE_SECONDS = 0.5
    config = SampleConfig(solver="euler", steps=2, precision="fp32", sequence_parallel=2)
    process = SamplingProcess(open_model(Path(sys.argv[1])), config, 1)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["first", "other"])
def test_no_process_outlives_another(model_dir, tmp_path, killed):
    script = tmp_path / "ends.py"
    script.write_text(ENDS, encoding="utf-8")
    first = subprocess.Popen(
        [sys.executable, str(script), str(model_dir)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    processes = psutil.Process(first.pid).children(recursive=True)
    (other,) = [each for each in processes if "resource_tracker" not in " ".join(each.cmdline())]
    (first if killed == "first" else other).kill()
    deadline = time.monotonic() + 30
    while first.poll() is None or (other.is_running() and other.status() != psutil.STATUS_ZOMBIE):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_of_shared_clips_needs_a_machine_with_room(monkeypatch):
    import ray

    from pipeline.distributed.config import WorkersConfig

    nodes = [{"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}])
    assert WorkersConfig(num_workers=8).num_groups(2) == 4
    assert WorkersConfig(num_workers=16).num_groups(2) == 5
    assert WorkersConfig(num_workers=16, gpus_per_worker=1).num_groups(2) == 1
    assert WorkersConfig(num_workers=16, gpus_per_worker=1).num_groups(4) == 0
    assert WorkersConfig(num_workers=3).num_groups(4) == 0
