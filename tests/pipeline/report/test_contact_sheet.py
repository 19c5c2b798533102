"""Captions of a contact sheet are wrapped to their cell."""

from PIL import ImageFont

from pipeline.report.contact_sheet import wrap


def test_a_caption_on_the_sheet_is_cut_to_its_cell():
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    for text in ("a", "", "one two three four five six seven eight nine ten", "W" * 300, "one " + "W" * 300):
        lines = wrap(text, font, 100, 2)
        assert len(lines) <= 2
        assert all(font.getlength(line) <= 100 for line in lines)
        assert text.startswith(lines[0] if lines else "")
        assert " ".join(lines) == text or lines[-1].endswith("…")
