"""Contact sheets: a few frames of each of many clips above their captions, in one PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.records import Frames
from pipeline.report.pages import visible

SHEET_NAME = "contact_sheet.png"
INK, FADED, ALARM = "#1a202c", "#e2e8f0", "#c53030"
THUMB_PIXELS, LINE_PIXELS, GAP_PIXELS, SEAM_PIXELS = 120, 17, 12, 2
CAPTION_LINES = 2
MAX_SHEET_CHARACTERS = 400  # of a caption: more do not fit, however narrow

Item = TypeVar("Item")


@dataclass(frozen=True)
class SheetClip:
    """One clip of a contact sheet."""

    frames: Frames  # all frames of the clip, or those to choose from; none where it cannot be decoded
    caption: str
    is_problem: bool = False  # the caption says why the clip cannot be shown


@dataclass(frozen=True)
class SheetLayout:
    """How a contact sheet is divided."""

    frames_per_clip: int = 3
    columns: int = 3

    @property
    def cell_width(self) -> int:
        """Pixels of the frames of one clip."""
        return self.frames_per_clip * (THUMB_PIXELS + SEAM_PIXELS) - SEAM_PIXELS


def contact_sheet(clips: Sequence[SheetClip], layout: SheetLayout) -> bytes:
    """Evenly spaced frames of each clip, from its first to its last, above its caption; clips in a grid; a PNG."""
    columns = min(layout.columns, len(clips))
    pitch_x = layout.cell_width + GAP_PIXELS
    pitch_y = THUMB_PIXELS + CAPTION_LINES * LINE_PIXELS + GAP_PIXELS
    num_rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * pitch_x + GAP_PIXELS, num_rows * pitch_y + GAP_PIXELS), "white")
    for number, clip in enumerate(clips):
        row, column = divmod(number, columns)
        sheet.paste(_cell(clip, layout), (GAP_PIXELS + column * pitch_x, GAP_PIXELS + row * pitch_y))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` evenly spaced items, with the first and the last."""
    return [items[number] for number in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def pick_frames(frames: Frames, count: int) -> Frames:
    """At most `count` evenly spaced frames, with the first and the last."""
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int)]


def _cell(clip: SheetClip, layout: SheetLayout) -> Image.Image:
    """The picture of one clip, as a separate image, so that its caption cannot reach into the next cell."""
    cell = Image.new("RGB", (layout.cell_width, THUMB_PIXELS + CAPTION_LINES * LINE_PIXELS), "white")
    draw = ImageDraw.Draw(cell)
    box = (THUMB_PIXELS, THUMB_PIXELS)
    if len(clip.frames):
        thumbs = [
            ImageOps.pad(Image.fromarray(frame), box, color=FADED)
            for frame in pick_frames(clip.frames, layout.frames_per_clip)
        ]
    else:
        thumbs = [Image.new("RGB", box, FADED)] * layout.frames_per_clip
    for place, thumb in enumerate(thumbs):
        cell.paste(thumb, (place * (THUMB_PIXELS + SEAM_PIXELS), 0))
    # matplotlib brings a font that knows more scripts than Pillow's own.
    font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
    text = visible(clip.caption)[:MAX_SHEET_CHARACTERS]
    for place, line in enumerate(wrap(text, font, layout.cell_width, CAPTION_LINES)):
        height = THUMB_PIXELS + 2 + place * LINE_PIXELS
        draw.text((0, height), line, fill=ALARM if clip.is_problem else INK, font=font)
    return cell


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, num_lines: int) -> list[str]:
    """Break a text into at most `num_lines` lines of `width` pixels; an ellipsis ends it where it is longer."""
    lines = []
    while text and len(lines) < num_lines:
        fits = next((end for end in range(1, len(text) + 1) if font.getlength(text[:end]) > width), len(text) + 1) - 1
        if fits == len(text):
            return [*lines, text]
        fits = max(fits, 1)
        if len(lines) + 1 == num_lines:
            while fits > 1 and font.getlength(text[:fits] + "…") > width:
                fits -= 1
            return [*lines, text[:fits].rstrip() + "…"]
        space = text.rfind(" ", 0, fits + 1)
        end = space if space > 0 else fits
        lines.append(text[:end])
        text = text[end:].lstrip()
    return lines
