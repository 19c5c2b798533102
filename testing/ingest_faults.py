"""Ingestion that faults strike, compared by checksum with an undisturbed one.

Each fault strikes a run of its own; the command is then repeated until it succeeds, and every file of the dataset is
compared. Nothing is injected into the product: signals are sent when a file of a given name appears. All workers are
stopped with SIGSTOP while the state is checked, so that a fault strikes exactly in the state that it is named after, or
waits for the next shard. `python -m benchmarks.ingest_faults` runs the campaign.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from data.curation.ledger import QUARANTINE_NAME, read_rejections
from data.dataset.manifest import read_manifest
from data.files.checksums import file_sha256
from data.files.publish import TEMPORARY_PREFIX
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from testing.paths import ROOT

NUM_VIDEOS, VIDEOS_PER_SHARD = 32, 8
DATASET_FILES = ("*.tar", "index.parquet", "manifest.json", "quarantine.jsonl", "filtered.jsonl")
CONFIG = """
name: faults
data:
  source: {source}
  buckets: [{{num_frames: 17, height: 64, width: 64, fps: 8}}]
  max_clips_per_video: 2
  videos_per_shard: {videos_per_shard}
cluster: {{object_store_mib: 128}}
"""


class MissedError(RuntimeError):
    """The run ended before the fault could strike."""


@dataclass(frozen=True)
class Outcome:
    """The result of one fault."""

    fault: str
    starts: int  # of the command until it succeeded
    return_codes: list[int]
    identical: bool
    num_files: int
    sources: int
    shards: int
    filtered: int
    quarantine: int


@dataclass
class Ingestion:
    """One run of the command, with its configuration and folders."""

    config: Path
    source_dir: Path
    runs_dir: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def clips_dir(self) -> Path:
        """The folder of the dataset."""
        return self.runs_dir / "faults" / "clips"

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start the command."""
        command = [sys.executable, "-m", "launch", "shard", str(self.config), *options]
        command += ["--set", f"runs_dir={self.runs_dir}"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self.process

    def descendants(self, name: str = "") -> list[psutil.Process]:
        """Descendants of the command whose title begins with `name`."""
        assert self.process is not None
        found = []
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                title = " ".join(process.cmdline()) or process.name()
                if title.startswith(name) or process.name().startswith(name):
                    found.append(process)
        except psutil.NoSuchProcess:
            pass
        return found

    def workers(self) -> list[psutil.Process]:
        """Ray's workers without its agents, which write nothing and outlive a killed raylet by a minute."""
        return [process for process in self.descendants("ray::") if not process.name().endswith("Agent")]

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait until a condition holds; raise MissedError if the command ends before."""
        assert self.process is not None
        while not happened():
            if self.process.poll() is not None:
                raise MissedError
            time.sleep(0.001)

    def committed(self) -> set[str]:
        """Names of the committed shards."""
        return {path.name.split(".")[0] for path in self.clips_dir.glob("*.commit.json")}


def make_sources(folder: Path) -> None:
    """Videos of moving shapes and one text file with the suffix of a video, for the quarantine."""
    folder.mkdir(parents=True)
    for number in range(NUM_VIDEOS - 1):
        frames = render(random_scene(0, number, combinations()), 36, 96)
        (folder / f"{number:03d}.mp4").write_bytes(encode_clip(frames, 8))
    (folder / f"{NUM_VIDEOS - 1:03d}.mp4").write_text("not a video")


def checksums(clips_dir: Path) -> dict[str, str]:
    """The checksum of every file of a dataset."""
    return {path.name: file_sha256(path) for pattern in DATASET_FILES for path in sorted(clips_dir.glob(pattern))}


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to every process that has not ended."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def has_open(process: psutil.Process, prefix: str) -> bool:
    """Whether a process has a file open whose name begins with `prefix`."""
    try:
        return any(Path(file.path).name.startswith(prefix) for file in process.open_files())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def kill_a_writer(run: Ingestion, at_work: Callable[[], bool], guilty: Callable[[psutil.Process], bool]) -> None:
    """Kill the process that is at a given point of writing a shard."""
    while True:
        run.until(at_work)
        workers = run.descendants("ray::")
        signal_all(workers, signal.SIGSTOP)
        victims = [worker for worker in workers if at_work() and guilty(worker)]
        signal_all(victims, signal.SIGKILL)
        signal_all([worker for worker in workers if worker not in victims], signal.SIGCONT)
        if victims:
            return


def worker_before_write(run: Ingestion) -> None:
    """kill -9 of a worker that prepares a source, before anything is written."""
    while True:
        run.until(lambda: bool(run.descendants("ray::Runner.run")))
        victims = [worker for worker in run.descendants("ray::Runner.run") if not run.committed()]
        if victims:
            signal_all(victims[:1], signal.SIGKILL)
            return


def worker_in_mid_tar(run: Ingestion) -> None:
    """kill -9 of a worker while its shard is half written under a temporary name."""
    prefix = f"{TEMPORARY_PREFIX}shard-"

    def half_written() -> bool:
        return any(path.name.endswith(".tar", 0, -9) for path in run.clips_dir.glob(f"{prefix}*.tar-*"))

    kill_a_writer(run, half_written, lambda worker: has_open(worker, prefix))


def worker_before_commit(run: Ingestion) -> None:
    """kill -9 of a worker whose shard is published and whose commit is not."""

    def uncommitted() -> bool:
        return bool({path.stem for path in run.clips_dir.glob("shard-*.tar")} - run.committed())

    kill_a_writer(run, uncommitted, lambda worker: "Runner.call" in " ".join(worker.cmdline()))


def driver(run: Ingestion) -> None:
    """kill -9 of the command itself after its first shard."""
    assert run.process is not None
    run.until(lambda: bool(run.committed()))
    workers = run.workers()
    run.process.kill()
    psutil.wait_procs(workers, timeout=30)


def raylet(run: Ingestion) -> None:
    """kill -9 of the node's raylet while sources are being prepared."""
    assert run.process is not None
    run.until(lambda: bool(run.descendants("ray::Runner.run")))
    workers = run.workers()
    victims = [process for process in run.descendants() if process.name() == "raylet"]
    if not victims:
        raise MissedError
    signal_all(victims, signal.SIGKILL)
    try:
        if run.process.wait(60) == 0:  # it was done already
            raise MissedError
    except subprocess.TimeoutExpired:
        run.process.kill()
    psutil.wait_procs(workers, timeout=30)


def source_deleted(run: Ingestion) -> None:
    """A source is taken away in the middle, and put back once the run has said so."""
    assert run.process is not None
    run.until(lambda: bool(run.descendants("ray::Runner.run")))
    victim = run.source_dir / f"{NUM_VIDEOS - 2:03d}.mp4"
    aside = run.source_dir.parent / victim.name
    victim.rename(aside)
    assert run.process.wait(120) == 0, "the run must go on without the source"
    reasons = {r.source: r.reason for r in read_rejections(run.clips_dir / QUARANTINE_NAME)}
    assert reasons[victim.name] == "missing", reasons
    aside.rename(victim)


FAULTS = (worker_before_write, worker_in_mid_tar, worker_before_commit, driver, raylet, source_deleted)


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs of this size; yields a function that resizes it. Needs root."""
    folder.mkdir()

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], check=True)
    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def finish(run: Ingestion, fault: str, reference: dict[str, str], codes: list[int], *options: str) -> Outcome:
    """Restart until the command succeeds, and compare."""
    while not codes or codes[-1] != 0 or options:
        assert len(codes) < 4, f"{fault}: still failing after {codes}"
        codes.append(run.start(*options).wait(300))
        options = ()
    found = checksums(run.clips_dir)
    ledger = read_manifest(run.clips_dir).ledger
    assert ledger is not None
    leftovers = list(run.clips_dir.rglob(f"{TEMPORARY_PREFIX}*"))
    return Outcome(
        fault=fault,
        starts=len(codes),
        return_codes=codes,
        identical=found == reference and not leftovers,
        num_files=len(found),
        **ledger.model_dump(),
    )


def prepare(folder: Path) -> tuple[Ingestion, dict[str, str]]:
    """Write sources and configuration; return an undisturbed run and its checksums."""
    source_dir, config = folder / "videos", folder / "faults.yaml"
    make_sources(source_dir)
    config.write_text(CONFIG.format(source=source_dir, videos_per_shard=VIDEOS_PER_SHARD), encoding="utf-8")
    run = Ingestion(config, source_dir, folder / "reference")
    assert run.start().wait(300) == 0
    return run, checksums(run.clips_dir)


def strike(fault: Callable[[Ingestion], None], calm: Ingestion, reference: dict[str, str]) -> Outcome:
    """Strike a new run with one fault."""
    for attempt in range(5):
        run = Ingestion(calm.config, calm.source_dir, calm.runs_dir.parent / f"{fault.__name__}-{attempt}")
        process = run.start()
        try:
            fault(run)
        except MissedError:
            continue
        options = ("--retry",) if fault is source_deleted else ()
        return finish(run, fault.__name__, reference, [process.wait(300)], *options)
    raise MissedError(f"{fault.__name__} never struck")


def disk_full(calm: Ingestion, reference: dict[str, str]) -> Outcome:
    """The disk is half as large as the dataset and is enlarged after the error."""
    size = sum(path.stat().st_size for path in calm.clips_dir.glob("*.tar"))
    with small_disk(calm.runs_dir.parent / "small", size // 2) as resize:
        run = Ingestion(calm.config, calm.source_dir, calm.runs_dir.parent / "small" / "runs")
        code = run.start().wait(300)
        assert code == 1, f"a full disk must end the command with an error, not {code}"
        resize(size * 10)
        return finish(run, "disk_full", reference, [code])
