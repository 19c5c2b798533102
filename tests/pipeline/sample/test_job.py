"""A sampling job: its batches, what it reuses, and that nothing is lost when a request or an actor fails."""

import logging
import os
import signal
import time
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from data.files.jsonl import format_line, publish_jsonl, read_jsonl
from data.video.codec import encode_clip
from pipeline.distributed.actor_pool import JobFailure, WorkerStartError
from pipeline.distributed.config import WorkersConfig
from pipeline.run import precision as run_precision
from pipeline.run.config import Precision
from pipeline.sample import job
from pipeline.sample.batches import batches_of
from pipeline.sample.config import SampleConfig
from pipeline.sample.images import ImageError
from pipeline.sample.job import Samples, SamplingError, sample_clips
from pipeline.sample.manifest import Manifest
from pipeline.sample.outputs import FAILED_NAME, SAMPLES_NAME, FailedClip, SampledClip, read_samples
from pipeline.sample.requests import ImageFile, PromptRequest
from pipeline.sample.reuse import reused_clips
from testing.clips import moving_shapes


def test_batches_have_one_scale_and_one_bucket_in_the_order_of_the_requests():
    requests = [
        PromptRequest(id=f"{i:02}", prompt="p", seed=i, guidance_scale=float(i % 2), bucket=f"9x32x32@{8 + i // 8}")
        for i in (5, 3, 8, 1, 2, 9, 4)
    ]
    batches = [[request.seed for request in batch] for batch in batches_of(requests, 2)]
    assert batches == [[5, 3], [2, 4], [8], [1], [9]]  # a full batch at once, the others at the end
    assert list(batches_of([], 2)) == []
    few = [[request.seed for request in batch] for batch in batches_of(requests, 5, max_waiting=3)]
    assert few == [[5, 3, 1], [8], [2, 4], [9]]  # the kind that waited longest makes room


def test_clips_from_images_have_batches_of_their_own():
    image = ImageFile(path="/start.png", sha256="0" * 64)
    requests = [
        request.model_copy(update={"image": image if request.seed % 2 else None}) for request in requests_of(*range(5))
    ]
    batches = batches_of(requests, 2)
    assert [[request.seed for request in batch] for batch in batches] == [[0, 2], [1, 3], [4]]


def requests_of(*seeds: int) -> list[PromptRequest]:
    return [
        PromptRequest(id=f"{seed:012}", prompt="a\u2028b", seed=seed, guidance_scale=3.0, bucket="9x32x32@8")
        for seed in seeds
    ]


def line_of(request: PromptRequest, content: bytes | None = None) -> SampledClip:
    digest = None if content is None else sha256(content).hexdigest()
    return SampledClip(file=request.file_name, request=request, num_network_calls=2, sha256=digest)


def reusable_clips(folder: Path, requests: list[PromptRequest]) -> tuple[dict[str, SampledClip], list[SampledClip]]:
    """Of the requests, by id, and of others: the lines that a folder's manifest has once a job has looked at it."""
    with Manifest(folder) as manifest:
        found = reused_clips(manifest, lambda: requests)
    lines = read_samples(folder)
    assert found.num_requests == len(requests)
    return {clip.request.id: clip for clip in lines[: found.num_made]}, lines[found.num_made :]


@pytest.fixture
def whole() -> bytes:
    return encode_clip(moving_shapes(9, 32), 8)


def test_clips_are_reused_by_what_is_in_the_folder(tmp_path, whole, caplog):
    listed, empty, cut, unlisted, earlier, gone, gone_earlier, new = requests_of(*range(8))
    for request in (listed, unlisted, earlier):
        (tmp_path / request.file_name).write_bytes(whole)
    (tmp_path / empty.file_name).touch()
    (tmp_path / cut.file_name).write_bytes(whole[:-10])
    publish_jsonl(tmp_path / SAMPLES_NAME, [line_of(r) for r in (earlier, gone_earlier, cut, empty, listed, gone)])
    with caplog.at_level(logging.WARNING):
        made, kept = reusable_clips(tmp_path, [listed, empty, cut, unlisted, gone, new])
    assert made == {
        listed.id: line_of(listed, whole),
        unlisted.id: line_of(unlisted, whole).model_copy(update={"num_network_calls": None}),
    }
    assert kept == [line_of(earlier)]
    assert [record.getMessage().partition(": ")[2].partition(": ")[2] for record in caplog.records] == [
        "2 clips are damaged or cut short, and are made again",
        "1 clips were not listed in manifest.jsonl; they are listed again",
        "1 clips of other settings are gone; their lines leave manifest.jsonl",
    ]


