"""The page of a samples folder, on which every clip plays: of one folder, or of two side by side.

The page loads the MP4 files that lie beside it, and only those in view: it opens as quickly with 100,000 clips.
"""

import json
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


@dataclass(frozen=True)
class GallerySide:
    """A samples folder, and its clips by what is equal in both folders of a page."""

    folder: Path
    clips: Sequence[GalleryClip]


def write_gallery(samples_dir: Path, clips: Iterable[GalleryClip]) -> int:
    """Write index.html beside the clips; returns their number."""
    shown = [_shown(clip, [quote(clip.file)]) for clip in clips]
    _write(samples_dir / GALLERY_NAME, [_name(samples_dir)], shown)
    return len(shown)


def write_comparison(path: Path, one: GallerySide, other: GallerySide) -> int:
    """Write a page that plays clips of equal prompt, seed, guidance scale and shape side by side; returns their number.

    Args:
        path: of the page. It refers to the clips by relative paths.
    """
    there = {_address(clip): clip for clip in other.clips}
    pairs = [(clip, there[_address(clip)]) for clip in one.clips if _address(clip) in there]
    folders = [quote(os.path.relpath(side.folder.resolve(), path.parent.resolve())) for side in (one, other)]
    shown = [
        _shown(ours, [f"{folder}/{quote(clip.file)}" for folder, clip in zip(folders, (ours, theirs), strict=True)])
        for ours, theirs in pairs
    ]
    _write(path, [_name(one.folder), _name(other.folder)], shown)
    return len(pairs)


def _address(clip: GalleryClip) -> tuple[str, int, float, str]:
    return clip.prompt, clip.seed, clip.guidance_scale, clip.bucket


def _name(folder: Path) -> str:
    """The names of run and folder: pages are shared, and must not show paths of the machine."""
    return "/".join(folder.resolve().parts[-2:])


def _shown(clip: GalleryClip, files: list[str]) -> dict[str, Any]:
    shape = Bucket.of_name(clip.bucket)
    return {
        "files": files,
        "prompt": visible(clip.prompt),
        "seed": clip.seed,
        "scale": clip.guidance_scale,
        "bucket": clip.bucket,
        "height": shape.height,
        "width": shape.width,
        "right": clip.right,
    }


def _write(path: Path, sides: list[str], clips: list[dict[str, Any]]) -> None:
    script = (Path(__file__).parent / "templates" / "gallery.js").read_text(encoding="utf-8")
    data = json.dumps({"clips": clips, "sides": sides}, ensure_ascii=False)
    page = TEMPLATES.get_template("gallery.html").render(
        sides=sides,
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        data=data.replace("<", "\\u003c"),  # a prompt must not end the element
    )
    publish_text(path, page)
