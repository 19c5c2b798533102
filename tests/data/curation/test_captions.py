"""Captions from text files, tables and folders, valid and hostile."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from data.curation.caption_table import VideoPlace, match_table, read_caption_table
from data.curation.caption_text import CaptionError
from data.curation.captions import caption_of
from data.curation.source import Source
from data.curation.sources import list_sources, of_dataset


def places(folder: Path, *files: str) -> list[VideoPlace]:
    return [VideoPlace(folder, file, str(folder / file)) for file in files]


def places_of(sources: Iterable[Source]) -> list[VideoPlace]:
    return [VideoPlace(source.root, source.file, source.path, source.caption is not None) for source in sources]


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
    with pytest.raises(CaptionError, match=r"data\.captions: .*none\.csv: there is no such table"):
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
        ("t.json", '{"a.mp4": 12}', r"row 1: caption is 12; it must be text"),
        ("t.jsonl", '{"file": "a", "caption": "x"}\n{"file": "b"}', r"t\.jsonl, row 2: it has no caption; add it"),
        ("t.jsonl", '{"file": "a"}\n' + "[" * 10**5, r"t\.jsonl: .*line 2: it is nested too deeply"),
        ("t.jsonl", '{"file": "a", "caption": "\\ud83d"}', r"row 1: its caption contains .* U\+D83D; correct the row"),
        ("t.csv", "file,caption\nb.mp4,x\na.mp4\n", r"t\.csv, row 3: it has no caption; add it, or remove the row"),
        ("t.csv", "file,caption\na.mp4\n", r"t\.csv, row 2: it has no caption; add it, or remove the row"),
        (
            "t.csv",
            'file,caption\na.mp4, "a circle"\n',
            r"row 2: the field ' \"a circle\"' has a space before its quote",
        ),
        ("t.csv", "x\x1b[31m,y\n1,2\n", r"it has 'x\\x1b\[31m', y$"),
        ("t.jsonl", '{"file": "a\\ud83d", "caption": "x"}', r"row 1: file is .*not valid Unicode"),
    ],
)
def test_a_caption_table_is_refused_by_row(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CaptionError, match=reason):
        read_caption_table(tmp_path / name)


def test_a_file_name_alone_means_one_video(tmp_path):
    table = {"0001.mp4": "a cat", "2.mp4": "two"}
    match = match_table(tmp_path, table, places(tmp_path, "0001.mp4", "dogs/0001.mp4", "dogs/2.mp4"))
    assert (match.num_matched, match.num_videos) == (2, 3)
    assert caption_of(tmp_path, "0001.mp4", table, match.shared_names) == "a cat"
    assert caption_of(tmp_path, "dogs/0001.mp4", table, match.shared_names) == "dogs"
    assert caption_of(tmp_path, "dogs/2.mp4", table, match.shared_names) == "two"
    with pytest.raises(CaptionError, match=r"'0001\.mp4' may mean 2 videos, such as 'dogs/0001\.mp4'; write the path"):
        match_table(tmp_path, table, places(tmp_path, "dogs/0001.mp4", "cats/0001.mp4"))


def test_rows_that_match_nothing_are_named_with_the_nearest_video(tmp_path):
    videos = places(tmp_path, "a.mp4", "caf\u00e9.mp4", "c.mp4")
    match = match_table(tmp_path, {"a.mp4": "one", "cafe\u0301.mp4": "two", "/old/C": "three"}, videos)
    assert (match.num_matched, match.num_videos) == (1, 3)
    assert match.near == (("cafe\u0301.mp4", "caf\u00e9.mp4"), ("/old/C", "c.mp4"))
    assert str(match).startswith("1 of 3 videos have a caption from the table; 2 of its rows match no video, such as")
    with pytest.raises(CaptionError, match=r"0 of 3 videos .* '/old/a' \(nearest: 'a\.mp4'\)"):
        match_table(tmp_path, {"/old/a": "one"}, videos)


@pytest.mark.parametrize(
    ("video", "row"),
    [
        ("a.mp4", "/mnt/old/clips/a.mp4"),
        ("a.mp4", " a.mp4 "),
        ("cafe\u0301.mp4", "caf\u00e9.mp4"),
        ("caf\u00e9.mp4", "cafe\u0301.mp4"),
    ],
    ids=["another machine's path", "spaces", "composed", "decomposed"],
)
def test_a_name_that_is_nearly_that_of_a_video_is_refused_with_the_nearest(tmp_path, video, row):
    with pytest.raises(CaptionError, match=rf"0 of 1 videos .*\(nearest: '{video}'\)"):
        match_table(tmp_path / "t.csv", {row: "a red circle"}, places(tmp_path, video))


def test_a_row_whose_file_name_holds_a_null_character_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"file": "a\\u0000.mp4", "caption": "x"}', encoding="utf-8")
    with pytest.raises(CaptionError, match="0 of 1 videos have a caption from the table"):
        match_table(tmp_path / "t.jsonl", read_caption_table(tmp_path / "t.jsonl"), places(tmp_path, "a.mp4"))


def test_an_absolute_path_of_this_machine_means_its_video(tmp_path):
    assert caption_of(tmp_path, "a.mp4", {str(tmp_path / "a.mp4"): "one"}) == "one"


@pytest.mark.parametrize(("name", "text"), [("a.txt", "one"), ("a.TXT", "one"), ("a.json", '{"Text": "one"}')])
def test_a_byte_order_mark_is_no_part_of_a_sidecar(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert caption_of(tmp_path, "a.mp4", {}) == "one"


def test_a_video_in_two_parts_of_a_mix_is_one_video(tmp_path):
    (tmp_path / "good").mkdir()
    for name in ("good/a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    mix = [
        *of_dataset("all", list_sources(str(tmp_path))),
        *of_dataset("good", list_sources(str(tmp_path / "good/*.mp4"))),
    ]
    table = {str(tmp_path / "good/a.mp4"): "x", "b.mp4": "y"}
    match = match_table(tmp_path, table, places_of(mix))
    assert (match.num_matched, match.num_videos, match.unused) == (2, 2, ())
    assert [caption_of(s.root, s.file, table, match.shared_names, s.path) for s in mix] == ["y", "x", "x"]


def test_two_parts_of_a_mix_with_equal_names_are_two_videos(tmp_path):
    videos = [*places(tmp_path / "cats", "1.mp4"), *places(tmp_path / "dogs", "1.mp4")]
    with pytest.raises(CaptionError, match=r"'1\.mp4' means several videos, '1\.mp4' and '1\.mp4'"):
        match_table(tmp_path, {"1.mp4": "x"}, videos)
    assert match_table(tmp_path, {"cats/1.mp4": "x", "dogs/1.mp4": "y"}, videos).num_matched == 2


def test_a_link_to_a_video_has_its_own_caption(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    assert match_table(tmp_path, {"a.mp4": "x", "b.mp4": "y"}, places(tmp_path, "a.mp4", "b.mp4")).num_matched == 2


def test_the_names_of_one_video_have_one_caption(tmp_path):
    videos = places(tmp_path, "sub/a.mp4")
    same = {"sub/a.mp4": "x", str(tmp_path / "sub/a.mp4"): "x", "a.mp4": "x"}
    match = match_table(tmp_path, same, videos)
    assert (match.num_matched, match.unused) == (1, ())
    with pytest.raises(CaptionError, match=r"'sub/a\.mp4' and 'a\.mp4' are one video, 'sub/a\.mp4', with different"):
        match_table(tmp_path, {**same, "a.mp4": "z"}, videos)


def test_a_folder_within_a_folder_of_the_same_name_is_no_other_spelling(tmp_path):
    folder = tmp_path / "a"
    match = match_table(tmp_path, {"1.mp4": "x", "a/1.mp4": "y"}, places(folder, "1.mp4", "a/1.mp4"))
    assert (match.num_matched, match.unused) == (2, ())


def test_paths_through_links_and_above_the_folder_match(tmp_path):
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/sub/a.mp4").touch()
    (tmp_path / "link").symlink_to("real")
    for name in ("link/sub/a.mp4", "real/sub/a.mp4", str(tmp_path / "link/sub/a.mp4"), "sub/../sub//a.mp4"):
        (tmp_path / "t.csv").write_text(f"file,caption\n{name},x\n")
        table = read_caption_table(tmp_path / "t.csv")
        (source,) = list_sources(str(tmp_path / "link"))
        assert match_table(tmp_path, table, places_of([source])).num_matched == 1
        assert caption_of(source.root, source.file, table) == "x"
    above = VideoPlace(tmp_path / "lists", "../real/sub/a.mp4", str(tmp_path / "lists/../real/sub/a.mp4"))
    assert match_table(tmp_path, {str(tmp_path / "real/sub/a.mp4"): "x"}, [above]).num_matched == 1


def test_videos_with_captions_of_their_own_are_counted(tmp_path):
    (tmp_path / "s.csv").write_text("path,caption\ncats/1.mp4,a cat\ndogs/1.mp4,\n")
    videos = places_of(list_sources(str(tmp_path / "s.csv")))
    match = match_table(tmp_path, {"cats/1.mp4": "x", "dogs/1.mp4": ""}, videos)
    assert str(match) == (
        "1 of 2 videos have a caption from the table, which is empty for 1 of them; "
        "1 videos keep the caption of data.source"
    )
    with pytest.raises(CaptionError, match=r"'1\.mp4' may mean 2 videos"):
        match_table(tmp_path, {"1.mp4": "x"}, videos)
    with pytest.raises(CaptionError, match="0 of 1 videos have a caption from the table; 1 videos keep the caption"):
        match_table(tmp_path, {"other.mp4": "x"}, videos[:1])


def test_a_uri_is_a_name_and_has_no_sidecar_on_this_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vids/cats").mkdir(parents=True)
    (tmp_path / "vids/cats/a.txt").write_text("another video")
    uri = "memory:///vids/cats/a.mp4"
    assert caption_of(Path("vids"), "cats/a.mp4", {}, (), uri) == "cats"
    for name in ("memory://vids/cats/a.mp4", "vids/cats/a.mp4", "cats/a.mp4", "a.mp4"):
        assert match_table(tmp_path, {name: "x"}, [VideoPlace(Path("vids"), "cats/a.mp4", uri)]).num_matched == 1
        assert caption_of(Path("vids"), "cats/a.mp4", {name: "x"}, (), uri) == "x"
    assert caption_of(Path("vids"), "cats/a.mp4", {str(tmp_path / "vids/cats/a.mp4"): "x"}, (), uri) == "cats"


@pytest.mark.parametrize("kind", ["link", "loop", "folder"])
def test_a_sidecar_that_is_no_file_is_refused(tmp_path, kind):
    if kind == "folder":
        (tmp_path / "a.txt").mkdir()
    else:
        (tmp_path / "a.txt").symlink_to({"link": "gone.txt", "loop": "a.txt"}[kind])
    with pytest.raises(CaptionError, match=r"its sidecar a\.txt is a folder, a pipe or a link to no file"):
        caption_of(tmp_path, "a.mp4", {})


def test_a_sidecar_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"caption": ' + "[" * 20_000)
    with pytest.raises(CaptionError, match=r"a\.json .*nested too deeply"):
        caption_of(tmp_path, "a.mp4", {})


def test_a_sidecar_with_one_key_in_two_spellings_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"caption": "one", "Caption": "two"}')
    with pytest.raises(CaptionError, match=r"a\.json has the key 'caption' twice"):
        caption_of(tmp_path, "a.mp4", {})


def test_a_sidecar_whose_name_is_no_unicode_is_named_printably(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"x" * 2**20)
    with pytest.raises(CaptionError, match=r"its sidecar \\xff\.txt has 1048576 bytes"):
        caption_of(tmp_path, "a.mp4", {}, (), str(tmp_path / os.fsdecode(b"\xff.mp4")))


def test_a_repeated_key_in_a_long_object_is_named(tmp_path):
    text = json.dumps({f"v/{number}.mp4": "x" for number in range(20000)})[:-1] + ', "v/19999.mp4": "y"}'
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(CaptionError, match=r"the key 'v/19999\.mp4' is there twice"):
        read_caption_table(tmp_path / "t.json")
