"""Pages of sampled clips: of one folder, or of two side by side; and contact sheets."""

from pathlib import Path

import numpy as np

from data.errors import VideoError
from data.files.publish import publish_bytes
from data.video.codec import decode_clip
from launch.overrides import ConfigError
from pipeline.report.contact_sheet import SheetClip, SheetLayout, contact_sheet, evenly
from pipeline.report.figures import GalleryClip
from pipeline.report.gallery import GALLERY_NAME, GallerySide, write_comparison, write_gallery
from pipeline.sample.outputs import SAMPLES_NAME, read_samples

SHEET_CLIPS = 24
NO_FRAMES = np.zeros((0, 1, 1, 3), np.uint8)
SHEET_LAYOUT = SheetLayout(frames_per_clip=5, columns=2)


def show_samples(folder: Path, page: Path | None) -> str:
    """Write the page of one folder of sampled clips; returns a line for the console.

    Args:
        page: None: index.html in the folder.

    Raises:
        ConfigError: the folder holds no sampled clips.
        SamplesError: its manifest is damaged.
    """
    side = _side(folder)
    page = folder / GALLERY_NAME if page is None else page
    return f"wrote {page}: {write_gallery(folder, side.clips, page)} clips"


def show_side_by_side(one: Path, other: Path, page: Path) -> str:
    """Write the page; returns a line for the console.

    Raises:
        ConfigError: a folder holds no sampled clips, or the two have no request in common.
        SamplesError: the manifest of one is damaged.
    """
    sides = [_side(folder) for folder in (one, other)]
    number = write_comparison(page, *sides)
    if number == 0:
        page.unlink()
        raise ConfigError(
            f"{one} and {other} have no clips of equal prompt, seed, guidance scale and shape; sample both with the "
            "same prompts file and settings"
        )
    alone = ", ".join(f"{len(side.clips) - number} of {side.folder}" for side in sides)
    return f"wrote {page}: {number} pairs; left out, without a partner: {alone}"


def write_sheet(folder: Path, sheet: Path, num_clips: int = SHEET_CLIPS) -> str:
    """Write the contact sheet of evenly chosen clips of a folder, a PNG; returns a line for the console.

    Raises:
        ConfigError: the folder holds no sampled clips.
        SamplesError: its manifest is damaged.
    """
    clips = evenly(_side(folder).clips, num_clips)
    if not clips:
        raise ConfigError(f"{folder} lists no clips, so there is nothing for a contact sheet")
    publish_bytes(sheet, contact_sheet([_sheet_clip(folder, clip) for clip in clips], SHEET_LAYOUT))
    return f"wrote {sheet}: {len(clips)} clips"


def _sheet_clip(folder: Path, clip: GalleryClip) -> SheetClip:
    try:
        frames = decode_clip((folder / clip.file).read_bytes())
    except (OSError, VideoError) as error:
        return SheetClip(NO_FRAMES, f"{clip.file}: {error}", is_problem=True)
    return SheetClip(frames, f"{clip.prompt} (seed {clip.seed}, guidance {clip.guidance_scale:g})")


def _side(folder: Path) -> GallerySide:
    if not (folder / SAMPLES_NAME).is_file():
        raise ConfigError(f"{folder} holds no sampled clips ({SAMPLES_NAME}); name a folder such as runs/NAME/samples")
    return GallerySide(folder, [clip.shown() for clip in read_samples(folder)])
