"""Peak memory of encoding shards, measured in a process of its own."""

import os
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from data.dataset.manifest import ShardRecord
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.encode.config import EncodeConfig
from pipeline.encode.encode import Encoder, ShardInputs, ShardTask


def peaks_mib(folder: Path, runs: list[tuple[ShardRecord, EncodeConfig]]) -> list[float]:
    """Peak resident memory of this process in MiB, libraries included, after each of the shards is encoded."""
    peaks = []
    for shard, config in runs:
        encoder = Encoder(folder / AUTOENCODER_NAME, config, 1)
        encoder.encode(
            ShardTask(folder / shard.name, shard, folder / f"latents-{shard.name}", ShardInputs("the", "memory"))
        )
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        assert found is not None
        peaks.append(int(found[1]) / 1024)
    return peaks


def peaks_of_new_process(folder: Path, runs: list[tuple[ShardRecord, EncodeConfig]]) -> list[float]:
    """`peaks_mib` in a new process whose allocator returns freed blocks to the system at once."""
    at_once = patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**17))
    with at_once, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(peaks_mib, folder, runs).result()
