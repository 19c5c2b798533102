"""What a dataset holds, for those who do not read its captions."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset.index import INDEX_NAME

PIXEL_COLUMNS = ("key", "size", "crc32", "bucket", "dataset", "split")
"""What decides which pixels are read, in which shape and for what: not the captions, nor where a payload lies."""


def pixels_of_shards(dataset_dir: Path) -> dict[str, str]:
    """A fingerprint of the payloads of each shard and their order, 64 hexadecimal digits, by the name of the shard.

    Payloads are compared by the sizes and CRC-32 checksums in the index.

    Raises:
        OSError: there is no index.
    """
    digests: dict[str, list] = {}
    with pq.ParquetFile(dataset_dir / INDEX_NAME) as file:
        for batch in file.iter_batches(columns=["shard", *PIXEL_COLUMNS]):
            shards = np.asarray(batch.column(0).to_pylist(), dtype=object)
            starts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist()] if len(shards) else []
            for start, end in zip(starts, [*starts[1:], len(shards)], strict=False):
                of_columns = digests.setdefault(shards[start], [sha256() for _ in PIXEL_COLUMNS])
                for number, digest in enumerate(of_columns, 1):
                    digest.update(_bytes(batch.column(number).slice(start, end - start)))
    return {
        shard: sha256("".join(digest.hexdigest() for digest in of_columns).encode()).hexdigest()
        for shard, of_columns in digests.items()
    }


def pixels_fingerprint(dataset_dir: Path) -> str:
    """16 hexadecimal digits that depend on the payloads of a dataset, on their order and their shards.

    Raises:
        OSError: there is no index.
    """
    lines = "".join(f"{shard} {pixels}\n" for shard, pixels in pixels_of_shards(dataset_dir).items())
    return sha256(lines.encode()).hexdigest()[:16]


def _bytes(values: pa.Array) -> bytes:
    """The values of a column, however they are divided into batches; no text in these columns has a line feed."""
    if pa.types.is_integer(values.type):
        return values.to_numpy().astype("<i8").tobytes()
    return "".join(f"{text}\n" for text in values.to_pylist()).encode()
