"""What memory the encode stage takes by the length of a clip, in chunks and as a whole.

python -m benchmarks.long_clips

Each figure is the peak of a process of its own, the libraries included, with the default autoencoder.
"""

import os
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from data.dataset.manifest import ShardRecord
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.encode.config import EncodeConfig
from pipeline.encode.encode import Encoder, ShardTask


def peaks_mib(folder: Path, runs: list[tuple[ShardRecord, EncodeConfig]]) -> list[float]:
    """The most memory this process has had, after each of some shards is encoded."""
    peaks = []
    for shard, config in runs:
        encoder = Encoder(folder / AUTOENCODER_NAME, config, 1)
        encoder.encode(ShardTask(folder / shard.name, shard, folder / f"latents-{shard.name}", "memory"))
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        assert found is not None
        peaks.append(int(found[1]) / 1024)
    return peaks


def peaks_of_new_process(folder: Path, runs: list[tuple[ShardRecord, EncodeConfig]]) -> list[float]:
    """`peaks_mib` where nothing has run before, and where what is freed goes back to the system at once."""
    at_once = patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**17))
    with at_once, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(peaks_mib, folder, runs).result()
