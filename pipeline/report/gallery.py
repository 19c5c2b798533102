"""The page of sampled clips, on which every clip plays: of one folder, or of two side by side.

The page loads the files of the clips by relative paths, and only those in view: it opens as quickly with 100,000 clips.
"""

import json
import math
import os
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from data.dataset.buckets import Bucket
from data.files.publish import published
from pipeline.report.figures import GalleryClip
from pipeline.report.pages import TEMPLATES, visible

GALLERY_NAME = "index.html"
ROWS = "\0"  # where they stand in the template; in no name of a folder
SCORE_DIGITS = 5
OF_THE_CLIP = ("guidance_scale", "bucket")  # settings of a job that each clip has for itself


@dataclass(frozen=True)
class GallerySide:
    """A samples folder, and its clips by what is equal in both folders of a page."""

    folder: Path
    clips: Sequence[GalleryClip]


def write_gallery(samples_dir: Path, clips: Iterable[GalleryClip], path: Path | None = None) -> int:
    """Write a page of the clips of one folder; returns their number.

    Args:
        path: of the page; None: index.html beside the clips.
    """
    path = samples_dir / GALLERY_NAME if path is None else path
    with _page(path, [samples_dir]) as rows:
        for clip in clips:
            rows.add([clip])
    return rows.count


def write_comparison(path: Path, one: GallerySide, other: GallerySide, *, match_settings: bool = True) -> int:
    """Write a page that plays clips of equal prompt and seed side by side; returns their number.

    Args:
        path: of the page.
        match_settings: pair only clips of equal guidance scale and shape.
    """
    there = {_address(clip, match_settings): clip for clip in other.clips}
    with _page(path, [one.folder, other.folder]) as rows:
        for clip in one.clips:
            if (partner := there.get(_address(clip, match_settings))) is not None:
                rows.add([clip, partner])
    return rows.count


def _address(clip: GalleryClip, match_settings: bool) -> tuple[object, ...]:
    return clip.prompt, clip.seed, *((clip.guidance_scale, clip.bucket) if match_settings else ())


@contextmanager
def _page(path: Path, folders: Sequence[Path]) -> "Iterator[_Rows]":
    """A page whose rows are written as they are added, so that memory does not grow with their number."""
    script = (Path(__file__).parent / "templates" / "gallery.js").read_text(encoding="utf-8")
    places = [os.path.relpath(folder.resolve(), path.parent.resolve()) for folder in folders]
    sides = [_name(folder) for folder in folders]
    page = TEMPLATES.get_template("gallery.html").render(
        sides=sides, script=script, script_hash=b64encode(sha256(script.encode()).digest()).decode(), data=ROWS
    )
    before, after = page.split(ROWS)
    with published(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(before + '{"clips": [')
        rows = _Rows(file, ["" if place == "." else f"{quote(place)}/" for place in places])
        yield rows
        settings = f"[{', '.join(rows.settings)}]"
        file.write(
            _inside(f'], "sides": {_json(sides)}, "settings": {settings}, "scores": {_json(list(rows.scores))}}}')
        )
        file.write(after)


class _Rows:
    """What a page holds of its clips: a row for a clip, or for one of each of two folders.

    Args:
        prefixes: of the paths of each folder's files.
    """

    def __init__(self, file: TextIO, prefixes: Sequence[str]) -> None:
        self._file, self._prefixes = file, prefixes
        self.count = 0
        self.settings: dict[str, int] = {}
        """As JSON, with their numbers: many clips share few of them."""
        self.scores: dict[str, int] = {}
        """Names, with their places in the values of each row."""

    def add(self, clips: Sequence[GalleryClip]) -> None:
        """Add a row, with a clip of each folder."""
        first, shape = clips[0], Bucket.of_name(clips[0].bucket)
        row = {
            "files": [prefix + quote(clip.file) for prefix, clip in zip(self._prefixes, clips, strict=True)],
            "prompt": visible(first.prompt),
            "seed": first.seed,
            "scales": [clip.guidance_scale for clip in clips],
            "bucket": first.bucket,
            "height": shape.height,
            "width": shape.width,
            "right": [clip.right for clip in clips],
            "settings": [self._number_of_settings(clip) for clip in clips],
            "provenance": [{name: visible(value) for name, value in clip.provenance.items()} for clip in clips],
            "scores": self._values(_scores_of(clips)),
        }
        self._file.write((", " if self.count else "") + _inside(_json(row)))
        self.count += 1

    def _number_of_settings(self, clip: GalleryClip) -> int:
        settings = {name: value for name, value in clip.settings.items() if name not in OF_THE_CLIP}
        return self.settings.setdefault(_json(settings), len(self.settings))

    def _values(self, scores: dict[str, float]) -> list[float | None]:
        """The scores in the order in which their names were first seen."""
        for name in scores:
            self.scores.setdefault(name, len(self.scores))
        values = (scores.get(name, math.nan) for name in self.scores)
        return [float(f"{value:.{SCORE_DIGITS}g}") if math.isfinite(value) else None for value in values]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _inside(text: str) -> str:
    """JSON as an element of a page may hold it: a prompt must not end the element."""
    return text.replace("<", "\\u003c")


def _scores_of(clips: Sequence[GalleryClip]) -> dict[str, float]:
    """The scores of a row. Of two clips, those of each, and by how much the second's are higher."""
    if len(clips) == 1:
        return dict(clips[0].scores)
    one, other = (clip.scores for clip in clips)
    scores = {f"{name}, left": value for name, value in one.items()}
    scores |= {f"{name}, right": value for name, value in other.items()}
    return scores | {f"{name}, right - left": other[name] - value for name, value in one.items() if name in other}


def _name(folder: Path) -> str:
    """The names of run and folder: pages are shared, and must not show paths of the machine."""
    return "/".join(folder.resolve().parts[-2:])
