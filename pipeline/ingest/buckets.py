"""The shapes of clips, given or chosen once from the sources."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from data.curation.source import Source, SourceError, listing_fingerprint
from data.dataset.buckets import Bucket, BucketChoice, SourceShape, choose_buckets
from data.files.publish import publish_text
from data.records import Record
from pipeline.distributed.isolated_pool import Done, IsolatedPool
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import measure
from pipeline.run.progress import bar
from pipeline.run.shared_files import SHARED, RunFiles

BUCKETS_NAME = "buckets.json"


class ChosenBuckets(Record):
    """The contents of buckets.json, published before the first shard: later starts use the same shapes."""

    model_config = ConfigDict(serialize_by_alias=True)

    input_fingerprint: str = Field(
        validation_alias=AliasChoices("input_fingerprint", "made_from"), serialization_alias="made_from"
    )  # of the sources
    choice: BucketChoice
    buckets: tuple[Bucket, ...]


def settle_buckets(
    sources: Sequence[Source], output_dir: Path, config: ShardConfig, num_workers: int, files: RunFiles = SHARED
) -> tuple[Bucket, ...]:
    """The given buckets, or those that suit the sources, which are measured once.

    Raises:
        SourceError: none of the sources can be measured.
    """
    if config.choose_buckets is None:
        return config.buckets
    crops_bars = config.letter_box == "crop"
    inputs = listing_fingerprint(sources) + (" without bars" if crops_bars else "")
    known = read_choice(output_dir, config.choose_buckets)
    if known is not None and known.input_fingerprint == inputs:
        return known.buckets
    shapes: dict[str, SourceShape] = {}
    measuring = partial(measure, config.filters.too_large_pixels, crops_bars, files)
    with (
        IsolatedPool(measuring, sources, num_workers, config.decode_timeout_seconds) as pool,
        bar("measure", len(sources), "videos") as progress,
    ):
        for number, result in enumerate(pool.outcomes(), 1):
            if isinstance(result, Done) and result.report is not None:
                shapes[result.job.name] = result.report
            progress.update(number)
    if not shapes:
        raise SourceError(
            f"none of the {len(sources)} videos can be measured to choose buckets from, the first is "
            f"{sources[0].name}; check data.source, or set data.buckets to see what is wrong with each"
        )
    chosen = choose_buckets([shapes[source.name] for source in sources if source.name in shapes], config.choose_buckets)
    record = ChosenBuckets(input_fingerprint=inputs, choice=config.choose_buckets, buckets=chosen)
    publish_text(output_dir / BUCKETS_NAME, record.model_dump_json(indent=1))
    return chosen


def read_choice(output_dir: Path, choice: BucketChoice) -> ChosenBuckets | None:
    """The buckets chosen earlier by the same rule; None if there are none."""
    try:
        known = ChosenBuckets.model_validate_json((output_dir / BUCKETS_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
    return known if known.choice == choice else None
