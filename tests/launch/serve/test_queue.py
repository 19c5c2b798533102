"""Clips that are asked for one after another: the bytes of a job, the queue, what fails, and what is there already."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from data.files.checksums import file_sha256
from data.video.codec import decode_clip
from launch.sample_settings import SamplingConfig
from launch.serve.queue import MAX_WAITING, ClipQueue, Job
from pipeline.sample.config import SampleSection
from pipeline.sample.model import open_model
from pipeline.sample.outputs import read_samples
from pipeline.sample.prompts import Prompt, PromptError
from testing.clips import moving_shapes
from testing.in_process import SETTINGS, sample

CONFIG = SamplingConfig(sample=SampleSection(**SETTINGS.model_dump()))
LONG = {"prompt": "long", "seed": "1", "steps": "100000"}


@pytest.fixture
def queue(model_dir, tmp_path) -> Iterator[ClipQueue]:
    with ClipQueue(open_model(model_dir), CONFIG, tmp_path / "clips") as queue:
        yield queue


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def only(jobs: list[Job]) -> Job:
    (job,) = jobs
    return job


def test_clips_have_the_bytes_and_lines_of_a_job(queue, model_dir, tmp_path):
    Image.fromarray(moving_shapes(1, 48)[0]).save(tmp_path / "start.png")
    rows = [
        {"prompt": "a red dot", "seed": "3"},
        {"prompt": "a blue dot", "steps": "3", "solver": "heun", "negative_prompt": "red"},
        {"prompt": "from an image", "image": str(tmp_path / "start.png"), "seed": "2", "num_seeds": "2"},
    ]
    made = [job.future.result() for row in rows for job in queue.submit(row)]
    prompts = [
        Prompt(prompt="a red dot", seed=3),
        Prompt(prompt="a blue dot", settings={"steps": 3, "solver": "heun", "negative_prompt": "red"}),
        Prompt(prompt="from an image", image=str(tmp_path / "start.png"), seed=2, num_seeds=2),
    ]
    job = sample(tmp_path / "job", model_dir, prompts)
    assert [clip.file for clip in made] == [clip.file for clip in job.clips]
    for clip in job.clips:
        assert (queue.folder / clip.file).read_bytes() == (job.folder / clip.file).read_bytes()
    assert read_samples(queue.folder) == job.clips == made
    assert [clip.file for clip in queue.history] == [clip.file for clip in made]
    assert queue.jobs == []


def test_clips_are_made_one_after_another_and_may_be_stopped(queue):
    running, second, third = queue.submit(LONG | {"num_seeds": "3"})
    wait_for(lambda: running.progress is not None)
    assert [job.state for job in queue.jobs] == ["running", "waiting", "waiting"]
    assert [queue.ahead_of(job) for job in queue.jobs] == [0, 1, 2]
    assert (running.progress.num_steps, running.progress.num_windows) == (100000, 1)
    assert 0 < running.progress.share < 1
    queue.stop(second)
    assert (second.state, queue.jobs) == ("cancelled", [running, third])
    last = only(queue.submit({"prompt": "last"}))
    queue.stop(running)
    wait_for(lambda: running.state == "cancelled" and third.progress is not None)
    queue.stop(third)
    assert last.future.result().request.prompt == "last"
    wait_for(lambda: not queue.jobs)
    assert [clip.request.prompt for clip in read_samples(queue.folder)] == ["last"]
    assert len(list(queue.folder.glob("*.mp4"))) == 1


def test_a_clip_that_cannot_be_made_costs_only_itself(queue, tmp_path):
    Image.fromarray(moving_shapes(1, 48)[0]).save(tmp_path / "start.png")
    long = only(queue.submit(LONG))
    failing = only(queue.submit({"prompt": "from an image", "image": str(tmp_path / "start.png")}))
    (tmp_path / "start.png").unlink()
    after = only(queue.submit({"prompt": "after"}))
    queue.stop(long)
    assert after.future.result().request.prompt == "after"
    assert failing.state == "failed"
    assert "start.png cannot be read any more" in str(failing.error)
    assert queue.jobs == [failing]  # until it is taken away
    queue.stop(failing)
    assert queue.jobs == []


def test_a_clip_that_is_there_is_shown_and_a_damaged_one_made_again(queue):
    row = {"prompt": "a", "seed": "1"}
    first = only(queue.submit(row)).future.result()
    path = queue.folder / first.file
    path.touch()
    before = path.stat().st_mtime_ns
    again = only(queue.submit(row))
    assert again.future.result() == first
    assert again.was_there
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-9])
    assert only(queue.submit(row)).future.result() is not first
    assert file_sha256(path) == first.sha256
    assert read_samples(queue.folder) == [first]
    assert [clip.file for clip in queue.history] == [first.file]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "steps": "many"}, "steps: Input should be a valid integer"),
        ({"prompt": "a", "steps": "0"}, "steps: Input should be greater than or equal to 1"),
        ({"prompt": "a", "seed": "x"}, "seed: Input should be a valid integer"),
        ({"prompt": "a", "step": "3"}, "step: there is no such column; did you mean steps"),
        ({"prompt": "a", "zero_until": "0.5"}, "zero_until: only the rule cfg-zero-star reads it"),
        ({"prompt": "a", "bucket": "5x33x32@8"}, "bucket '5x33x32@8'"),
        ({"prompt": "a", "bucket": "big"}, "bucket 'big'"),
        ({"prompt": "a", "schedule": "pyramid"}, "schedule is 'pyramid', but"),
        ({"prompt": "a", "weights": "none"}, "none"),
        ({"prompt": "a", "image": "/no/such.png"}, "image /no/such.png cannot be read"),
        ({"prompt": "a", "num_seeds": "65"}, "num_seeds: 65 clips are more than 64"),
        ({"prompt": "\ud800"}, "prompt: Input should be a valid string"),
        ({"prompt": "a\0"}, "prompt: Value error, it contains U+0000"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_cannot_be_sampled_is_refused_with_its_column(queue, row, reason):
    with pytest.raises(PromptError) as refused:
        queue.submit(row)
    assert reason in refused.value.reason
    assert queue.jobs == []


def test_warnings_are_those_of_a_row_and_too_many_clips_are_refused(queue):
    jobs = queue.submit({**LONG, "prompt": "long " * 40, "guidance_scale": "20", "num_seeds": str(MAX_WAITING)})
    warnings = " ".join(jobs[0].warnings)
    assert "have more than the 16 bytes" in warnings
    assert "guidance scale beyond what pictures bear" in warnings
    with pytest.raises(PromptError, match="64 clips wait already"):
        queue.submit({"prompt": "a"})
    assert len(queue.jobs) == MAX_WAITING
    for job in jobs[1:]:
        queue.stop(job)
    assert queue.jobs == jobs[:1]


def test_the_next_start_shows_what_an_earlier_one_made(queue, model_dir, tmp_path):
    clip = only(queue.submit({"prompt": "a", "total_frames": "13"})).future.result()
    assert decode_clip((queue.folder / clip.file).read_bytes()).shape[0] == 13
    queue.__exit__()
    with ClipQueue(open_model(model_dir), CONFIG, tmp_path / "clips") as later:
        assert [each.file for each in later.history] == [clip.file]
        assert later.num_earlier == 1
        assert only(later.submit({"prompt": "a", "total_frames": "13"})).future.result() == clip


def test_a_stop_ends_the_clip_that_is_being_made(model_dir, tmp_path: Path):
    with ClipQueue(open_model(model_dir), CONFIG, tmp_path / "clips") as queue:
        jobs = queue.submit(LONG | {"num_seeds": "2"})
        wait_for(lambda: jobs[0].progress is not None)
    assert [job.state for job in jobs] == ["cancelled", "cancelled"]
    assert list((tmp_path / "clips").glob("*.mp4")) == []
