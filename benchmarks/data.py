"""What the loader costs: samples per CPU-second beside plain WebDataset on the same shards, planning, and memory.

    python -m benchmarks.data

Loading: latents of 10 KiB and 512 KiB in shards of 100, fully shuffled, safetensors to a tensor of the batch; all read
in turn, in this process, page cache warm; the figure is the median ratio of CPU time. WebDataset runs twice: with
safetensors' own `load` and torch.stack, and with the parser our side has. Ours compares checksums too, and its batch is
a view of the memory it read; once more it is copied into a contiguous tensor, as theirs is. Planning: what a batch
costs out of indices up to 100 million samples, and what finding one's place in them costs. Memory: what this process
holds after each of twenty epochs.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save
from webdataset.compat import WebDataset

from data.dataset.clip import LATENT_MEMBER
from data.dataset.index import INDEX_NAME, read_index, write_index
from data.dataset.latents import read_latents
from data.dataset.shards import write_shard
from data.files.publish import publish_text
from data.stream.loader import Sample, Stream, Subset
from data.stream.plan import BatchPlan, Part
from testing.records import SMALL, made_up_clip

NUM_SHARDS, SHARD_SAMPLES, BATCH, ROUNDS, EPOCHS = 8, 100, 8, 7, 20
NUM_INDEX_ROWS = 1_000_000
SHAPES = ((8, 5, 8, 8), (16, 16, 16, 32))  # 10 KiB as in the demo, 512 KiB
RESULT = Path(__file__).parent / "results" / "data.json"
PLANNING_IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "planning.png"


@dataclass(frozen=True)
class Loading:
    """One payload size: samples per CPU-second, and the medians of the paired ratios."""

    payload_kib: float
    ours: float
    ours_contiguous: float
    webdataset: float
    webdataset_our_parser: float
    ratio: float  # ours to WebDataset's
    ratio_our_parser: float  # ours to WebDataset's with our parser
    ratio_contiguous: float  # both with our parser and a contiguous batch


@dataclass(frozen=True)
class Planning:
    """One size of index."""

    num_samples: int
    num_shards: int
    build_seconds: float
    resume_seconds: float  # the first batch at a far cursor
    batch_milliseconds: float  # each of the next 100 batches of 256, across blocks
    peak_mib: float


@dataclass(frozen=True)
class IndexCost:
    """The index in memory."""

    num_samples: int
    read_cpu_seconds: float
    bytes_per_sample: float  # of them:
    caption_bytes_per_sample: float
    row_microseconds: float  # CPU time to make one row


def write_dataset(folder: Path, shape: tuple[int, ...]) -> Subset:
    """Shards of random latents."""
    rows = []
    for shard in range(NUM_SHARDS):
        samples = []
        for number in range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES):
            latent = torch.randn(shape, generator=torch.Generator().manual_seed(number))
            samples.append((made_up_clip(number), save({"mean": latent})))
        rows += write_shard(folder / f"shard-{shard:05d}.tar", samples, LATENT_MEMBER)[1]
    write_index(folder, rows)
    return Subset(folder, read_index(folder), SMALL)  # as a training reads it


def prepare(samples: list[Sample]) -> torch.Tensor:
    """Payloads to one batch."""
    return read_latents([sample.payload for sample in samples])


def ours(subset: Subset) -> Iterator[torch.Tensor]:
    """Our stream, read in this thread."""
    return Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1).batches(0, prepare, readers=0)


def ours_contiguous(subset: Subset) -> Iterator[torch.Tensor]:
    """The same, copied once more."""
    stream = Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1)
    return stream.batches(0, lambda samples: prepare(samples).contiguous(), readers=0)


def shuffled_webdataset(subset: Subset) -> Any:  # noqa: ANN401 - WebDataset's pipelines have no types
    """WebDataset as its documentation has it: shards shuffled, samples through a buffer that holds a whole epoch."""
    urls = [str(path) for path in sorted(subset.dataset_dir.glob("*.tar"))]
    return WebDataset(urls, shardshuffle=NUM_SHARDS, seed=0).shuffle(NUM_SHARDS * SHARD_SAMPLES)


def webdataset(subset: Subset) -> Iterator[torch.Tensor]:
    """With the parser of safetensors."""
    parsed = shuffled_webdataset(subset).map(lambda sample: load(sample[LATENT_MEMBER])["mean"])
    return iter(parsed.batched(BATCH, collation_fn=torch.stack))


def webdataset_our_parser(subset: Subset) -> Iterator[torch.Tensor]:
    """With ours, which copies each payload of a batch once."""
    payloads = shuffled_webdataset(subset).map(lambda sample: sample[LATENT_MEMBER])
    return iter(payloads.batched(BATCH, collation_fn=read_latents))


def cpu_seconds(make: Callable[[Subset], Iterator[torch.Tensor]], subset: Subset) -> float:
    """CPU time of one epoch."""
    started = time.process_time()
    for _ in islice(make(subset), NUM_SHARDS * SHARD_SAMPLES // BATCH):
        pass
    return time.process_time() - started


def measure_loading(folder: Path, shape: tuple[int, ...]) -> Loading:
    """All loaders in turn."""
    subset = write_dataset(folder, shape)
    loaders = (ours, ours_contiguous, webdataset, webdataset_our_parser)
    rounds = [[cpu_seconds(loader, subset) for loader in loaders] for _ in range(ROUNDS + 1)][1:]
    mine, copied, theirs, lean = (
        [NUM_SHARDS * SHARD_SAMPLES / seconds for seconds in column] for column in zip(*rounds, strict=True)
    )

    def ratio(one: list[float], other: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(one, other, strict=True))

    return Loading(
        payload_kib=subset.rows[0].size / 1024,
        ours=statistics.median(mine),
        ours_contiguous=statistics.median(copied),
        webdataset=statistics.median(theirs),
        webdataset_our_parser=statistics.median(lean),
        ratio=ratio(mine, theirs),
        ratio_our_parser=ratio(mine, lean),
        ratio_contiguous=ratio(copied, lean),
    )


def measure_planning(num_shards: int) -> Planning:
    """Shards of a thousand, batches of 256; once for the times and once more for the memory."""
    far = 3 * num_shards  # into the first epoch of a large index, the fourth part of a small one

    def build() -> BatchPlan:
        return BatchPlan([Part("a", (1000,) * num_shards)], {"a": 256}, seed=0)

    started = time.perf_counter()
    plan = build()
    built = time.perf_counter()
    plan.addresses(far, range(256))
    resumed = time.perf_counter()
    for step in range(far + 1, far + 101):
        plan.addresses(step, range(256))
    done = time.perf_counter()
    tracemalloc.start()
    plan = build()
    for step in range(far, far + 101):
        plan.addresses(step, range(256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Planning(
        num_samples=1000 * num_shards,
        num_shards=num_shards,
        build_seconds=built - started,
        resume_seconds=resumed - built,
        batch_milliseconds=10 * (done - resumed),
        peak_mib=peak / 2**20,
    )


def draw_planning(rows: list[Planning]) -> None:
    """Growth with the number of samples."""
    figure, (times, memory) = plt.subplots(1, 2, figsize=(8, 3.2))
    samples = [row.num_samples for row in rows]
    times.loglog(samples, [1000 * row.build_seconds for row in rows], marker="o", label="build the plan")
    times.loglog(samples, [1000 * row.resume_seconds for row in rows], marker="s", label="resume: first batch")
    times.loglog(samples, [row.batch_milliseconds for row in rows], marker="^", label="each batch of 256 after it")
    times.set(xlabel="samples", ylabel="milliseconds", ylim=(0.1, 100))
    times.legend()
    memory.loglog(samples, [row.peak_mib for row in rows], marker="o")
    memory.set(xlabel="samples", ylabel="peak memory, MiB", ylim=(0.1, 10))
    for axes in (times, memory):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(PLANNING_IMAGE, dpi=110)


def measure_index(folder: Path) -> IndexCost:
    """An index of a million rows: those of a small dataset, again and again."""
    write_dataset(folder, (1, 1, 1, 1))
    table = pq.read_table(folder / INDEX_NAME)
    table = pa.concat_tables([table] * (NUM_INDEX_ROWS // table.num_rows))
    pq.write_table(table, folder / INDEX_NAME)
    del table
    started = time.process_time()
    read_index(folder)
    seconds = time.process_time() - started
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    index = read_index(folder)
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    started = time.process_time()
    for number in range(0, len(index), 100):
        index[number]
    made = time.process_time() - started
    captions = sum(map(len, index.values("caption")))
    return IndexCost(
        num_samples=len(index),
        read_cpu_seconds=seconds,
        bytes_per_sample=held / len(index),
        caption_bytes_per_sample=captions / len(index),
        row_microseconds=1e6 * made / (len(index) / 100),
    )


def resident_mib_by_epoch(subset: Subset) -> list[float]:
    """Resident memory after each epoch, read by two threads."""
    batches = Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1).batches(0, prepare, readers=2)
    process, sizes = psutil.Process(), []
    for _ in range(EPOCHS):
        for _ in islice(batches, NUM_SHARDS * SHARD_SAMPLES // BATCH):
            pass
        sizes.append(process.memory_info().rss / 2**20)
    batches.close()
    return sizes


def epoch_plan_seconds() -> float:
    """All batches of an epoch of 100,000 samples in 100 shards."""
    started = time.perf_counter()
    plan = BatchPlan([Part("a", (1000,) * 100)], {"a": 32}, seed=0)
    for step in range(100_000 // 32):
        plan.addresses(step, range(32))
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, write down."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        loading = [measure_loading(Path(scratch) / str(number), shape) for number, shape in enumerate(SHAPES)]
        memory = resident_mib_by_epoch(write_dataset(Path(scratch) / "memory", SHAPES[0]))
        index = measure_index(Path(scratch) / "index")
    planning = [measure_planning(num_shards) for num_shards in (100, 1000, 10_000, 100_000)]
    figures = {
        "loading": [asdict(row) for row in loading],
        "planning": [asdict(row) for row in planning],
        "epoch_of_100000_seconds": epoch_plan_seconds(),
        "index": asdict(index),
        "resident_mib_by_epoch": memory,
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "webdataset": version("webdataset"),
        "torch": torch.__version__,
    }
    for row in loading:
        print(
            f"payload {row.payload_kib:6.1f} KiB: {row.ours:6.0f} samples per CPU-second, "
            f"WebDataset {row.webdataset:6.0f}, ratio {row.ratio:.2f} "
            f"(with our parser {row.ratio_our_parser:.2f}, and a contiguous batch {row.ratio_contiguous:.2f})"
        )
    for row in planning:
        print(
            f"{row.num_samples:11,d} samples in {row.num_shards:7,d} shards: built in {row.build_seconds:.3f} s, "
            f"resumed in {row.resume_seconds:.3f} s, a batch of 256 in {row.batch_milliseconds:.2f} ms, "
            f"{row.peak_mib:.1f} MiB"
        )
    print(f"all batches of an epoch of 100,000: {figures['epoch_of_100000_seconds']:.2f} s")
    print(
        f"an index of {index.num_samples:,}: read in {index.read_cpu_seconds:.1f} CPU s, {index.bytes_per_sample:.0f} "
        f"bytes a sample ({index.caption_bytes_per_sample:.0f} its caption), {index.row_microseconds:.1f} us a row"
    )
    draw_planning(planning)
    print(f"resident memory over {EPOCHS} epochs: {memory[0]:.0f} MiB after the first, {memory[-1]:.0f} after the last")
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
