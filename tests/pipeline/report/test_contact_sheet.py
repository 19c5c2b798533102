"""Contact sheets: which frames of a clip are shown, and captions that are wrapped to their cell."""

import io

import numpy as np
from PIL import Image, ImageFont

from pipeline.report.contact_sheet import (
    CAPTION_LINES,
    GAP_PIXELS,
    LINE_PIXELS,
    SEAM_PIXELS,
    THUMB_PIXELS,
    SheetClip,
    SheetLayout,
    contact_sheet,
    pick_frames,
    wrap,
)


def grey_clip(num_frames: int) -> np.ndarray:
    """Frame number n is grey of level n."""
    return np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, 8, 8, 3)).copy()


def test_frames_are_evenly_spaced_from_the_first_to_the_last():
    assert pick_frames(grey_clip(17), 9)[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert pick_frames(grey_clip(5), 9)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert pick_frames(grey_clip(1), 9)[:, 0, 0, 0].tolist() == [0]


def test_clips_lie_in_a_grid_with_their_frames_side_by_side():
    layout = SheetLayout(frames_per_clip=4, columns=2)
    clips = [SheetClip(grey_clip(4) + np.uint8(10 * number), f"clip {number}") for number in range(3)]
    with Image.open(io.BytesIO(contact_sheet(clips, layout))) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    pitch_x, pitch_y = layout.cell_width + GAP_PIXELS, THUMB_PIXELS + CAPTION_LINES * LINE_PIXELS + GAP_PIXELS
    assert pixels.shape == (2 * pitch_y + GAP_PIXELS, 2 * pitch_x + GAP_PIXELS, 3)
    for number in range(3):
        y = GAP_PIXELS + number // 2 * pitch_y + THUMB_PIXELS // 2
        for frame in range(4):
            x = GAP_PIXELS + number % 2 * pitch_x + frame * (THUMB_PIXELS + SEAM_PIXELS) + THUMB_PIXELS // 2
            assert pixels[y, x].tolist() == [10 * number + frame] * 3


def test_a_caption_on_the_sheet_is_cut_to_its_cell():
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    for text in ("a", "", "one two three four five six seven eight nine ten", "W" * 300, "one " + "W" * 300):
        lines = wrap(text, font, 100, 2)
        assert len(lines) <= 2
        assert all(font.getlength(line) <= 100 for line in lines)
        assert text.startswith(lines[0] if lines else "")
        assert " ".join(lines) == text or lines[-1].endswith("…")
