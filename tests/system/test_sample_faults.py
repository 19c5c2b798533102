"""Sampling jobs that are killed, stopped, divided, or given what they cannot use; see `benchmarks.sample_faults`."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from data.files.jsonl import read_jsonl
from pipeline.sample.outputs import FailedClip, read_samples
from testing.commands import launch_here
from testing.sample_faults import (
    SampleJob,
    check_exactly_once,
    digests,
    rows_of,
    strike_at,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow
NUM_ROWS = 40
BATCHES_OF_3 = ("--set", "sample.batch=3")


@pytest.fixture(scope="module")
def calm(cluster, tmp_path_factory):
    """A model, and the rows in reverse, sampled by one actor in another batch size."""
    folder = tmp_path_factory.mktemp("sampled")
    model = write_model(folder)
    options = ("--set", "cluster.workers.num_workers=1", "--set", "sample.batch=7")
    job = SampleJob(model, write_rows(folder / "rows.jsonl", rows_of(NUM_ROWS)[::-1]), folder / "out", options)
    assert job.run_here() == 0, job.said
    assert len(digests(job.output)) == NUM_ROWS
    return model, digests(job.output)


def test_killed_jobs_make_every_clip_once_with_the_bytes_of_an_undisturbed_one(calm, tmp_path):
    model, expected = calm
    job = SampleJob(
        model, write_rows(tmp_path / "rows.jsonl", rows_of(NUM_ROWS)), tmp_path / "out", ("--set", "sample.batch=3")
    )
    struck = strike_at(job, [(4, "actor"), (12, "driver"), (20, "raylet"), (28, "driver")])
    assert struck.killed == {"actor": 1, "member": 0, "raylet": 1, "driver": 2}
    check_exactly_once(job, NUM_ROWS)
    assert digests(job.output) == expected


def test_a_job_whose_clips_are_shared_survives_any_of_its_processes(calm, tmp_path):
    model, _ = calm
    prompts = write_rows(tmp_path / "rows.jsonl", rows_of(12))
    options = ("--set", "sample.batch=2", "--set", "sample.sequence_parallel=2")
    undisturbed = SampleJob(model, prompts, tmp_path / "undisturbed", options)
    assert undisturbed.run_here() == 0, undisturbed.said
    job = SampleJob(model, prompts, tmp_path / "out", options)
    struck = strike_at(job, [(2, "member"), (6, "actor")])
    assert struck.return_codes == [0]
    check_exactly_once(job, 12)
    assert digests(job.output) == digests(undisturbed.output)


def test_sigterm_ends_the_command_and_the_same_one_continues(calm, tmp_path):
    model, expected = calm
    job = SampleJob(
        model, write_rows(tmp_path / "rows.jsonl", rows_of(NUM_ROWS)), tmp_path / "out", ("--set", "sample.batch=3")
    )
    process = job.start()
    while job.num_listed() < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert job.end(process, 300) == 130
    assert "was stopped; the same command continues from here" in job.said
    assert not any(word in job.said for word in ("SIGTERM received", "Traceback", "@     0x")), job.said
    made = {clip.file: clip.sha256 for clip in read_samples(job.output)}
    assert 3 <= len(made) < NUM_ROWS
    assert made.items() <= expected.items()
    assert job.run_here() == 0
    check_exactly_once(job, NUM_ROWS)
    assert digests(job.output) == expected


def test_parts_make_each_clip_once_and_come_together(calm, tmp_path):
    model, expected = calm
    job = SampleJob(model, write_rows(tmp_path / "rows.jsonl", rows_of(NUM_ROWS)), tmp_path / "out")
    running = []
    for part in ("1/2", "2/2"):
        of_part = SampleJob(model, job.prompts, job.output, ("--shard", part, "--set", "cluster.workers.num_workers=1"))
        running.append((of_part, of_part.start()))
    for of_part, process in running:
        assert of_part.end(process) == 0, of_part.said
    lines = [len((job.output / f"manifest-{part}-of-2.jsonl").read_text().splitlines()) for part in (1, 2)]
    assert sum(lines) == NUM_ROWS
    assert min(lines) > 0
    assert digests(job.output) == expected
    assert job.run_here() == 0
    check_exactly_once(job, NUM_ROWS)
    assert not list(job.output.glob("manifest-*"))
    assert (job.output / "index.html").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own can be mounted by root only")
def test_a_full_disk_is_told_and_what_was_made_stays(calm, tmp_path):
    model, expected = calm
    output = tmp_path / "out"
    output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", output], check=True)
    try:
        options = ("--set", "sample.batch=3", "--set", "cluster.workers.num_workers=1")
        job = SampleJob(model, write_rows(tmp_path / "rows.jsonl", rows_of(NUM_ROWS)), output, options)
        assert job.run_here() == 1
        assert "the disk is full" in job.said
        assert digests(output).items() <= expected.items()
        subprocess.run(["mount", "-o", "remount,size=16m", output], check=True)
        assert job.run_here() == 0, job.said
        check_exactly_once(job, NUM_ROWS)
        assert digests(output) == expected
    finally:
        subprocess.run(["umount", "-l", output], check=True)  # processes of the cluster may still be leaving it


def sampled(model, prompts, output, *options):
    return launch_here("sample", str(model), "--prompts", str(prompts), "--output", str(output), *options)


def test_rows_that_cannot_be_used_are_told_and_the_others_made(calm, tmp_path):
    model, _ = calm
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = [
        {"prompt": "a dot", "seed": 1},
        {"prompt": "b", "image": "cut.png"},
        {"prompt": "c" * 100_000},
        {"prompt": "d", "seed": 4, "steps": 0},
        {"prompt": "e", "seed": 5, "colour": "red"},
    ]
    prompts, output = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    refused = sampled(model, prompts, output)
    assert refused.returncode == 1
    assert "line 2: image cut.png: it cannot be decoded" in refused.stderr
    assert not output.exists()
    done = sampled(model, prompts, output, "--set", "sample.bad_rows=set_aside", "--set", "sample.steps=1")
    assert done.returncode == 1
    assert "4 of 5 clips could not be made; the others are in the folder" in done.stderr
    assert [clip.request.seed for clip in read_samples(output)] == [1]
    failed = read_jsonl(output / "failed.jsonl", FailedClip)
    assert [line.row and line.row.rpartition(" ")[2] for line in failed] == ["2", "3", "4", "5"]


def test_what_is_no_job_is_refused_before_anything_starts(calm, tmp_path):
    model, _ = calm
    prompts, output = tmp_path / "rows.txt", tmp_path / "out"
    prompts.write_text("")
    assert "holds no prompt" in sampled(model, prompts, output).stderr
    prompts.write_text("a dot\n")
    other = shutil.copytree(model, tmp_path / "other")
    for path in other.rglob("checkpoint.json"):
        record = json.loads(path.read_text())
        del record["checksum"]
        path.write_text(json.dumps(record | {"kind": "autoencoder"}))
    assert "holds a autoencoder; sampling takes a dit checkpoint" in sampled(other, prompts, output).stderr
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot be made (File exists)" in sampled(model, prompts, blocked).stderr
    assert not output.exists()
