"""A page that shows two folders of sampled clips side by side."""

from pathlib import Path

from launch.overrides import ConfigError
from pipeline.report.gallery import GallerySide, write_comparison
from pipeline.sample.outputs import SAMPLES_NAME, read_samples


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


def _side(folder: Path) -> GallerySide:
    if not (folder / SAMPLES_NAME).is_file():
        raise ConfigError(f"{folder} holds no sampled clips ({SAMPLES_NAME}); name a folder such as runs/NAME/samples")
    return GallerySide(folder, [clip.shown() for clip in read_samples(folder)])
