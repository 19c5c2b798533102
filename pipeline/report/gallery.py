"""The page of sampled clips, on which every clip plays: of one folder, or of two side by side.

The page loads the files of the clips by relative paths, and only those in view: it opens as quickly with 100,000 clips.
"""

import json
import math
import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data.dataset.buckets import Bucket
from data.files.publish import publish_text
from pipeline.report.figures import GalleryClip
from pipeline.report.pages import TEMPLATES, visible

GALLERY_NAME = "index.html"
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
    rows = _Rows(path, [samples_dir])
    for clip in clips:
        rows.add([clip])
    rows.write()
    return len(rows.clips)


def write_comparison(path: Path, one: GallerySide, other: GallerySide, *, match_settings: bool = True) -> int:
    """Write a page that plays clips of equal prompt and seed side by side; returns their number.

    Args:
        path: of the page.
        match_settings: pair only clips of equal guidance scale and shape.
    """
    there = {_address(clip, match_settings): clip for clip in other.clips}
    rows = _Rows(path, [one.folder, other.folder])
    for clip in one.clips:
        if (partner := there.get(_address(clip, match_settings))) is not None:
            rows.add([clip, partner])
    rows.write()
    return len(rows.clips)


def _address(clip: GalleryClip, match_settings: bool) -> tuple[object, ...]:
    return clip.prompt, clip.seed, *((clip.guidance_scale, clip.bucket) if match_settings else ())


class _Rows:
    """What a page holds of its clips: a row for a clip, or for one of each of two folders."""

    def __init__(self, path: Path, folders: Sequence[Path]) -> None:
        self._path = path
        self._sides = [_name(folder) for folder in folders]
        places = [os.path.relpath(folder.resolve(), path.parent.resolve()) for folder in folders]
        self._prefixes = ["" if place == "." else f"{quote(place)}/" for place in places]
        self._settings: dict[str, int] = {}  # as JSON -> its number: many clips share few of them
        self._scores: dict[str, int] = {}
        self.clips: list[dict[str, Any]] = []

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
        self.clips.append(row)

    def _number_of_settings(self, clip: GalleryClip) -> int:
        settings = {name: value for name, value in clip.settings.items() if name not in OF_THE_CLIP}
        return self._settings.setdefault(json.dumps(settings, ensure_ascii=False), len(self._settings))

    def _values(self, scores: dict[str, float]) -> list[float | None]:
        """The scores in the order in which their names were first seen."""
        for name in scores:
            self._scores.setdefault(name, len(self._scores))
        values = (scores.get(name, math.nan) for name in self._scores)
        return [float(f"{value:.{SCORE_DIGITS}g}") if math.isfinite(value) else None for value in values]

    def write(self) -> None:
        """Write the page."""
        script = (Path(__file__).parent / "templates" / "gallery.js").read_text(encoding="utf-8")
        settings = [json.loads(text) for text in self._settings]
        data = {"clips": self.clips, "sides": self._sides, "settings": settings, "scores": list(self._scores)}
        page = TEMPLATES.get_template("gallery.html").render(
            sides=self._sides,
            script=script,
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
            # a prompt must not end the element
            data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        )
        publish_text(self._path, page)


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