def test_a_line_never_stands_for_what_is_asked_for(tmp_path, whole, caplog):
    """Only the file of the request's own name is its clip, and only the request says what to expect of it."""
    one, two, three, other = requests_of(*range(4))
    for request in (one, two, other):
        (tmp_path / request.file_name).write_bytes(whole)
    lines = [
        line_of(one.model_copy(update={"expect": {"colour": "blue"}})),
        line_of(two).model_copy(update={"file": "gone.mp4"}),
        line_of(three).model_copy(update={"file": other.file_name}),
        line_of(requests_of(9)[0]).model_copy(update={"file": one.file_name}),
    ]
    publish_jsonl(tmp_path / SAMPLES_NAME, lines)
    asked = one.model_copy(update={"expect": {"colour": "red"}})
    with caplog.at_level(logging.WARNING):
        made, earlier = reusable_clips(tmp_path, [asked, two, three])
    assert made == {one.id: line_of(asked, whole), two.id: line_of(two, whole)}
    assert earlier == []
    assert "1 clips in the folder are in no line" in caplog.text  # that of `other`


def test_a_file_that_is_not_what_its_line_says_is_made_again(tmp_path, whole, caplog):
    good, changed, cut, gone = requests_of(*range(4))
    for request in (good, changed, cut):
        (tmp_path / request.file_name).write_bytes(whole)
    publish_jsonl(tmp_path / SAMPLES_NAME, [line_of(request, whole) for request in (good, changed, cut, gone)])
    at = whole.index(b"mdat") + 40  # a whole file by its boxes
    (tmp_path / changed.file_name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    (tmp_path / cut.file_name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        made, _ = reusable_clips(tmp_path, [good, changed, cut, gone])
    assert made == {good.id: line_of(good, whole)}
    assert "2 clips are damaged or cut short, and are made again" in caplog.text


def test_a_job_killed_in_the_middle_of_a_line_goes_on_after_the_line_before(tmp_path, whole, monkeypatch):
    def make(batch):
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request, whole) for request in batch]

    run, requests = Job(monkeypatch, tmp_path, make), requests_of(*range(4))
    run.run(requests[:2])
    with (tmp_path / SAMPLES_NAME).open("ab") as manifest:
        manifest.write(format_line(line_of(requests[2], whole)).encode()[:60])
    assert [clip.request.seed for clip in read_samples(tmp_path)] == [0, 1]
    assert len(run.run(requests).clips) == 4
    assert [clip.request.seed for clip in read_samples(tmp_path)] == [0, 1, 2, 3]
    assert run.batches == [[0, 1], [2, 3]]


def test_lines_are_added_while_a_job_runs_and_ordered_at_its_end(tmp_path, whole, monkeypatch):
    seen = []

    def make(batch):
        seen.append((tmp_path / SAMPLES_NAME).read_bytes())
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request, whole) for request in batch]

    requests = requests_of(3, 1, 2, 0)
    Job(monkeypatch, tmp_path, make).run(requests, batch=1)
    assert [content.count(b"\n") for content in seen] == [0, 1, 2, 3]
    assert all(later.startswith(before) for before, later in pairwise(seen))  # nothing is written twice
    assert [clip.request.seed for clip in read_samples(tmp_path)] == [3, 1, 2, 0]


def test_requests_that_fail_are_listed_until_they_are_made(tmp_path, whole, monkeypatch):
    def make(batch):
        if is_broken and batch[0].seed == 1:
            raise RayTaskError("make", "", KeyError("17x64x64@8"))
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request, whole) for request in batch]

    is_broken = True
    run, requests = Job(monkeypatch, tmp_path, make), requests_of(*range(3))
    run.run(requests, batch=1)
    (failed,) = read_jsonl(tmp_path / FAILED_NAME, FailedClip)
    assert (failed.request, failed.reason) == (requests[1], "KeyError: '17x64x64@8'")
    is_broken = False
    assert len(run.run(requests, batch=1).clips) == 3
    assert not (tmp_path / FAILED_NAME).exists()


