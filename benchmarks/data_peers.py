"""The loader beside WebDataset, mosaicml-streaming and litdata: samples per CPU-second on the same samples.

    pip install mosaicml-streaming==0.13.0 litdata==0.2.76 torch==2.13.0 webdataset==1.0.2 pyarrow pydantic psutil \
        jaxtyping einops matplotlib isal filelock
    python -m benchmarks.data_peers

In an environment of its own: neither can be installed beside `constraints.txt` (`WHY` says which pins they exclude).
Each loader has the latents and captions in its own format on the local disk, page cache warm, shuffles, and makes
batches of eight, each a tensor of latents, by our parser, and a list of captions as text; with 0, 1 and 2 workers
(processes of theirs, threads of ours). In an epoch that is not counted it is checked that all have equal bytes for
every caption; then they run in turn for three epochs at a time. CPU time is that of the process and its children. Ours
alone compares checksums. WebDataset is the lean one of `benchmarks/data.py`, and, without workers, also the documented
one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from litdata import StreamingDataLoader, optimize  # pyright: ignore[reportMissingImports]
from litdata import StreamingDataset as LitDataset  # pyright: ignore[reportMissingImports]
from streaming import MDSWriter  # pyright: ignore[reportMissingImports]
from streaming import StreamingDataset as MosaicDataset  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader

from benchmarks.data import (
    BATCH,
    NUM_SHARDS,
    SHAPES,
    SHARD_SAMPLES,
    Batches,
    Ratio,
    check_equal,
    collate,
    is_used,
    prepare,
    shuffled_webdataset,
    webdataset,
    webdataset_lean,
    write_dataset,
)
from data.dataset.latents import read_latents
from data.dataset.reader import PayloadReader
from data.files.publish import publish_text
from data.stream.loader import Stream, Subset
from testing.records import SMALL

NUM_SAMPLES, EPOCHS, ROUNDS, WORKERS = NUM_SHARDS * SHARD_SAMPLES, 3, 5, (0, 1, 2)
RESULT = Path(__file__).parent / "results" / "data_peers.json"
WHY = {
    "mosaicml-streaming": "0.13.0 asks for numpy<2.2, xxhash<4 and transformers<5 (so huggingface_hub<1); "
    "python-dateutil<3 through boto3",
    "litdata": "0.2.76 asks for boto3, whose botocore asks for python-dateutil<3",
}


@dataclass(frozen=True)
class Loading:
    """One payload size and number of workers: samples per CPU-second, and the paired ratios of ours to theirs."""

    payload_kib: float
    workers: int
    samples_per_cpu_second: dict[str, float]
    ratios: dict[str, Ratio]


def endless(loader: Iterable[Any]) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def ours(subset: Subset, workers: int) -> Batches:
    """Our stream, read by threads."""
    return Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1).batches(0, prepare, readers=workers)


def collate_dicts(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, list[str]]:
    """A batch of samples of the peers."""
    return read_latents([sample["latent"] for sample in samples]), [sample["caption"] for sample in samples]


def webdataset_of_workers(subset: Subset, workers: int) -> Batches:
    """The lean WebDataset; its shards are split over the workers."""
    if workers == 0:
        return endless(RepeatedLoader(webdataset_lean, subset))
    lean = shuffled_webdataset(subset, select_files=is_used).batched(BATCH, collation_fn=collate)
    return endless(DataLoader(lean, batch_size=None, num_workers=workers, persistent_workers=True))


@dataclass(frozen=True)
class RepeatedLoader:
    """A loader that is made anew for each epoch."""

    make: Callable[[Subset], Batches]
    subset: Subset

    def __iter__(self) -> Batches:
        return self.make(self.subset)


def mosaic(subset: Subset, folder: Path, workers: int) -> Batches:
    """MDS shards of about the size of ours, fully shuffled."""
    reader = PayloadReader(subset.dataset_dir)
    limit = SHARD_SAMPLES * (subset.rows[0].size + 192)
    with MDSWriter(out=str(folder), columns={"latent": "bytes", "caption": "str"}, size_limit=limit) as writer:
        for row in subset.rows:
            writer.write({"latent": reader.read(row), "caption": row.caption})
    reader.close()
    dataset = MosaicDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    kept = workers > 0
    return endless(DataLoader(dataset, BATCH, num_workers=workers, collate_fn=collate_dicts, persistent_workers=kept))


def read_sample(subset: Subset, number: int) -> dict[str, Any]:
    """For litdata's own process."""
    row = subset.rows[number]
    return {"latent": PayloadReader(subset.dataset_dir).read(row), "caption": row.caption}


def litdata(subset: Subset, folder: Path, workers: int) -> Batches:
    """Chunks of as many samples as our shards, shuffled as litdata does: the chunks, and the samples of each."""
    read = partial(read_sample, subset)
    optimize(read, list(range(NUM_SAMPLES)), str(folder), chunk_size=SHARD_SAMPLES, num_workers=1, verbose=False)
    dataset = LitDataset(str(folder), shuffle=True)
    kept = workers > 0
    return endless(
        StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate_dicts, persistent_workers=kept
        )
    )


def cpu_seconds() -> float:
    """CPU time of this process and its children so far."""
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]  # to 10 ms
    return time.process_time() + sum(times.user + times.system for times in children)


def measure(batches: Batches, epochs: int) -> float:
    """Samples per CPU-second."""
    started = cpu_seconds()
    for latents, captions in islice(batches, epochs * NUM_SAMPLES // BATCH):
        assert len(latents) == len(captions) == BATCH
    return epochs * NUM_SAMPLES / (cpu_seconds() - started)


def measure_loading(folder: Path, shape: tuple[int, ...], workers: int) -> Loading:
    """All of them in turn."""
    subset = write_dataset(folder / "ours", shape)
    loaders = {
        "reelflow": ours(subset, workers),
        "webdataset_lean": webdataset_of_workers(subset, workers),
        "mosaicml_streaming": mosaic(subset, folder / "mosaic", workers),
        "litdata": litdata(subset, folder / "litdata", workers),
    }
    if workers == 0:
        loaders["webdataset"] = endless(RepeatedLoader(webdataset, subset))
    check_equal(list(loaders.values()))
    rounds = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            rounds[name].append(measure(loader, EPOCHS))
    mine = rounds["reelflow"]
    return Loading(
        payload_kib=subset.rows[0].size / 1024,
        workers=workers,
        samples_per_cpu_second={name: statistics.median(values) for name, values in rounds.items()},
        ratios={name: Ratio.of(mine, theirs) for name, theirs in rounds.items() if theirs is not mine},
    )


def main() -> None:
    """Measure, print, write down."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    loading = []
    for workers in WORKERS:
        for shape in SHAPES:
            with tempfile.TemporaryDirectory() as scratch:
                row = measure_loading(Path(scratch), shape, workers)
            loading.append(row)
            ratios = ", ".join(f"{name} {ratio}" for name, ratio in row.ratios.items())
            speed = row.samples_per_cpu_second["reelflow"]
            print(
                f"payload {row.payload_kib:6.1f} KiB, {workers} workers: {speed:6.0f} a CPU-second; {ratios}",
                flush=True,
            )
    packages = ("webdataset", "mosaicml-streaming", "litdata", "torch", "numpy")
    figures = {
        "loading": [asdict(row) for row in loading],
        "not_beside_constraints_because": WHY,
        "versions": {name: version(name) for name in packages},
    }
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
