"""What the loader costs: samples per CPU-second beside plain WebDataset on the same shards, planning, and memory.

    python -m benchmarks.data

Loading: latents of 10 KiB and 512 KiB with captions of about 100 bytes, in shards of 100, fully shuffled; a batch is a
tensor of the latents and a list of the captions as text. In each round all read in turn, in this process, page cache
warm, as many epochs as make a time that is long enough to measure; before
that it is checked that an epoch of each has equal bytes for every caption. The figures are the median and the range of
the paired ratios of CPU time. WebDataset runs twice: as its documentation has it, with safetensors' own `load` and
torch.stack; and lean, with the parser our side has and without the members that are not used. Its captions are members
of the tar files; ours are in the index, as in a training. Ours compares checksums too, and its batch is a view of the
memory it read; once more it is copied into a contiguous tensor, as theirs is. Planning: what a batch costs out of
indices up to 100 million samples, and what finding one's place in them costs. Memory: what this process holds after
each of twenty epochs. `benchmarks/index.py` measures the index.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import psutil
import torch
from safetensors.torch import load, save
from webdataset.compat import WebDataset

from data.dataset.clip import CAPTION_MEMBER, LATENT_MEMBER, RECORD_MEMBER
from data.dataset.index import read_index, write_index
from data.dataset.latents import read_latents
from data.dataset.shards import write_shard
from data.files.checksums import crc32
from data.files.publish import publish_text
from data.stream.loader import Sample, Stream, Subset
from data.stream.plan import BatchPlan, Part
from testing.records import SMALL, made_up_clip

NUM_SHARDS, SHARD_SAMPLES, BATCH, ROUNDS, EPOCHS = 8, 100, 8, 7, 20
TIMED_BYTES = 100 << 20  # of payloads, in one measurement: about 0.1 s of ours
CAPTION = "a small red square moves slowly from the left to the right, while a blue circle turns around it"
SHAPES = ((8, 5, 8, 8), (16, 16, 16, 32))  # 10 KiB as in the demo, 512 KiB
RESULT = Path(__file__).parent / "results" / "data.json"
PLANNING_IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "planning.png"


Batches = Iterator[tuple[torch.Tensor, list[str]]]


@dataclass(frozen=True)
class Ratio:
    """Of samples per CPU-second, over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, mine: Sequence[float], theirs: Sequence[float]) -> Self:
        """Ours to theirs, round by round."""
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.least:.2f}, {self.most:.2f}]"


@dataclass(frozen=True)
class Loading:
    """One payload size: samples per CPU-second, and the paired ratios."""

    payload_kib: float
    ours: float
    ours_contiguous: float
    webdataset: float
    webdataset_lean: float
    ratio: Ratio  # ours to WebDataset's
    ratio_lean: Ratio  # ours to the lean one
    ratio_contiguous: Ratio  # ours with a contiguous batch to the lean one


@dataclass(frozen=True)
class Planning:
    """One size of index."""

    num_samples: int
    num_shards: int
    build_seconds: float
    resume_seconds: float  # the first batch at a far cursor
    batch_milliseconds: float  # each of the next 100 batches of 256, across blocks
    peak_mib: float


def write_dataset(folder: Path, shape: tuple[int, ...]) -> Subset:
    """Shards of random latents."""
    rows = []
    for shard in range(NUM_SHARDS):
        samples = []
        for number in range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES):
            latent = torch.randn(shape, generator=torch.Generator().manual_seed(number))
            clip = made_up_clip(number).model_copy(update={"caption": f"{CAPTION} {number}"})
            samples.append((clip, save({"mean": latent})))
        rows += write_shard(folder / f"shard-{shard:05d}.tar", samples, LATENT_MEMBER)[1]
    write_index(folder, rows)
    return Subset(folder, read_index(folder), SMALL)  # as a training reads it


def prepare(samples: list[Sample]) -> tuple[torch.Tensor, list[str]]:
    """Samples to one batch."""
    return read_latents([sample.payload for sample in samples]), [sample.caption for sample in samples]


def prepare_contiguous(samples: list[Sample]) -> tuple[torch.Tensor, list[str]]:
    """The same, copied once more."""
    latents, captions = prepare(samples)
    return latents.contiguous(), captions


def ours(subset: Subset) -> Batches:
    """Our stream, read in this thread."""
    return Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1).batches(0, prepare, readers=0)


def ours_contiguous(subset: Subset) -> Batches:
    """The same, copied once more."""
    stream = Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1)
    return stream.batches(0, prepare_contiguous, readers=0)


def shuffled_webdataset(subset: Subset, **options: Any) -> Any:  # noqa: ANN401 - WebDataset's pipelines have no types
    """WebDataset as its documentation has it: shards shuffled, samples through a buffer that holds a whole epoch."""
    urls = [str(path) for path in sorted(subset.dataset_dir.glob("*.tar"))]
    return WebDataset(urls, shardshuffle=NUM_SHARDS, seed=0, **options).shuffle(NUM_SHARDS * SHARD_SAMPLES)


