"""Contact sheets: pictures of many clips in one."""

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.dataset.index import IndexRow
from data.records import Frames
from pipeline.report.pages import visible

LINE_PIXELS, GAP_PIXELS, SEAM_PIXELS = 17, 12, 2


INK, FADED, ALARM = "#1a202c", "#e2e8f0", "#c53030"


THUMB_PIXELS, SHEET_COLUMNS, CAPTION_LINES = 120, 3, 2
MAX_SHEET_CHARACTERS = 400  # of a caption: more do not fit, however narrow


@dataclass(frozen=True)
class ShownClip:
    """One clip of the page and of the contact sheet."""

    row: IndexRow
    video: str  # an address that holds the MP4; empty where it cannot be read
    thumbs: Frames  # its first, middle and last frame; none where it cannot be read
    problem: str  # why it cannot be read; empty where it can


def contact_sheet(clips: list[ShownClip]) -> bytes:
    """First, middle and last frame of each clip above its caption, in a grid; a PNG."""
    columns = min(SHEET_COLUMNS, len(clips))
    cell_width, cell_height = 3 * THUMB_PIXELS + 2 * SEAM_PIXELS, THUMB_PIXELS + CAPTION_LINES * LINE_PIXELS
    num_rows = -(-len(clips) // columns)
    pitch_x, pitch_y = cell_width + GAP_PIXELS, cell_height + GAP_PIXELS
    sheet = Image.new("RGB", (columns * pitch_x + GAP_PIXELS, num_rows * pitch_y + GAP_PIXELS), "white")
    for number, clip in enumerate(clips):
        line, column = divmod(number, columns)
        left, top = GAP_PIXELS + column * pitch_x, GAP_PIXELS + line * pitch_y
        sheet.paste(_cell(clip, cell_width, cell_height), (left, top))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cell(clip: ShownClip, width: int, height: int) -> Image.Image:
    """A picture of its own, so that no caption can reach into the next one."""
    cell = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(cell)
    box = (THUMB_PIXELS, THUMB_PIXELS)
    for place in range(3):
        thumb = Image.new("RGB", box, FADED)
        if len(clip.thumbs):
            thumb = ImageOps.pad(Image.fromarray(clip.thumbs[place]), box, color=FADED)
        cell.paste(thumb, (place * (THUMB_PIXELS + SEAM_PIXELS), 0))
    # matplotlib brings a font that knows more scripts than Pillow's own.
    font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
    text = visible(clip.problem or clip.row.caption)[:MAX_SHEET_CHARACTERS]
    for place, line in enumerate(wrap(text, font, width, CAPTION_LINES)):
        draw.text((0, THUMB_PIXELS + 2 + place * LINE_PIXELS), line, fill=ALARM if clip.problem else INK, font=font)
    return cell


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, num_lines: int) -> list[str]:
    """The text in at most `num_lines` lines of `width` pixels, cut with an ellipsis where it is longer."""
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
