"""The page of a samples folder, on which every clip plays."""

from collections.abc import Sequence
from pathlib import Path

from data.files.publish import publish_text
from pipeline.report.figures import GalleryClip
from pipeline.report.pages import TEMPLATES

GALLERY_NAME = "index.html"


def write_gallery(samples_dir: Path, clips: Sequence[GalleryClip]) -> None:
    """Write index.html, which plays every clip above its prompt."""
    publish_text(samples_dir / GALLERY_NAME, TEMPLATES.get_template("gallery.html").render(clips=clips))