def parse(sample: dict[str, bytes]) -> tuple[torch.Tensor, str]:
    """With the parser of safetensors."""
    return load(sample[LATENT_MEMBER])["mean"], sample[CAPTION_MEMBER].decode()


def stack(samples: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, list[str]]:
    """A batch of parsed samples."""
    return torch.stack([latent for latent, _ in samples]), [caption for _, caption in samples]


def collate(samples: list[dict[str, bytes]]) -> tuple[torch.Tensor, list[str]]:
    """With our parser, which copies each payload of a batch once."""
    latents = read_latents([sample[LATENT_MEMBER] for sample in samples])
    return latents, [sample[CAPTION_MEMBER].decode() for sample in samples]


def is_used(member: str) -> bool:
    """Whether a batch needs a member of the tar files."""
    return not member.endswith(RECORD_MEMBER)


def webdataset(subset: Subset) -> Batches:
    """As documented."""
    return iter(shuffled_webdataset(subset).map(parse).batched(BATCH, collation_fn=stack))


def webdataset_lean(subset: Subset) -> Batches:
    """With our parser, and without the records, which are not used."""
    return iter(shuffled_webdataset(subset, select_files=is_used).batched(BATCH, collation_fn=collate))


def check_equal(loaders: Sequence[Batches]) -> None:
    """Check that an epoch of each has equal bytes for every caption, and as many samples as there are."""
    epochs = []
    for batches in loaders:
        taken = islice(batches, NUM_SHARDS * SHARD_SAMPLES // BATCH)
        epochs.append(
            {text: crc32(one.numpy().tobytes()) for many, texts in taken for one, text in zip(many, texts, strict=True)}
        )
    assert all(epoch == epochs[0] for epoch in epochs)
    assert len(epochs[0]) == NUM_SHARDS * SHARD_SAMPLES


def cpu_seconds(make: Callable[[Subset], Batches], subset: Subset) -> float:
    """CPU time of one epoch; the mean over as many as have `TIMED_BYTES`."""
    epochs = max(1, round(TIMED_BYTES / (NUM_SHARDS * SHARD_SAMPLES * subset.rows[0].size)))
    started = time.process_time()
    for _ in range(epochs):
        for _ in islice(make(subset), NUM_SHARDS * SHARD_SAMPLES // BATCH):
            pass
    return (time.process_time() - started) / epochs


def measure_loading(folder: Path, shape: tuple[int, ...]) -> Loading:
    """All loaders in turn."""
    subset = write_dataset(folder, shape)
    loaders = (ours, ours_contiguous, webdataset, webdataset_lean)
    check_equal([loader(subset) for loader in loaders])
    rounds = [[cpu_seconds(loader, subset) for loader in loaders] for _ in range(ROUNDS + 1)][1:]
    mine, copied, theirs, lean = (
        [NUM_SHARDS * SHARD_SAMPLES / seconds for seconds in column] for column in zip(*rounds, strict=True)
    )

    return Loading(
        payload_kib=subset.rows[0].size / 1024,
        ours=statistics.median(mine),
        ours_contiguous=statistics.median(copied),
        webdataset=statistics.median(theirs),
        webdataset_lean=statistics.median(lean),
        ratio=Ratio.of(mine, theirs),
        ratio_lean=Ratio.of(mine, lean),
        ratio_contiguous=Ratio.of(copied, lean),
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
    planning = [measure_planning(num_shards) for num_shards in (100, 1000, 10_000, 100_000)]
    figures = {
        "loading": [asdict(row) for row in loading],
        "planning": [asdict(row) for row in planning],
        "epoch_of_100000_seconds": epoch_plan_seconds(),
        "resident_mib_by_epoch": memory,
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "webdataset": version("webdataset"),
        "torch": torch.__version__,
    }
    for row in loading:
        print(
            f"payload {row.payload_kib:6.1f} KiB: {row.ours:6.0f} samples per CPU-second, "
            f"WebDataset {row.webdataset:6.0f}, ratio {row.ratio} "
            f"(lean {row.ratio_lean}, and a contiguous batch {row.ratio_contiguous})"
        )
    for row in planning:
        print(
            f"{row.num_samples:11,d} samples in {row.num_shards:7,d} shards: built in {row.build_seconds:.3f} s, "
            f"resumed in {row.resume_seconds:.3f} s, a batch of 256 in {row.batch_milliseconds:.2f} ms, "
            f"{row.peak_mib:.1f} MiB"
        )
    print(f"all batches of an epoch of 100,000: {figures['epoch_of_100000_seconds']:.2f} s")
    draw_planning(planning)
    print(f"resident memory over {EPOCHS} epochs: {memory[0]:.0f} MiB after the first, {memory[-1]:.0f} after the last")
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
