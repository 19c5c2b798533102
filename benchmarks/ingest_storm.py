"""Many tiny files: how many processes run, what memory they take, and what a file costs, from the first to the last.

    python -m benchmarks.ingest_storm                    20,000 files, JSON to benchmarks/results/ingest_storm.json
    python -m benchmarks.ingest_storm --files 2000       fewer, to look at; nothing is written

Every second file is rejected: a text with the suffix of a video, an empty file, a video that is cut short, one that is
too short. The others are videos of moving shapes. A shard has few sources, so that there are many commits.

The processes of the run are this one and Ray's workers: every descendant of this process whose title begins with
`ray::`, without Ray's agents. Ray's own daemons (gcs_server, raylet, log monitor, agents) are counted apart. Memory is
the proportional set size of the processes of the run. Both are sampled. The rate of each thousand files comes from the
modification times of the commits. CPU time is that of all processes, Ray's daemons included; what a file costs is the
difference between a large and a small folder of one kind, so that the start of the workers is not in it.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from data.curation.sources import list_folder
from data.dataset.buckets import Bucket
from data.dataset.manifest import LedgerCounts
from data.files.publish import publish_text
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from launch.cluster import connected
from launch.config import ClusterConfig
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from pipeline.ingest.shard import make_shards
from pipeline.run.commits import COMMIT_SUFFIX

NUM_FILES, VIDEOS_PER_SHARD, NUM_WORKERS, NUM_SCENES = 20_000, 16, 2, 64
SMALL, LARGE = 1_000, 3_000  # files in the folders that the cost of a file is measured with
SAMPLE_SECONDS = 1.0
THOUSAND = 1_000
BUCKET = Bucket(num_frames=5, height=32, width=32, fps=8)
CONFIG = ShardConfig(buckets=(BUCKET,), max_clips_per_video=1, videos_per_shard=VIDEOS_PER_SHARD)
RESULT = Path(__file__).parent / "results" / "ingest_storm.json"


@dataclass(frozen=True)
class Sample:
    """The processes of the run at one moment."""

    seconds: float  # since the start
    processes: int  # this one and Ray's workers
    daemons: int
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
    cpu_seconds: dict[str, float]  # by the name of the process
    most_processes: int
    most_daemons: int
    files_per_second: list[float]  # of each thousand
    driver_mib: list[float]  # in each tenth of the run, the median
    workers_mib: list[float]


@dataclass
class Sampler:
    """Samples the processes of the run in a thread."""

    started: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    def take(self) -> None:
        """Take one sample."""
        this = psutil.Process()
        workers, daemons, total = 0, 0, 0.0
        for process in this.children(recursive=True):
            try:
                if is_worker(process):
                    workers, total = workers + 1, total + process.memory_full_info().pss / 2**20
                else:
                    daemons += 1
            except psutil.NoSuchProcess:
                continue
        driver = this.memory_full_info().pss / 2**20
        self.samples.append(Sample(time.monotonic() - self.started, workers + 1, daemons, driver, total))


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

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sampler
    finally:
        ended.set()
        thread.join()


def cpu_seconds() -> dict[str, float]:
    """CPU time so far of this process and of its descendants, by name."""
    used: dict[str, float] = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times, name = process.cpu_times(), process.name()
        except psutil.NoSuchProcess:
            continue
        used[name] = used.get(name, 0.0) + times.user + times.system
    return used


def write_rejected(folder: Path, whole: bytes, short: bytes) -> Callable[[Path, int], None]:
    """Writes the rejected file of a number: one of four kinds."""
    contents = (b"this is a text\n" * 100, b"", whole[: len(whole) // 2], short)
    return lambda path, number: (folder / path).write_bytes(contents[number % len(contents)]) and None


def make_files(folder: Path, num_good: int, num_rejected: int) -> None:
    """The files, good and rejected by turns, 500 in a folder."""
    clips = [encode_clip(render(random_scene(0, number, combinations()), 8, 64), 8) for number in range(NUM_SCENES)]
    reject = write_rejected(folder, clips[0], encode_clip(render(random_scene(0, 0, combinations()), 2, 64), 8))
    for number in range(num_good + num_rejected):
        path = Path(f"{number // 500:03d}") / f"{number:06d}.mp4"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        is_good = number % 2 == 0 if num_good == num_rejected else number < num_good
        if is_good:
            (folder / path).write_bytes(clips[number % NUM_SCENES])
        else:
            reject(path, number // 2 if num_good == num_rejected else number)


def tenths(values: list[float]) -> list[float]:
    """The median of each tenth."""
    size = max(1, len(values) // 10)
    return [round(statistics.median(values[at : at + size]), 1) for at in range(0, size * (len(values) // size), size)]


def storm(folder: Path, num_good: int, num_rejected: int, config: ShardConfig = CONFIG) -> Storm:
    """Make the files, then shards of them."""
    videos, clips = folder / "videos", folder / "clips"
    make_files(videos, num_good, num_rejected)
    with connected(ClusterConfig(object_store_mib=128)):
        before, started, wall = cpu_seconds(), time.monotonic(), time.time()
        with sampled() as sampler:
            manifest = make_shards(list_folder(videos), clips, config, NUM_WORKERS)
        seconds = time.monotonic() - started
        used = {name: round(value - before.get(name, 0.0), 2) for name, value in cpu_seconds().items()}
    assert manifest.ledger is not None
    done = sorted(path.stat().st_mtime - wall for path in clips.glob(f"*{COMMIT_SUFFIX}"))
    every = THOUSAND / config.videos_per_shard
    marks = [0.0, *(done[round(number * every) - 1] for number in range(1, int(len(done) / every) + 1))]
    return Storm(
        files=num_good + num_rejected,
        rejected=num_rejected,
        workers=NUM_WORKERS,
        videos_per_shard=config.videos_per_shard,
        ledger=manifest.ledger,
        seconds=round(seconds, 1),
        cpu_seconds={name: value for name, value in used.items() if value >= 0.05},
        most_processes=max(sample.processes for sample in sampler.samples),
        most_daemons=max(sample.daemons for sample in sampler.samples),
        files_per_second=[round(THOUSAND / (after - at), 1) for at, after in zip(marks, marks[1:], strict=False)],
        driver_mib=tenths([sample.driver_mib for sample in sampler.samples]),
        workers_mib=tenths([sample.workers_mib for sample in sampler.samples]),
    )


def probe_milliseconds(folder: Path, num_files: int = 400) -> float:
    """CPU time of `prepare_source` alone for one rejected file, in this process; the mean of the four kinds."""
    make_files(folder, 0, num_files)
    sources = list_folder(folder)
    config = PrepareConfig((BUCKET,), {}, CONFIG)
    prepare_source(config, sources[0])
    started = time.process_time()
    for source in sources:
        prepare_source(config, source)
    return (time.process_time() - started) / num_files * 1e3


def milliseconds_per_file(folder: Path, config: ShardConfig, *, is_good: bool) -> float:
    """CPU time of all processes for one more file of a kind."""
    used = []
    for number in (SMALL, LARGE):
        good, rejected = (number, 0) if is_good else (1, number)
        used.append(sum(storm(folder / str(number), good, rejected, config).cpu_seconds.values()))
    return (used[1] - used[0]) / (LARGE - SMALL) * 1e3


def main() -> None:
    """The storm, then what a file costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--costs-only", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingest-storm-") as name:
        folder = Path(name)
        result: dict[str, object] = {}
        if not options.costs_only:
            whole = storm(folder / "storm", options.files // 2, options.files // 2)
            result["storm"] = asdict(whole) | {"ledger": whole.ledger.model_dump()}
            print(json.dumps(result["storm"], indent=1), flush=True)
        default = CONFIG.model_copy(update={"videos_per_shard": ShardConfig().videos_per_shard})
        costs = {
            "probe_of_a_rejected_file": probe_milliseconds(folder / "probe"),
            "rejected_file": milliseconds_per_file(folder / "rejected", default, is_good=False),
            "rejected_file_at_16_a_shard": milliseconds_per_file(folder / "rejected-16", CONFIG, is_good=False),
            "good_file": milliseconds_per_file(folder / "good", default, is_good=True),
        }
        result["cpu_milliseconds"] = {key: round(value, 3) for key, value in costs.items()}
        print(json.dumps(result["cpu_milliseconds"], indent=1), flush=True)
    if options.files == NUM_FILES and not options.costs_only:
        publish_text(RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
