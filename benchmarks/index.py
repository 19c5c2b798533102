"""What an index of ten million rows costs: writing it, mapping it, and resuming a training in the middle of it.

    python -m benchmarks.index [--rows 10000000] [--processes 8] [--making]

The rows are of three buckets, two datasets and both splits, in shards of a thousand; shards are sparse files of zeros
of the sizes that the index asks for. Each process is one rank of a training: it opens the index, finds its subsets,
checks the shards, and reads its part of the first batch in the middle of the second epoch, checksums and captions
included. Counted is the CPU time from the end of the imports to that batch. Memory is what the process has more than
after its imports, while all processes hold a stream (/proc/self/smaps_rollup). The index is also made of a hundredth
and a tenth of the rows, to see whether memory grows with them; with --making, nothing else is measured.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from threading import Event, Thread

from data.dataset.buckets import Bucket
from data.dataset.index import IndexRow, read_index, write_index
from data.dataset.index_places import INDEX_NAME, MAPPED_NAME
from data.files.checksums import crc32
from data.files.publish import publish_text
from data.stream.loader import Sample, Stream, subsets_of

SHARD_ROWS, PAYLOAD_BYTES, BATCH, FURTHER = 1000, 10 << 10, 256, 100
BUCKETS = (
    Bucket(num_frames=17, height=64, width=64, fps=8),
    Bucket(num_frames=17, height=48, width=80, fps=8),
    Bucket(num_frames=1, height=64, width=64, fps=8),
)
WORDS = ("a", "red", "square", "moves", "to", "the", "left", "while", "small", "blue", "circles", "turn", "slowly")
RESULT = Path(__file__).parent / "results" / "index.json"


@dataclass(frozen=True)
class Memory:
    """In MiB."""

    anonymous: float  # what no other process can share
    private: float  # that, and pages of files that no other process has mapped now
    proportional: float  # a page that n processes have mapped counts 1/n
    resident: float  # all pages, shared ones too


@dataclass(frozen=True)
class Resumed:
    """One process, or the largest of each value over all processes."""

    cpu_seconds: float  # to the first batch
    wall_seconds: float
    after_imports: Memory
    at_first_batch: Memory  # more than after the imports
    after_further_batches: Memory  # more than after the imports
    milliseconds_per_batch: float  # CPU time of each of the further ones


@dataclass(frozen=True)
class Made:
    """A step of the making of the index."""

    cpu_seconds: float
    peak_mib: float  # beside mapped files, more than before


def made_up_rows(num_rows: int) -> Iterator[IndexRow]:
    """Rows with captions of about 60 characters."""
    draw, checksum = random.Random(0), crc32(bytes(PAYLOAD_BYTES))
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(997)]
    for number in range(num_rows):
        bucket, place = BUCKETS[number % 16 % 3], number % SHARD_ROWS
        caption = f"{texts[number % 997]} {number}"
        yield IndexRow(
            key=f"{number:020x}",
            shard=f"shard-{number // SHARD_ROWS:05d}.tar",
            offset=512 + place * (PAYLOAD_BYTES + 2048),
            size=PAYLOAD_BYTES,
            crc32=checksum,
            caption_offset=0,
            caption_size=len(caption),
            record_offset=0,
            record_size=0,
            caption=caption,
            dataset=("films", "drawings")[number % 10 == 0],
            bucket=bucket.name,
            split="validation" if number % 100 == 99 else "train",
            source=f"{number // 4}.mp4",
            start_seconds=float(number % 4),
            end_seconds=number % 4 + bucket.num_frames / bucket.fps,
            decoder="decord",
            variant="",
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            fps=bucket.fps,
            source_height=1080,
            source_width=1920,
        )


def memory() -> Memory:
    """Of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    mib = {name: int(size.split()[0]) / 1024 for name, size in (line.split(":") for line in lines)}
    return Memory(mib["Anonymous"], mib["Private_Clean"] + mib["Private_Dirty"], mib["Pss"], mib["Rss"])


def difference(later: Memory, before: Memory) -> Memory:
    """What was added."""
    return Memory(**{name: value - vars(before)[name] for name, value in vars(later).items()})


def captions(samples: list[Sample]) -> list[str]:
    """What is made of a batch here."""
    return [sample.row.caption for sample in samples]


