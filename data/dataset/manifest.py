"""manifest.json, which describes a finished dataset, and the records in it."""

import json
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from data.curation.ledger import LedgerCounts, Reason
from data.curation.listing import ListingCounts
from data.dataset.buckets import Bucket
from data.dataset.clip import Split
from data.dataset.index import INDEX_NAME, IndexRow, shape_of
from data.errors import DatasetError
from data.records import Record

SCHEMA_VERSION = 5
MANIFEST_NAME = "manifest.json"


class ShardRecord(Record):
    """A shard, as listed in the manifest."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


class LatentStats(Record):
    """Mean and standard deviation of each latent channel, measured over the training split."""

    mean: list[float]
    std: list[float]

    @property
    def num_channels(self) -> int:
        """Number of channels of a latent."""
        return len(self.mean)


class TextEncoderRecord(Record):
    """The pretrained text encoder that embedded the captions of a latent dataset."""

    folder: str  # path it was read from
    fingerprint: str  # of its files
    max_tokens: int
    width: int  # of an embedding


class BucketRecord(Record):
    """How many samples have a shape."""

    bucket: Bucket
    num_samples: int
    num_train: int  # of these, in the training split

    @property
    def num_validation(self) -> int:
        """Samples of the shape in the validation split."""
        return self.num_samples - self.num_train


class Manifest(Record):
    """The contents of manifest.json."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_version: int = SCHEMA_VERSION
    kind: str  # "clips" or "latents"
    fingerprint: str  # of the checksums of all shards
    buckets: list[BucketRecord]  # the shape with most samples first
    num_samples: int
    shards: list[ShardRecord]
    ledger: LedgerCounts | None = None  # of a dataset of clips: how many sources ended where
    listing: ListingCounts | None = None  # of clips: what lay beside the sources; None: made by an older version
    filtered: dict[Reason, int] = Field(default={})  # number of clips and whole sources left out by each filter
    latent_stats: LatentStats | None = None
    text_encoder: TextEncoderRecord | None = None  # of latents; None: captions are read by the DiT, as bytes
    num_truncated_captions: int = Field(
        default=0,
        validation_alias=AliasChoices("num_truncated_captions", "num_cut_captions"),
        serialization_alias="num_cut_captions",
    )  # captions with more than the text encoder's max_tokens


def count_buckets(rows: Iterable[IndexRow]) -> list[BucketRecord]:
    """How many samples each shape has, the shape with most samples first."""
    counts: Counter[tuple[str, Split]] = Counter()
    shapes: dict[str, Bucket] = {}
    for row in rows:
        counts[row.bucket, row.split] += 1
        shapes.setdefault(row.bucket, shape_of(row))
    records = [
        BucketRecord(
            bucket=shape,
            num_samples=counts[name, "train"] + counts[name, "validation"],
            num_train=counts[name, "train"],
        )
        for name, shape in shapes.items()
    ]
    return sorted(records, key=lambda record: (-record.num_samples, record.bucket.name))


def content_fingerprint(shards: Iterable[ShardRecord]) -> str:
    """20 hexadecimal digits that depend on the contents of all shards."""
    return sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()[:20]


def read_manifest(dataset_dir: Path) -> Manifest:
    """The manifest of a finished dataset.

    Raises:
        DatasetError: it is missing (the folder was never finished), unreadable, or of a newer schema.
    """
    path = dataset_dir / MANIFEST_NAME
    if not path.is_file():
        raise DatasetError(f"{dataset_dir} holds no {MANIFEST_NAME}: it is not a finished dataset; make it first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("schema_version", 0) if isinstance(content, dict) else 0
        if version != SCHEMA_VERSION:
            way_out = "use a newer reelflow" if version > SCHEMA_VERSION else f"run the stage that makes {dataset_dir}"
            age = "newer" if version > SCHEMA_VERSION else "older"
            raise DatasetError(f"{path}: schema {version} is {age} than this program's {SCHEMA_VERSION}; {way_out}")
        manifest = Manifest.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise DatasetError(f"{path} is damaged ({error}); delete {dataset_dir} and run the stage again") from error
    for shard in manifest.shards:
        if Path(shard.name).name != shard.name:
            raise DatasetError(f"{path}: the shard {shard.name!r} is not in {dataset_dir}; run the stage again")
    return manifest


def dataset_outputs(output_dir: Path, manifest: Manifest) -> list[Path]:
    """The files of a finished dataset."""
    return [output_dir / name for name in (MANIFEST_NAME, INDEX_NAME, *(shard.name for shard in manifest.shards))]
