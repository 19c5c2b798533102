"""Ingestion on a real Ray cluster: every source accounted for, whatever it is."""

import logging
import re
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from data.curation.config import FilterConfig
from data.curation.ledger import QUARANTINE_NAME, read_rejections, reject
from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.dataset.index import read_index
from data.dataset.manifest import Manifest, read_manifest
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from launch.inspect import describe_folder
from pipeline.ingest import shard
from pipeline.ingest.commit import ShardCommit
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import forget_quarantined, make_shards
from pipeline.run.commits import publish_commit, read_commit
from testing.text_frames import BUCKET, CREDITS, moving, written


def ingest(source_dir: Path, output_dir: Path, config: ShardConfig, num_workers: int = 2) -> Manifest:
    return make_shards(list_folder(source_dir), output_dir, config, num_workers)


def link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


@pytest.mark.slow
def test_every_test_video_ends_in_exactly_one_place(cluster, clips_dir, tmp_path, capsys):
    """Good, odd and broken files together: nothing hangs, nothing is lost, every reason is a sentence."""
    bucket = Bucket(num_frames=5, height=32, width=32, fps=8)
    manifest = ingest(clips_dir, tmp_path, ShardConfig(buckets=(bucket,), max_clips_per_video=1, videos_per_shard=64))
    sources = [source.name for source in list_folder(clips_dir)]
    sharded = [row.source for row in read_index(tmp_path)]
    filtered = [rejection.source for rejection in read_rejections(tmp_path / "filtered.jsonl")]
    quarantined = [rejection.source for rejection in read_rejections(tmp_path / QUARANTINE_NAME)]
    assert sorted([*sharded, *filtered, *quarantined]) == sources
    assert manifest.ledger is not None
    assert manifest.ledger.sources == len(sources)
    assert read_manifest(tmp_path) == manifest
    rejections = [r for name in ("filtered.jsonl", QUARANTINE_NAME) for r in read_rejections(tmp_path / name)]
    assert all(rejection.detail and rejection.retry for rejection in rejections)
    with capsys.disabled():
        print("\n" + describe_folder(tmp_path))


def test_the_number_of_captions_from_a_table_is_said_before_the_work(clips_dir, tmp_path, monkeypatch, caplog):
    class BegunError(Exception):
        """The work would start now."""

    def begin(*_: object) -> None:
        raise BegunError

    for name in ("a.mp4", "b.mp4"):
        link(tmp_path / "videos" / name, clips_dir / "fixtures" / "bikes.mp4")
    table = tmp_path / "t.csv"
    monkeypatch.setattr(shard, "settle_buckets", begin)
    for rows, told, level in (
        ("a.mp4,x\n", "1 of 2 videos have a caption from the table", logging.INFO),
        ("a.mp4,x\nc.mp4,y\n", "1 of 2 videos .*1 of its rows match no video, such as 'c.mp4'", logging.WARNING),
    ):
        table.write_text(f"file,caption\n{rows}")
        caplog.clear()
        with caplog.at_level(logging.INFO), pytest.raises(BegunError):
            ingest(tmp_path / "videos", tmp_path / "clips", ShardConfig(captions=table))
        (record,) = [record for record in caplog.records if "caption from the table" in record.getMessage()]
        assert re.search(told, record.getMessage())
        assert record.levelno == level


