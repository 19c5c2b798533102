"""Many tiny files, half of them rejected, made into shards while the processes of the run are sampled.

The processes of the run are this one and Ray's workers: every descendant of this process whose title begins with
`ray::`, without Ray's agents. Ray's own daemons (gcs_server, raylet, log monitor, agents) are counted apart. Memory is
the proportional set size. `python -m benchmarks.ingest_storm` runs it at full size.
"""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import psutil

from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.dataset.manifest import LedgerCounts
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from launch.cluster import connected
from launch.config import ClusterConfig
from pipeline.ingest.commit import ShardCommit
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards
from pipeline.run.commits import SHARD_PATTERN, commit_path, read_commit

NUM_WORKERS, NUM_SCENES = 2, 64
SAMPLE_SECONDS = 0.25
THOUSAND = 1_000
BUCKET = Bucket(num_frames=5, height=32, width=32, fps=8)
CONFIG = ShardConfig(buckets=(BUCKET,), max_clips_per_video=1, videos_per_shard=16)


@dataclass(frozen=True)
class Sample:
    """The processes of the run at one moment."""

    seconds: float  # since the start
    processes: int  # this one and Ray's workers
    daemons: int
    cpu_seconds: float  # so far, of all processes, Ray's daemons included, without the taking of samples
    driver_mib: float
    workers_mib: float  # all together


@dataclass(frozen=True)
class Storm:
    """One folder of files, made into shards."""

    files: int
    rejected: int
    workers: int
    videos_per_shard: int
    ledger: LedgerCounts
    seconds: float
    cpu_seconds: dict[str, float]  # of the driver, the workers and Ray's daemons
    most_processes: int
    most_daemons: int
    files_per_second: list[float]  # of each thousand
    cpu_milliseconds_per_file: list[float]  # of each thousand; a busy machine changes it less
    driver_mib: list[float]  # in each tenth of the run, the median
    workers_mib: list[float]


@dataclass
class Sampler:
    """Samples the processes of the run in a thread."""

    started: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    overhead_seconds: float = 0.0  # CPU time of this thread
    cpu: dict[psutil.Process, tuple[str, float, float]] = field(default_factory=dict)  # role, first and last seconds

    def take(self) -> None:
        """Take one sample."""
        began, this = time.thread_time(), psutil.Process()
        count, mib = Counter[str](), dict.fromkeys(("driver", "workers"), 0.0)
        for process in (this, *this.children(recursive=True)):
            try:
                role = "driver" if process == this else "workers" if is_worker(process) else "daemons"
                times = process.cpu_times()
                if role != "daemons":
                    mib[role] += process.memory_full_info().pss / 2**20
            except psutil.NoSuchProcess:
                continue
            used = times.user + times.system
            began_before = process in self.cpu or not self.samples
            first = self.cpu[process][1] if process in self.cpu else used if began_before else 0.0
            self.cpu[process] = role, first, used
            count[role] += 1
        self.overhead_seconds += time.thread_time() - began
        seconds, processes = time.monotonic() - self.started, count["driver"] + count["workers"]
        total = sum(self.cpu_seconds().values())
        self.samples.append(Sample(seconds, processes, count["daemons"], total, mib["driver"], mib["workers"]))

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time since the first sample, also of processes that have ended, but for their last moment."""
        used = {"driver": -self.overhead_seconds}
        for role, first, last in self.cpu.values():
            used[role] = used.get(role, 0.0) + last - first
        return {role: round(seconds, 2) for role, seconds in used.items()}


def is_worker(process: psutil.Process) -> bool:
    """Whether a descendant is one of Ray's workers, idle or not."""
    title = " ".join(process.cmdline())
    return title.startswith("ray::") and "Agent" not in title


@contextmanager
def sampled() -> Iterator[Sampler]:
    """Sample while the block runs."""
    sampler, ended = Sampler(), threading.Event()

    def run() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            sampler.take()
        sampler.take()

    sampler.take()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sampler
    finally:
        ended.set()
        thread.join()


def make_files(folder: Path, num_good: int, num_rejected: int) -> None:
    """The files, good and rejected by turns as long as there are both, 500 in a folder."""
    clips = [encode_clip(render(random_scene(0, number, combinations()), 8, 64), 8) for number in range(NUM_SCENES)]
    short = encode_clip(render(random_scene(0, 0, combinations()), 2, 64), 8)
    rejected = (b"this is a text\n" * 100, b"", clips[0][: len(clips[0]) // 2], short)
    good = [clips[number % NUM_SCENES] for number in range(num_good)]
    bad = [rejected[number % len(rejected)] for number in range(num_rejected)]
    contents = [content for pair in zip_longest(good, bad) for content in pair if content is not None]
    for number, content in enumerate(contents):
        path = folder / f"{number // 500:03d}" / f"{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def tenths(values: list[float]) -> list[float]:
    """The median of each tenth."""
    size = max(1, len(values) // 10)
    return [round(statistics.median(values[at : at + size]), 1) for at in range(0, size * (len(values) // size), size)]


def _commits(clips: Path, start: float) -> Iterator[tuple[float, int]]:
    """When each shard was committed, in seconds since the start, and of how many files it is."""
    for path in clips.glob(SHARD_PATTERN):
        commit = read_commit(ShardCommit, path)
        assert commit is not None
        yield commit_path(path).stat().st_mtime - start, len(commit.reports)


def storm(folder: Path, num_good: int, num_rejected: int, config: ShardConfig = CONFIG) -> Storm:
    """Make the files, then shards of them."""
    videos, clips = folder / "videos", folder / "clips"
    make_files(videos, num_good, num_rejected)
    with connected(ClusterConfig(object_store_mib=128)):
        started, wall = time.monotonic(), time.time()
        with sampled() as sampler:
            manifest = make_shards(list_folder(videos), clips, config, NUM_WORKERS)
        seconds = time.monotonic() - started
    assert manifest.ledger is not None
    moments, finished = zip(*sorted(_commits(clips, wall)), strict=True)
    so_far = np.cumsum(finished)
    marks = np.interp(range(0, so_far[-1] + 1, THOUSAND), [0, *so_far], [0.0, *moments]).tolist()
    times, cpu = [sample.seconds for sample in sampler.samples], [sample.cpu_seconds for sample in sampler.samples]
    used = np.interp(marks, times, cpu)
    return Storm(
        files=num_good + num_rejected,
        rejected=num_rejected,
        workers=NUM_WORKERS,
        videos_per_shard=config.videos_per_shard,
        ledger=manifest.ledger,
        seconds=round(seconds, 1),
        cpu_seconds=sampler.cpu_seconds(),
        most_processes=max(sample.processes for sample in sampler.samples),
        most_daemons=max(sample.daemons for sample in sampler.samples),
        files_per_second=[round(THOUSAND / (after - at), 1) for at, after in zip(marks, marks[1:], strict=False)],
        cpu_milliseconds_per_file=[round(seconds / THOUSAND * 1e3, 2) for seconds in np.diff(used)],
        driver_mib=tenths([sample.driver_mib for sample in sampler.samples]),
        workers_mib=tenths([sample.workers_mib for sample in sampler.samples]),
    )
