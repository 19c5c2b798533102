"""Captions from text files, tables and folders, valid and hostile."""

import json

import pytest

from data.curation.captions import CaptionError, caption_of, read_caption_table


def test_captions_from_sidecars_tables_and_folders(tmp_path):
    for name in ("hug/a.mp4", "hug/b.mp4", "shake_hands/c.mp4", "d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "hug/a.txt").write_text("two people\n hug", encoding="utf-8")
    (tmp_path / "hug/b.json").write_text(json.dumps({"caption": "a long hug"}), encoding="utf-8")
    assert caption_of(tmp_path, "hug/a.mp4", {}) == "two people hug"
    assert caption_of(tmp_path, "hug/b.mp4", {}) == "a long hug"
    assert caption_of(tmp_path, "shake_hands/c.mp4", {}) == "shake hands"
    assert caption_of(tmp_path, "d.mp4", {}) == tmp_path.name.replace("_", " ").replace("-", " ")
    table = {f"{tmp_path.name}/d.mp4": "from the table", "hug/a.mp4": "also"}
    assert caption_of(tmp_path, "d.mp4", table) == "from the table"
    assert caption_of(tmp_path, "hug/a.mp4", table) == "also"
    (tmp_path / "hug/b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CaptionError, match="no text under the key 'caption'"):
        caption_of(tmp_path, "hug/b.mp4", {})


def test_caption_tables(tmp_path, clips_dir):
    rows = read_caption_table(clips_dir / "MANIFEST.csv")
    assert rows["ut_interaction/hug/set1_10_2_1.avi"] == "two people hugging"
    for name, text in (
        ("t.csv", "file,caption\n./a.mp4,one\n"),
        ("t.jsonl", '{"path": "a.mp4", "text": "one"}\n'),
        ("t.json", '{"a.mp4": "one"}'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_caption_table(tmp_path / name) == {"a.mp4": "one"}
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    with pytest.raises(CaptionError, match="it has x, y"):
        read_caption_table(tmp_path / "bad.csv")
    with pytest.raises(CaptionError, match="no such caption table"):
        read_caption_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a cat\x00 runs", "control character U\\+0000"),
        (b"a \x1b[31mred\x1b[0m cat", "control character U\\+001B"),
        (b"caf\xe9", "cannot be read"),
        (b"a" * 2**20, "has 1048576 bytes, more than 65536"),
        (b"a" * 5000, "has 5000 characters, more than 4096"),
    ],
    ids=["null", "escape", "latin-1", "megabyte", "long"],
)
def test_hostile_captions_are_named(tmp_path, content, reason):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(CaptionError, match=reason):
        caption_of(tmp_path, "a.mp4", {})


def test_line_separators_inside_a_caption_do_not_end_its_row(tmp_path):
    caption = "one\u2028two\u0085three"
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": "a.mp4", "caption": caption}, ensure_ascii=False), "utf-8")
    (tmp_path / "t.csv").write_text(f'file,caption\na.mp4,"{caption}\nfour"\n', "utf-8")
    assert read_caption_table(tmp_path / "t.jsonl") == {"a.mp4": caption}
    assert read_caption_table(tmp_path / "t.csv") == {"a.mp4": f"{caption}\nfour"}
    assert caption_of(tmp_path, "a.mp4", {"a.mp4": caption}) == "one two three"