def reads(process: psutil.Process, path: Path) -> bool:
    """Whether a process has a file open; quicker than psutil tells, so that a file that is open briefly is seen."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    try:
        return any(link.readlink() == path for link in descriptors.iterdir())
    except OSError:  # it has ended, or just closed a file
        return False


def is_decoder(process: psutil.Process) -> bool:
    """Whether it is a worker of the isolating pool; one that has ended is none."""
    try:
        return "Runner" in process.name()
    except psutil.NoSuchProcess:
        return False


def signal_readers(path: Path, number: signal.Signals, stopped: threading.Event) -> None:
    """Send a signal to each decoding worker that opens a file, for as long as a test runs."""
    signalled: set[int] = set()
    while not stopped.is_set():
        workers = [child for child in psutil.Process().children(recursive=True) if is_decoder(child)]
        for _ in range(30):
            for worker in workers:
                if worker.pid not in signalled and reads(worker, path):
                    with suppress(psutil.NoSuchProcess):
                        worker.send_signal(number)
                    signalled.add(worker.pid)
            if signalled and number == signal.SIGSTOP:
                return  # past its deadline, the job is not tried again
            stopped.wait(0.002)


@pytest.mark.parametrize(
    ("number", "timeout", "reason", "detail"),
    [
        pytest.param(signal.SIGSTOP, 20, "timed_out", "longer than 20 s", marks=pytest.mark.slow, id="hangs"),
        pytest.param(signal.SIGSEGV, 120, "crashed", "crashed 3 workers", id="crashes"),
    ],
)
def test_a_file_that_hangs_or_crashes_its_decoder_costs_only_itself(
    cluster, clips_dir, tmp_path, number, timeout, reason, detail
):
    """The decoder is stopped, or made to fault, each time it opens the file.

    The deadline leaves the two good files some hundred times what they need, so that a busy machine does not decide.
    """
    long = max(clips_dir.joinpath("robust_androidx").glob("*_180p_av1.mp4"))
    for name in ("a.mp4", "c.mp4"):
        link(tmp_path / "videos" / name, clips_dir / "fixtures" / "bikes.mp4")
    victim = tmp_path / "videos" / "b.mp4"
    victim.write_bytes(long.read_bytes())
    stopped = threading.Event()
    thread = threading.Thread(target=signal_readers, args=(victim, number, stopped))
    thread.start()
    try:
        config = ShardConfig(max_clips_per_video=1, decode_timeout_seconds=timeout)
        manifest = ingest(tmp_path / "videos", tmp_path / "clips", config)
    finally:
        stopped.set()
        thread.join()
    rejection = read_rejections(tmp_path / "clips" / QUARANTINE_NAME)
    assert [(r.source, r.stage, r.reason) for r in rejection] == [("b.mp4", "decode", reason)]
    assert detail in rejection[0].detail
    assert Counter(row.source for row in read_index(tmp_path / "clips")) == {"a.mp4": 1, "c.mp4": 1}
    assert manifest.num_samples == 2
    assert not [p for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_STOPPED]


@pytest.mark.slow
def test_what_is_filtered_does_not_depend_on_who_was_quicker(cluster, tmp_path):
    """Duplicates in other shards than their originals: the first in order stays, on one worker and on two."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        clip = np.clip(render(random_scene(0, number % 4, combinations()), 12, 96).astype(int) + 30, 0, 255)
        (videos / f"{number}.mp4").write_bytes(encode_clip(clip.astype(np.uint8), 8, crf=14 + number))
    (videos / "6.mp4").write_bytes(encode_clip(np.zeros((12, 96, 96, 3), np.uint8), 8))
    (videos / "7.mp4").write_bytes(encode_clip(np.zeros((4, 96, 96, 3), np.uint8), 8))
    config = ShardConfig(
        buckets=(Bucket(num_frames=9, height=32, width=32, fps=8),),
        videos_per_shard=2,
        filters=FilterConfig(black_luma=8, duplicate_bits=6),
    )
    manifests = []
    for num_workers in (1, 2):
        output = tmp_path / f"clips-{num_workers}"
        manifests.append(make_shards(list_folder(videos), output, config, num_workers))
        filtered = {r.source: r.reason for r in read_rejections(output / "filtered.jsonl")}
        assert filtered == {"4.mp4": "duplicate", "5.mp4": "duplicate", "6.mp4": "black", "7.mp4": "too_short"}
        assert sorted(row.source for row in read_index(output)) == [f"{number}.mp4" for number in range(4)]
    assert manifests[0] == manifests[1]
    assert manifests[0].filtered == {"black": 1, "duplicate": 2, "too_short": 1}
    names = [made.name for made in manifests[0].shards]
    assert len(names) > 2
    for lost in (names[::2], names[1::2]):  # made again, each comes out as it was, whatever is there
        for name in lost:
            (output / name).with_suffix(".commit.json").unlink()
        again = make_shards(list_folder(videos), output, config, 2)
        assert again.model_dump() == manifests[0].model_dump()


