"""What a machine fetches of a dataset that lies in a store: whole shards, or the parts that its rank reads.

    python -m benchmarks.shard_parts

512 samples of 256 KiB in 16 shards (134 MB) lie in a store of S3's protocol here. One of 8 machines, or of 2,
reads its part of some epochs, with four reader threads. Both ways are measured in turns, and the medians are written.
"""

import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from data.dataset.clip import VIDEO_MEMBER
from data.dataset.parts import begin_parts
from data.dataset.shards import write_shard
from data.files.publish import publish_text
from data.stream.loader import Stream, Subset
from pipeline.run.objects import OBJECTS_NAME, Objects, described
from pipeline.run.run_files import StoredFile
from pipeline.run.whole_run import TRANSFERS, receive
from testing.processes import free_port
from testing.records import SMALL, made_up_clip

NUM_SHARDS, PER_SHARD, PAYLOAD_BYTES, ROUNDS = 16, 32, 256 << 10, 3
PLACE = "s3://benchmark/runs/demo"
RESULT = Path(__file__).parent / "results" / "shard_parts.json"


@dataclass(frozen=True)
class Case:
    """How much a machine reads."""

    num_machines: int
    num_epochs: int


@dataclass(frozen=True)
class Figures:
    """Of one way."""

    share_on_disk: float
    """What the machine then has of the bytes of all shards."""
    seconds_to_first_batch: float
    seconds: float


def fetch_whole(folder: Path, stored: dict[str, StoredFile]) -> None:
    """As a machine does before the first step."""
    objects = Objects(PLACE)
    with ThreadPoolExecutor(TRANSFERS) as executor:
        list(executor.map(lambda name: receive(objects, folder / name, name, stored[name]), stored))


def begin(folder: Path, stored: dict[str, StoredFile]) -> None:
    """As a machine does where shards come in parts."""
    for name, file in stored.items():
        begin_parts(folder / name, f"{PLACE}/{OBJECTS_NAME}/{file.sha256}", file.num_bytes)


def measure(
    bring: Callable[[Path, dict[str, StoredFile]], None], whole: Subset, stored: dict[str, StoredFile], case: Case
) -> Figures:
    """What the first of the machines fetches, and how long it takes to read its part."""
    folder = Path(tempfile.mkdtemp(prefix="reelflow-"))
    try:
        begun = time.monotonic()
        bring(folder, stored)
        subset = replace(whole, dataset_dir=folder)
        batch = 4 * case.num_machines
        stream = Stream([subset], {SMALL.name: batch}, seed=0, rank=0, world_size=case.num_machines)
        batches = stream.batches(0, len, readers=4)
        next(batches)
        first = time.monotonic() - begun
        for _ in range(case.num_epochs * len(whole.rows) // batch - 1):
            next(batches)
        seconds = time.monotonic() - begun
        batches.close()
        num_bytes = sum(512 * path.stat().st_blocks for path in folder.iterdir())
        return Figures(num_bytes / sum(file.num_bytes for file in stored.values()), first, seconds)
    finally:
        shutil.rmtree(folder)


def median(figures: list[Figures]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(asdict(each)[name] for each in figures) for name in asdict(figures[0])}


def main() -> None:
    """Measure, print and write."""
    port = free_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket="benchmark")
    ways = {"whole": fetch_whole, "parts": begin}
    with tempfile.TemporaryDirectory(prefix="reelflow-") as name:
        rows, stored = [], {}
        for shard in range(NUM_SHARDS):
            path, numbers = Path(name) / f"shard-{shard:05d}.tar", range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
            rows += write_shard(path, ((made_up_clip(n), os.urandom(PAYLOAD_BYTES)) for n in numbers), VIDEO_MEMBER)[1]
            stored[path.name] = described(path)
            Objects(PLACE).put(path, stored[path.name])
        whole, results = Subset(Path(name), rows, SMALL), []
        for case in (Case(8, 1), Case(8, 4), Case(2, 1), Case(2, 4)):
            found: dict[str, list[Figures]] = {way: [] for way in ways}
            for _, way in product(range(ROUNDS), ways):
                found[way].append(measure(ways[way], whole, stored, case))
            results.append(asdict(case) | {way: median(each) for way, each in found.items()})
            sys.stdout.write(f"{results[-1]}\n")
            publish_text(RESULT, json.dumps({"cases": results}, indent=1) + "\n")
    server.stop()


if __name__ == "__main__":
    main()