def test_clips_of_other_settings_whose_lines_were_lost_are_counted(tmp_path, whole, caplog):
    wanted, *others = requests_of(*range(3))
    for request in (wanted, *others):
        (tmp_path / request.file_name).write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        made, earlier = reusable_clips(tmp_path, [wanted])
    assert (len(made), earlier) == (1, [])
    assert "2 clips in the folder are in no line of manifest.jsonl and of none of these prompts" in caplog.text
    assert "sample with their own prompts and settings to list them again" in caplog.text


class Job:
    """`sample_clips` in one process, on actors whose method is `make`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, make: Any) -> None:
        self.batches: list[list[int]] = []
        self.folder = folder

        @contextmanager
        def outcomes_of_actors(start, submit, jobs, max_actors, max_attempts):
            def outcomes():
                while jobs:
                    batch = jobs.popleft()
                    self.batches.append([request.seed for request in batch])
                    try:
                        yield batch, make(batch)
                    except (RayTaskError, RayActorError) as error:
                        yield batch, JobFailure(error)

            yield outcomes()

        monkeypatch.setattr(job, "outcomes_of_actors", outcomes_of_actors)
        monkeypatch.setattr(WorkersConfig, "num_startable", lambda self: 1)

    def run(self, requests: list[PromptRequest], batch: int = 4, precision: Precision = "auto") -> Samples:
        model: Any = SimpleNamespace(folder=self.folder, fingerprint=None)
        config = SampleConfig(batch=batch, precision=precision)
        return sample_clips(model, requests, self.folder, config, WorkersConfig())


def test_a_precision_without_instructions_is_warned_of_before_anything_is_sampled(tmp_path, whole, monkeypatch, caplog):
    def make(batch):
        assert "precision is bf16, but this CPU has no instructions for it" in caplog.text
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request) for request in batch]

    monkeypatch.setattr(run_precision, "_cpu_flags", lambda: "flags: avx2 fma")
    job = Job(monkeypatch, tmp_path, make)
    assert len(job.run(requests_of(1), precision="bf16").clips) == 1
    caplog.clear()
    job.run(requests_of(1), precision="bf16")  # nothing is left to sample
    assert "instructions" not in caplog.text


def test_a_request_that_raises_is_named_and_loses_no_other(tmp_path, whole, monkeypatch):
    def make(batch):
        if any(request.seed == 2 for request in batch):
            raise RayTaskError("make", "", KeyError("17x64x64@8"))
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request) for request in batch]

    run, requests = Job(monkeypatch, tmp_path, make), requests_of(*range(6))
    samples = run.run(requests)
    assert run.batches == [[0, 1, 2, 3], [4, 5], [0], [1], [2], [3]]
    assert [clip.request.seed for clip in samples.clips] == [0, 1, 3, 4, 5]
    assert read_samples(tmp_path) == samples.clips
    with pytest.raises(SamplingError) as caught:
        samples.check_all_made()
    assert str(caught.value) == (
        "1 of 6 clips could not be made; the others are in the folder and listed, and the same command tries again:\n"
        "  a-b-000000000002.mp4: prompt 'a\\u2028b', seed 2: KeyError: '17x64x64@8'"
    )
    run.batches.clear()
    assert run.run(requests).failures.keys() == {requests[2].file_name}
    assert run.batches == [[2]]


def test_an_image_that_changed_loses_no_other_clip(tmp_path, whole, monkeypatch):
    def make(batch):
        if any(request.seed == 1 for request in batch):
            raise RayTaskError("make", "", ImageError("image /start.png has changed since the job began"))
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request) for request in batch]

    samples = Job(monkeypatch, tmp_path, make).run(requests_of(*range(3)))
    assert [clip.request.seed for clip in samples.clips] == [0, 2]
    with pytest.raises(SamplingError, match=r"seed 1: image /start\.png has changed since the job began"):
        samples.check_all_made()


def test_an_error_that_every_request_would_meet_ends_the_job_at_once(tmp_path, monkeypatch):
    def make(batch):
        raise RayTaskError("make", "", OSError(28, "No space left on device"))

    run = Job(monkeypatch, tmp_path, make)
    with pytest.raises(RayTaskError):
        run.run(requests_of(*range(6)))
    assert run.batches == [[0, 1, 2, 3]]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("deadly", [0, 2, 4])
def test_a_request_that_actors_die_of_is_named_and_loses_no_other(tmp_path, monkeypatch, deadly, batch):
    def make(batch):
        if any(request.seed == deadly for request in batch):
            raise RayActorError(error_msg="killed by the kernel")
        return [line_of(request) for request in batch]

    samples = Job(monkeypatch, tmp_path, make).run(requests_of(*range(5)), batch)
    assert [clip.request.seed for clip in samples.clips] == [seed for seed in range(5) if seed != deadly]
    with pytest.raises(
        SamplingError, match=rf"(?s)1 of 5 .*seed {deadly}: .*died 3 times \(.*kernel.*\); .* lower "
    ) as e:
        samples.check_all_made()
    assert len(str(e.value)) < 1000


def test_a_batch_that_is_too_large_for_the_memory_is_made_one_by_one(tmp_path, monkeypatch, caplog):
    def make(batch):
        if len(batch) > 1:
            raise RayActorError(error_msg="killed by the kernel")
        return [line_of(request) for request in batch]

    run = Job(monkeypatch, tmp_path, make)
    with caplog.at_level(logging.WARNING):
        assert len(run.run(requests_of(*range(3)), batch=2).clips) == 3
    assert run.batches == [[0, 1], [0], [1], [2]]
    assert "died 3 times of a batch of 2 clips, which are made one by one (killed by the kernel); " in caplog.text
    assert "lower sample.batch" in caplog.text


def test_actors_that_die_of_every_request_end_the_job(tmp_path, monkeypatch):
    def make(batch):
        raise RayActorError(error_msg="no memory")

    run = Job(monkeypatch, tmp_path, make)
    with pytest.raises(SamplingError, match=r"no clip could be made: .*died 3 times \(no memory\)"):
        run.run(requests_of(*range(8)))
    assert run.batches == [[0, 1, 2, 3], [0], [1], [2]]


def test_other_settings_keep_the_lines_of_the_first_ones(tmp_path, whole, monkeypatch):
    def make(batch):
        for request in batch:
            (tmp_path / request.file_name).write_bytes(whole)
        return [line_of(request) for request in batch]

    run, first, second = Job(monkeypatch, tmp_path, make), requests_of(1, 2), requests_of(3)
    run.run(first)
    samples = run.run(second)
    assert (samples.clips, samples.earlier) == ([line_of(second[0])], [line_of(request) for request in first])
    assert read_samples(tmp_path) == list(samples.all_clips)
    here = {"model_folder": str(tmp_path)}
    assert run.run(first).clips == [line_of(request, whole).model_copy(update=here) for request in first]
    assert run.batches == [[1, 2], [3]]


def test_failures_are_listed_up_to_a_number(tmp_path):
    samples = Samples(tmp_path / SAMPLES_NAME)
    for number in range(1000):
        samples.add_failure(f"{number}.mp4", "x" * 500)
    with pytest.raises(SamplingError, match=r"(?s)1000 of 1000 clips.*\n  and 990 more") as caught:
        samples.check_all_made()
    assert len(str(caught.value)) < 6000


def test_a_sampling_process_that_is_killed_loses_no_batch(cluster, tmp_path, whole, monkeypatch):
    class Mortal:
        """Dies at the first batch, once the other process is idle, as a process that the kernel kills."""

        def __init__(self, *arguments: object) -> None:
            self._folder = tmp_path

        def make(self, requests: list[PromptRequest]) -> list[SampledClip]:
            if requests[0].seed == 0 and not (self._folder / "died").exists():
                while not (self._folder / SAMPLES_NAME).read_bytes():
                    time.sleep(0.05)
                (self._folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            for request in requests:
                (self._folder / request.file_name).write_bytes(whole)
            return [SampledClip(file=r.file_name, request=r, num_network_calls=2) for r in requests]

    monkeypatch.setattr(job, "SamplerActor", Mortal)
    model: Any = SimpleNamespace(folder=tmp_path, fingerprint=None)
    requests = requests_of(*range(4))
    samples = sample_clips(model, requests, tmp_path, SampleConfig(batch=2), WorkersConfig(num_workers=2))
    assert (tmp_path / "died").exists()
    assert samples.failures == {}
    assert read_samples(tmp_path) == samples.clips == [line_of(request) for request in requests]


def test_a_checkpoint_that_an_actor_cannot_load_is_told_by_its_own_error(cluster, tmp_path):
    model: Any = SimpleNamespace(folder=tmp_path, fingerprint=None)
    with pytest.raises(WorkerStartError, match=rf"set up: .*CheckpointError: {tmp_path} is not a checkpoint") as caught:
        sample_clips(model, requests_of(1, 2), tmp_path, SampleConfig(batch=1), WorkersConfig(num_workers=1))
    assert "died" not in str(caught.value)