def test_a_retried_source_takes_its_duplicates_out_of_later_shards(cluster, tmp_path):
    """It was lost at first, so that a later copy was kept in its place."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, scene in enumerate((0, 1, 0, 2)):
        clip = np.clip(render(random_scene(0, scene, combinations()), 12, 96).astype(int) + 30, 0, 255)
        (videos / f"{number}.mp4").write_bytes(encode_clip(clip.astype(np.uint8), 8, crf=14 + number))
    config = ShardConfig(
        buckets=(Bucket(num_frames=9, height=32, width=32, fps=8),),
        videos_per_shard=1,
        filters=FilterConfig(duplicate_bits=6),
    )
    clips_dir = tmp_path / "clips"
    undisturbed = ingest(videos, clips_dir, config, num_workers=1)
    assert sorted(row.source for row in read_index(clips_dir)) == ["0.mp4", "1.mp4", "3.mp4"]
    for path in clips_dir.glob("shard-*.tar"):  # as if its decoder had been killed
        commit = read_commit(ShardCommit, path)
        assert commit is not None
        (report,) = commit.reports
        if report.source == "0.mp4":
            lost = reject("0.mp4", "decode", "crashed", "it crashed 3 workers")
            reports = [report.model_copy(update={"clips": [], "quarantined": lost})]
            publish_commit(path, commit.model_copy(update={"reports": reports, "rows": []}))
    ingest(videos, clips_dir, config, num_workers=1)
    assert sorted(row.source for row in read_index(clips_dir)) == ["1.mp4", "2.mp4", "3.mp4"]
    forget_quarantined(clips_dir)
    assert ingest(videos, clips_dir, config, num_workers=1) == undisturbed


def test_the_ledger_counts_what_is_full_of_text(cluster, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    clips = {
        "clean": moving(),
        "credits": written(moving(), CREDITS, 30),
        "sign": written(moving(), ("exit",), 12),
        "subtitles": written(moving(), ("And so it was, that", "night on the river"), 30, top=150),
    }
    for name, frames in clips.items():
        (videos / f"{name}.mp4").write_bytes(encode_clip(frames, 8))
    config = ShardConfig(buckets=(BUCKET,), filters=FilterConfig(text_fraction=0.1))
    manifest = ingest(videos, tmp_path / "clips", config, num_workers=1)
    assert [row.source for row in read_index(tmp_path / "clips")] == ["clean.mp4", "sign.mp4"]
    filtered = read_rejections(tmp_path / "clips" / "filtered.jsonl")
    assert [(r.source, r.stage, r.reason, r.start_seconds) for r in filtered] == [
        ("credits.mp4", "filter", "text_heavy", 0.0),
        ("subtitles.mp4", "filter", "text_heavy", 0.0),
    ]
    for rejection in filtered:
        share, told = rejection.detail.split("% of its picture is text, ")
        assert 10 < float(share) < 70
        assert told == "more than 10%"
        assert "data.filters.text_fraction higher" in rejection.retry
    assert manifest.filtered == {"text_heavy": 2}
    assert manifest.ledger is not None
    assert manifest.ledger.model_dump() == {"sources": 4, "shards": 2, "filtered": 2, "quarantine": 0}
    assert "2 text_heavy" in describe_folder(tmp_path / "clips")
    off = ingest(videos, tmp_path / "clips", ShardConfig(buckets=(BUCKET,)), num_workers=1)
    assert (off.num_samples, off.filtered) == (4, {})  # the settings are part of what a shard is made from