def resume(folder: Path, rank: int, world_size: int) -> None:
    """One rank. It says when it has its first batch, and measures its memory when it is told that all have theirs."""
    before, cpu, wall = memory(), time.process_time(), time.perf_counter()
    subsets = subsets_of(folder, read_index(folder, "train"), {"drawings": 2.0})
    sizes = dict.fromkeys((bucket.name for bucket in BUCKETS), BATCH)
    stream = Stream(subsets, sizes, seed=0, rank=rank, world_size=world_size)
    step = int(1.5 * stream.num_samples / BATCH)
    batches = stream.batches(stream.plan.cursor(step), captions, readers=2)
    assert len(next(batches)) == BATCH // world_size
    spent = (time.process_time() - cpu, time.perf_counter() - wall)
    print("ready", flush=True)
    sys.stdin.readline()
    first, cpu = memory(), time.process_time()
    for _ in islice(batches, FURTHER):
        pass
    each = (time.process_time() - cpu) / FURTHER
    print("ready", flush=True)
    sys.stdin.readline()
    last = memory()
    batches.close()
    result = Resumed(*spent, before, difference(first, before), difference(last, before), 1000 * each)
    print(json.dumps(asdict(result)), flush=True)
    sys.stdin.readline()


def measure_resume(folder: Path, num_processes: int) -> list[Resumed]:
    """All ranks at once, on the cores there are."""
    command = [sys.executable, "-m", "benchmarks.index", "--folder", str(folder), "--processes", str(num_processes)]
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in range(num_processes)
    ]
    for _ in range(2):
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        tell(ranks)
    lines = [json.loads(rank.stdout.readline()) for rank in ranks if rank.stdout is not None]
    tell(ranks)
    for rank in ranks:
        rank.wait()
    named = ("after_imports", "at_first_batch", "after_further_batches")
    return [Resumed(**{**line, **{name: Memory(**line[name]) for name in named}}) for line in lines]


def tell(ranks: list[subprocess.Popen[str]]) -> None:
    """Let all ranks go on."""
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()


class PeakAnonymous(Thread):
    """The most memory that this process had beside mapped files, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = self.now()
        self._done = Event()

    @staticmethod
    def now() -> float:
        """At this moment."""
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

    def run(self) -> None:
        """Look twenty times a second."""
        while not self._done.wait(0.05):
            self.most = max(self.most, self.now())

    def stop(self) -> float:
        """More than at the beginning."""
        self._done.set()
        self.join()
        return max(self.most, self.now()) - self.first


STEPS = {
    "write": lambda folder, num_rows: write_index(folder, made_up_rows(num_rows)),
    "map": lambda folder, _: read_index(folder),
}


def make(step: str, folder: Path, num_rows: int) -> None:
    """One step of making the index; prints what it costs."""
    peak, cpu = PeakAnonymous(), time.process_time()
    peak.start()
    STEPS[step](folder, num_rows)
    print(json.dumps(asdict(Made(time.process_time() - cpu, peak.stop()))))


def measure_making(folder: Path, num_rows: int) -> dict[str, Made]:
    """Each step in a process of its own; the index is mapped a second time."""
    costs = {}
    for step in STEPS:
        if step == "map":
            (folder / MAPPED_NAME).unlink()
        command = [sys.executable, "-m", "benchmarks.index", "--rows", str(num_rows), "--folder", str(folder)]
        done = subprocess.run([*command, "--step", step], check=True, capture_output=True, text=True)
        costs[step] = Made(**json.loads(done.stdout))
    return costs


def write_shards(folder: Path) -> None:
    """Sparse files."""
    for run in read_index(folder).shard_runs():
        with (folder / run.shard).open("wb") as file:
            file.truncate(run.num_bytes)


def largest(results: list[Resumed]) -> dict[str, float | dict[str, float]]:
    """The largest of each value."""
    lines = [asdict(result) for result in results]
    return {
        name: {part: max(line[name][part] for line in lines) for part in value}
        if isinstance(value, dict)
        else max(line[name] for line in lines)
        for name, value in lines[0].items()
    }


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--making", action="store_true", help="only what the making of the index costs")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        make(options.step, options.folder, options.rows)
    elif options.folder is not None:
        resume(options.folder, options.rank, options.processes)
    else:
        figures: dict[str, object] = json.loads(RESULT.read_text(encoding="utf-8")) if options.making else {}
        figures |= {"num_rows": options.rows, "num_processes": options.processes}
        figures |= measure(options.rows, 0 if options.making else options.processes)
        print(json.dumps(figures, indent=1))
        publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


def measure(num_rows: int, num_processes: int) -> dict[str, object]:
    """Everything; without processes, only the making."""
    making: dict[str, object] = {}
    for number in (num_rows // 100, num_rows // 10, num_rows):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            making[str(number)] = {step: asdict(cost) for step, cost in measure_making(folder, number).items()}
            print(number, making[str(number)], flush=True)
            if number < num_rows or not num_processes:
                continue
            write_shards(folder)
            sizes = {name: (folder / name).stat().st_size / num_rows for name in (INDEX_NAME, MAPPED_NAME)}
            alone, together = (largest(measure_resume(folder, count)) for count in (1, num_processes))
            return {
                "making": making,
                "file_bytes_per_row": sizes,
                "resume_of_one": alone,
                "resume_of_all_largest": together,
            }
    return {"making": making}


if __name__ == "__main__":
    main()
