"""The ledger of a dataset: every source ends in exactly one of shards, filtered and quarantine.

`quarantine.jsonl` has a line for each source that could not be used, `filtered.jsonl` one for each clip, or whole
source, that was left out on purpose. The manifest stores the number of sources in each.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import model_validator

from data.errors import printable
from data.files.jsonl import publish_jsonl, read_jsonl
from data.records import Record

FILTERED_NAME = "filtered.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"

Stage = Literal["read", "caption", "decode", "filter"]
Fault = Literal[
    "bad_caption",
    "crashed",
    "empty_file",
    "encrypted",
    "failed",
    "missing",
    "no_time_stamps",
    "no_video",
    "not_a_file",
    "size_changes",
    "timed_out",
    "undecodable",
    "unreadable",
]
Filter = Literal[
    "too_short",
    "too_small",
    "too_large",
    "hdr",
    "static",
    "black",
    "letter_boxed",
    "text_heavy",
    "too_still",
    "too_fast",
    "blurred",
    "badly_exposed",
    "logo",
    "unaesthetic",
    "caption_mismatch",
    "duplicate",
]
Reason = Fault | Filter
FILTERS: frozenset[Reason] = frozenset(get_args(Filter))
_REPAIR = "repair or replace the file, then run `shard` with --retry"
_SETTING = "set {} and run `shard` again"
RETRY: dict[Reason, str] = {
    "bad_caption": "correct the caption, then run `shard` with --retry",
    "crashed": _REPAIR,
    "empty_file": _REPAIR,
    "encrypted": "decrypt the file, then run `shard` with --retry",
    "failed": "report it as a bug, with the file; once it is fixed, run `shard` with --retry",
    "missing": "put the file back, then run `shard` with --retry",
    "no_time_stamps": "rewrite it with ffmpeg (`ffmpeg -i OLD NEW.mp4`), then run `shard` with --retry",
    "no_video": _REPAIR,
    "not_a_file": "put a regular file there, then run `shard` with --retry",
    "size_changes": "rewrite it with ffmpeg (`ffmpeg -i OLD NEW.mp4`), then run `shard` with --retry",
    "timed_out": "set data.decode_timeout_seconds higher, then run `shard` with --retry",
    "undecodable": _REPAIR,
    "unreadable": "make the file readable, then run `shard` with --retry",
    "too_short": _SETTING.format("a bucket of fewer frames or of a higher rate in data.buckets"),
    "too_small": _SETTING.format("data.filters.too_small_pixels lower"),
    "hdr": _SETTING.format("data.hdr to tone_map"),
    "too_large": _SETTING.format("data.filters.too_large_pixels higher"),
    "static": _SETTING.format("data.filters.static_difference lower"),
    "black": _SETTING.format("data.filters.black_luma lower"),
    "letter_boxed": _SETTING.format("data.filters.letter_boxed_share higher"),
    "text_heavy": _SETTING.format("data.filters.text_fraction higher"),
    "too_still": _SETTING.format("data.filters.min_motion lower"),
    "too_fast": _SETTING.format("data.filters.max_motion higher"),
    "blurred": _SETTING.format("data.filters.min_sharpness lower"),
    "badly_exposed": _SETTING.format("data.filters.max_clipped_share higher"),
    "logo": _SETTING.format("data.filters.max_logo_share higher"),
    "unaesthetic": _SETTING.format("data.models.min_aesthetic lower"),
    "caption_mismatch": _SETTING.format("data.models.min_similarity lower"),
    "duplicate": _SETTING.format("data.filters.duplicate_bits lower"),
}


class LedgerError(RuntimeError):
    """The ledger does not account for every source exactly once: a bug."""


class Rejection(Record):
    """A line of `quarantine.jsonl` or `filtered.jsonl`."""

    source: str
    start_seconds: float | None = None  # of the clip in its source; None: the whole source
    stage: Stage
    reason: Reason
    detail: str  # one sentence about this file
    retry: str  # what to do so that it can be used


def reject(source: str, stage: Stage, reason: Reason, detail: str, start_seconds: float | None = None) -> Rejection:
    """A line of the ledger, with what to do for its reason; the detail is made printable, as names in it may not be."""
    return Rejection(
        source=source,
        start_seconds=start_seconds,
        stage=stage,
        reason=reason,
        detail=printable(detail),
        retry=RETRY[reason],
    )


class LedgerCounts(Record):
    """How many sources there are, and how many ended in each place."""

    sources: int
    shards: int
    filtered: int
    quarantine: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sources != self.shards + self.filtered + self.quarantine:
            raise ValueError("sources must equal shards + filtered + quarantine")
        return self


def balance(
    sources: Collection[str], sharded: Collection[str], filtered: Collection[str], quarantined: Collection[str]
) -> LedgerCounts:
    """The counts, after checking that every source ended in exactly one place.

    Args:
        sources: the name of every source.
        sharded, filtered, quarantined: the names of the sources that ended there.

    Raises:
        LedgerError: a source is missing, unknown, or in two places.
    """
    listed, ended = Counter(sources), Counter([*sharded, *filtered, *quarantined])
    if listed != ended:
        lost, surplus = sorted((listed - ended).elements()), sorted((ended - listed).elements())
        raise LedgerError(
            f"the ledger does not add up: of {len(sources)} sources {len(lost)} are lost (such as {lost[:3]}) "
            f"and {len(surplus)} are unknown or counted twice (such as {surplus[:3]})"
        )
    return LedgerCounts(sources=len(sources), shards=len(sharded), filtered=len(filtered), quarantine=len(quarantined))


def write_rejections(path: Path, rejections: Iterable[Rejection]) -> None:
    """Publish a file of the ledger."""
    publish_jsonl(path, rejections)


def read_rejections(path: Path) -> list[Rejection]:
    """What `write_rejections` wrote; none where there is no such file.

    Raises:
        JsonLineError: a line is not a rejection.
    """
    return read_jsonl(path, Rejection)
