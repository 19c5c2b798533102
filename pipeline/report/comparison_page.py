"""The page of a comparison of two sets of clips: figures with intervals, and the samples nearest to real clips."""

from dataclasses import dataclass
from pathlib import Path

from data.files.publish import publish_text
from data.records import Frames
from data.video.codec import encode_clip
from pipeline.report.pages import TEMPLATES, video_uri

PAGE_NAME = "index.html"
SHOWN_FPS = 8


@dataclass(frozen=True)
class FigureRow:
    """A line of a table: a figure of both sets and their difference, as text."""

    name: str
    meaning: str
    samples: str
    reference: str
    difference: str
    is_different: bool
    """Whether the interval of the difference leaves out 0."""


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    value: str
    meaning: str


@dataclass(frozen=True)
class NearestPair:
    """A sample beside the clip of the reference that is most like it."""

    sample: Frames
    reference: Frames
    caption: str


@dataclass(frozen=True)
class ComparisonPage:
    """What the page shows."""

    samples: str
    reference: str
    tiles: list[Tile]
    notes: list[str]
    rows: list[FigureRow]
    paired: list[FigureRow]
    copies: str
    pairs: list[NearestPair]


def write_comparison_page(page: ComparisonPage, folder: Path) -> Path:
    """Write index.html, which holds its videos."""
    pairs = [pair_uris(pair) for pair in page.pairs]
    path = folder / PAGE_NAME
    publish_text(path, TEMPLATES.get_template("comparison.html").render(page=page, pairs=pairs))
    return path


def pair_uris(pair: NearestPair) -> dict[str, str]:
    """A pair as templates show it."""
    return {
        "sample": video_uri(encode_clip(pair.sample, SHOWN_FPS)),
        "reference": video_uri(encode_clip(pair.reference, SHOWN_FPS)),
        "caption": pair.caption,
    }
