"""Captions from text files, tables and folders, valid and hostile."""

import json

import pytest

from data.curation.captions import CaptionError, caption_of, match_table, read_caption_table


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


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "file,caption\na.mp4,one\na.mp4,two\n", r"rows 2 and 3: both name 'a.mp4', with different captions"),
        ("t.json", '{"a.mp4": {"caption": "x"}}', r"row 1: caption is \{'caption': 'x'\}; it must be text"),
        ("t.json", '{"a.mp4": ["x", "y"]}', r"row 1: caption is \['x', 'y'\]; it must be text"),
        ("t.json", '{"a.mp4": true}', r"row 1: caption is True; it must be text"),
        ("t.jsonl", '{"file": "a", "caption": "\\ud83d"}', r"row 1: its caption contains .* U\+D83D; correct the row"),
        ("t.jsonl", '{"file": "a\\ud83d", "caption": "x"}', r"row 1: file is .*not valid Unicode"),
    ],
)
def test_a_caption_table_is_refused_by_row(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CaptionError, match=reason):
        read_caption_table(tmp_path / name)


def test_a_file_name_alone_means_one_video(tmp_path):
    table = {"0001.mp4": "a cat", "2.mp4": "two"}
    match = match_table(tmp_path, table, [(tmp_path, name) for name in ("0001.mp4", "dogs/0001.mp4", "dogs/2.mp4")])
    assert (match.num_matched, match.num_videos) == (2, 3)
    assert caption_of(tmp_path, "0001.mp4", table, match.shared_names) == "a cat"
    assert caption_of(tmp_path, "dogs/0001.mp4", table, match.shared_names) == "dogs"
    assert caption_of(tmp_path, "dogs/2.mp4", table, match.shared_names) == "two"
    with pytest.raises(CaptionError, match=r"'0001\.mp4' may mean 2 videos, such as 'dogs/0001\.mp4'; write the path"):
        match_table(tmp_path, table, [(tmp_path, name) for name in ("dogs/0001.mp4", "cats/0001.mp4")])


def test_rows_that_match_nothing_are_named_with_the_nearest_video(tmp_path):
    videos = [(tmp_path, name) for name in ("a.mp4", "caf\u00e9.mp4", "c.mp4")]
    match = match_table(tmp_path, {"a.mp4": "one", "cafe\u0301.mp4": "two", "/old/C": "three"}, videos)
    assert (match.num_matched, match.num_videos) == (1, 3)
    assert match.near == (("cafe\u0301.mp4", "caf\u00e9.mp4"), ("/old/C", "c.mp4"))
    assert str(match).startswith("1 of 3 videos have a caption from the table; 2 of its rows match no video, such as")
    with pytest.raises(CaptionError, match=r"0 of 3 videos .* '/old/a' \(nearest: 'a\.mp4'\)"):
        match_table(tmp_path, {"/old/a": "one"}, videos)


def test_an_absolute_path_of_this_machine_means_its_video(tmp_path):
    assert caption_of(tmp_path, "a.mp4", {str(tmp_path / "a.mp4"): "one"}) == "one"


@pytest.mark.parametrize(("name", "text"), [("a.txt", "one"), ("a.TXT", "one"), ("a.json", '{"Text": "one"}')])
def test_a_byte_order_mark_is_no_part_of_a_sidecar(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert caption_of(tmp_path, "a.mp4", {}) == "one"
