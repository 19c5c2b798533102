"""The caption table of the configuration, read and compared with the sources before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.curation.caption_table import TableMatch, VideoPlace, match_table, read_caption_table
from data.curation.source import Source


@dataclass(frozen=True)
class Captions:
    """The captions of a table, none where there is no table."""

    table: dict[str, str] = field(default_factory=dict)
    """By name of the video, as in the table."""
    match: TableMatch | None = None

    @property
    def shared_names(self) -> frozenset[str]:
        """File names in the table that several videos have, which alone mean none of them."""
        return frozenset() if self.match is None else self.match.shared_names


def read_captions(table: Path | None, sources: Sequence[Source]) -> Captions:
    """The caption table for these sources; none if `table` is None.

    Raises:
        CaptionError: the table cannot be read, a row cannot be used, or no row means one of the sources.
    """
    if table is None:
        return Captions()
    captions = read_caption_table(table)
    places = [VideoPlace(source.root, source.file, source.path, source.caption is not None) for source in sources]
    return Captions(captions, match_table(table, captions, places))
