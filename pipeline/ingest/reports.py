"""What became of a source, and what that was made from: records that the commit of its shard stores."""

from dataclasses import dataclass
from typing import Self

from pydantic import Field

from data.curation.ledger import Rejection
from data.records import Record
from pipeline.ingest.thresholds import MeasuredSpan
from pipeline.run.fingerprints import canonical_json


class PreparedClip(Record):
    """A clip that has been made and is not yet in a shard."""

    key: str
    start_seconds: float
    # Hexadecimal, or by `lookalikes.describe`; None if the clip is augmented, or was made by an older version.
    perceptual_hash: str | None = None


class Origin(Record):
    """What a report was made from; it stands while the present source, settings and file are the same."""

    cut: str  # fingerprint of the source's name and span, and of the settings that decide its clips
    basis: str | None = None  # the same without the values of thresholds; only of some older versions
    spans: str | None = None  # the same without filters by measures, and what they store; None: of an older version
    stored: str | None = None  # names of the measures in the records of its clips; None: of an older version
    stamp: str  # size and modification time of the file when it was listed
    content: str | None = None  # SHA-256 of the file; None: not known


class SourceReport(Record):
    """What became of a source."""

    source: str
    origin: Origin | None = None  # None: made by an older version
    clips: list[PreparedClip] = Field(default_factory=list)  # for the shard
    filtered: list[Rejection] = Field(default_factory=list)  # clips, or the whole source, that were left out on purpose
    quarantined: Rejection | None = None
    measured: list[MeasuredSpan] = Field(default_factory=list)  # of every span of which something was, kept or left out


@dataclass(frozen=True)
class StoredReport:
    """A report as text, which nothing on its way from the worker that made it to the commit of its shard has to read.

    Making it of a record, and a record of it, costs a tenth of what the probe of a small file does.
    """

    source: str
    has_clips: bool
    inputs: str  # canonical JSON of what it was made from: its part of the fingerprint of the shard
    content: str  # JSON of a `SourceReport`

    @classmethod
    def of(cls, report: SourceReport) -> Self:
        """The text of a report."""
        inputs = canonical_json(report.model_dump(mode="json", include={"source", "origin"}))
        return cls(report.source, bool(report.clips), inputs, report.model_dump_json())

    def read(self) -> SourceReport:
        """The report."""
        return SourceReport.model_validate_json(self.content)
