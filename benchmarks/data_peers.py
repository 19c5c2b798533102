"""The loader beside mosaicml-streaming and litdata: samples per CPU-second on the same payloads.

    pip install mosaicml-streaming==0.13.0 litdata==0.2.76 torch==2.13.0 webdataset==1.0.2 pyarrow pydantic psutil \
        jaxtyping einops matplotlib isal filelock
    python -m benchmarks.data_peers

In an environment of its own: neither can be installed beside `constraints.txt` (`WHY` says which pins they exclude).
Each loader has the payloads in its own format on the local disk, page cache warm, shuffles, and makes batches of eight
with our parser; with workers 0 and 2 (processes of theirs, threads of ours). After an epoch that is not counted they
run in turn for five epochs at a time; CPU time is that of the process and its children. Ours alone compares checksums.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import psutil
import torch
from litdata import StreamingDataLoader, optimize  # pyright: ignore[reportMissingImports]
from litdata import StreamingDataset as LitDataset  # pyright: ignore[reportMissingImports]
from streaming import MDSWriter  # pyright: ignore[reportMissingImports]
from streaming import StreamingDataset as MosaicDataset  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader

from benchmarks.data import BATCH, NUM_SHARDS, SHAPES, SHARD_SAMPLES, prepare, write_dataset
from data.dataset.latents import read_latents
from data.dataset.reader import PayloadReader
from data.files.publish import publish_text
from data.stream.loader import Stream, Subset
from testing.records import SMALL

NUM_SAMPLES, EPOCHS, ROUNDS, WORKERS = NUM_SHARDS * SHARD_SAMPLES, 5, 5, (0, 2)
RESULT = Path(__file__).parent / "results" / "data_peers.json"
WHY = {
    "mosaicml-streaming": "0.13.0 asks for numpy<2.2, xxhash<4 and transformers<5 (so huggingface_hub<1); "
    "python-dateutil<3 through boto3",
    "litdata": "0.2.76 asks for boto3, whose botocore asks for python-dateutil<3",
}
Batches = Iterator[torch.Tensor]


@dataclass(frozen=True)
class Loading:
    """One payload size and number of workers: samples per CPU-second, and the medians of the paired ratios."""

    payload_kib: float
    workers: int
    ours: float
    mosaicml_streaming: float
    litdata: float
    ratio_mosaicml_streaming: float  # ours to theirs
    ratio_litdata: float


def endless(loader: DataLoader) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def ours(subset: Subset, workers: int) -> Batches:
    """Our stream, read by threads."""
    return Stream([subset], {SMALL.name: BATCH}, seed=0, rank=0, world_size=1).batches(0, prepare, readers=workers)


def collate_mosaic(samples: list[dict[str, bytes]]) -> torch.Tensor:
    """A batch of MDS samples."""
    return read_latents([sample["latent"] for sample in samples])


def mosaic(subset: Subset, folder: Path, workers: int) -> Batches:
    """MDS shards of about the size of ours, fully shuffled."""
    reader = PayloadReader(subset.dataset_dir)
    limit = SHARD_SAMPLES * (subset.rows[0].size + 64)
    with MDSWriter(out=str(folder), columns={"latent": "bytes"}, size_limit=limit) as writer:
        for row in subset.rows:
            writer.write({"latent": reader.read(row)})
    reader.close()
    dataset = MosaicDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    kept = workers > 0
    return endless(DataLoader(dataset, BATCH, num_workers=workers, collate_fn=collate_mosaic, persistent_workers=kept))


def read_payload(subset: Subset, number: int) -> bytes:
    """For litdata's own process."""
    return PayloadReader(subset.dataset_dir).read(subset.rows[number])


def litdata(subset: Subset, folder: Path, workers: int) -> Batches:
    """Chunks of as many samples as our shards, shuffled as litdata does: the chunks, and the samples of each."""
    read = partial(read_payload, subset)
    optimize(read, list(range(NUM_SAMPLES)), str(folder), chunk_size=SHARD_SAMPLES, num_workers=1, verbose=False)
    dataset = LitDataset(str(folder), shuffle=True)
    kept = workers > 0
    return endless(
        StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=workers, collate_fn=read_latents, persistent_workers=kept
        )
    )


def cpu_seconds() -> float:
    """CPU time of this process and its children so far."""
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]  # to 10 ms
    return time.process_time() + sum(times.user + times.system for times in children)


def measure(batches: Batches, epochs: int) -> float:
    """Samples per CPU-second."""
    started = cpu_seconds()
    for batch in islice(batches, epochs * NUM_SAMPLES // BATCH):
        assert len(batch) == BATCH
    return epochs * NUM_SAMPLES / (cpu_seconds() - started)


def measure_loading(folder: Path, shape: tuple[int, ...], workers: int) -> Loading:
    """All three in turn."""
    subset = write_dataset(folder / "ours", shape)
    loaders = [
        ours(subset, workers),
        mosaic(subset, folder / "mosaic", workers),
        litdata(subset, folder / "litdata", workers),
    ]
    for loader in loaders:
        measure(loader, 1)
    rounds = [[measure(loader, EPOCHS) for loader in loaders] for _ in range(ROUNDS)]
    mine, mosaics, litdatas = zip(*rounds, strict=True)

    def ratio(theirs: tuple[float, ...]) -> float:
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))

    return Loading(
        payload_kib=subset.rows[0].size / 1024,
        workers=workers,
        ours=statistics.median(mine),
        mosaicml_streaming=statistics.median(mosaics),
        litdata=statistics.median(litdatas),
        ratio_mosaicml_streaming=ratio(mosaics),
        ratio_litdata=ratio(litdatas),
    )


def main() -> None:
    """Measure, print, write down."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    loading = []
    for shape in SHAPES:
        for workers in WORKERS:
            with tempfile.TemporaryDirectory() as scratch:
                row = measure_loading(Path(scratch), shape, workers)
            loading.append(row)
            print(
                f"payload {row.payload_kib:6.1f} KiB, {row.workers} workers: {row.ours:6.0f} samples per CPU-second, "
                f"mosaicml-streaming {row.mosaicml_streaming:6.0f} (ratio {row.ratio_mosaicml_streaming:.2f}), "
                f"litdata {row.litdata:6.0f} (ratio {row.ratio_litdata:.2f})"
            )
    packages = ("mosaicml-streaming", "litdata", "torch", "numpy")
    figures = {
        "loading": [asdict(row) for row in loading],
        "not_beside_constraints_because": WHY,
        "versions": {name: version(name) for name in packages},
    }
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
