"""A page of a samples folder on which every clip plays."""

from pathlib import Path

from data.files.publish import publish_text
from pipeline.report.pages import TEMPLATES
from pipeline.sample.outputs import SampledClip


def write_gallery(samples_dir: Path, clips: list[SampledClip]) -> None:
    """index.html: every clip of a samples folder, playing beside its prompt."""
    publish_text(samples_dir / "index.html", TEMPLATES.get_template("gallery.html").render(clips=clips))
