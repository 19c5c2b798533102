"""Folders, globs, tables and URIs name the same videos; a bad list is refused with file, row, field and way out."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.curation.caption_table import read_caption_table
from data.curation.caption_text import CaptionError
from data.curation.listing import MAX_SUFFIXES, OTHER, ListingCounts, add_listings, describe_listing
from data.curation.source import Source, SourceError, listing_fingerprint, local_copy
from data.curation.sources import list_place, list_sources
from data.dataset.buckets import Bucket
from data.errors import VideoError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source

BUCKETS = (Bucket(num_frames=5, height=32, width=32, fps=8),)

CUT = PrepareConfig(BUCKETS, {}, ShardConfig(buckets=BUCKETS, max_clips_per_video=9))


def names(place: object) -> list[str]:
    return [source.name for source in list_sources(str(place))]


def test_a_folder_a_glob_and_a_uri_give_the_same_names(shapes_dir):
    assert (
        names(shapes_dir)
        == names(shapes_dir / "**" / "*.mp4")
        == names(f"file://{shapes_dir}")
        == ["a.mp4", "sub/b.mp4"]
    )
    assert names(shapes_dir / "*.mp4") == names(f"file://{shapes_dir}/*.mp4") == ["a.mp4"]


def test_the_fingerprint_changes_with_the_files(shapes_dir):
    before = {place: listing_fingerprint(list_sources(place)) for place in (str(shapes_dir), f"file://{shapes_dir}")}
    assert before == {place: listing_fingerprint(list_sources(place)) for place in before}
    os.utime(shapes_dir / "a.mp4", (1, 1))
    assert all(listing_fingerprint(list_sources(place)) != fingerprint for place, fingerprint in before.items())
    told = listing_fingerprint(list_sources(str(shapes_dir)))
    (shapes_dir / "a.txt").write_text("another caption", encoding="utf-8")
    assert listing_fingerprint(list_sources(str(shapes_dir))) != told


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_gives_captions_and_spans(shapes_dir, suffix):
    rows = [
        {"path": "a.mp4", "caption": "one", "start": 0.5, "end": 1.75},
        {"path": "a.mp4", "caption": "two", "start": 2.0, "end": None},
        {"path": "sub/b.mp4", "caption": None, "start": None, "end": None},
        {"path": "gone.mp4", "caption": "four", "start": None, "end": None},
    ]
    table = shapes_dir / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    elif suffix == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
        table.write_text("\n".join(["path,caption,start,end", *lines]), encoding="utf-8")
    sources = list_sources(str(table))
    assert names(table) == ["a.mp4#t=0.5,1.75", "a.mp4#t=2", "sub/b.mp4", "gone.mp4"]
    reports = [prepare_source(CUT, source) for source in sources]
    starts = [[clip.start_seconds for clip in report.clips] for report, _ in reports]
    assert starts == [[0.5, 1.125], [2.0], [0.0, 0.625, 1.25, 1.875, 2.5], []]
    assert [clips[0][0].caption for _, clips in reports[:3]] == ["one", "two", "sub"]
    assert len({record.split for _, clips in reports[:2] for record, _ in clips}) == 1
    gone = reports[3][0].quarantined
    assert gone is not None
    assert (gone.stage, gone.reason) == ("read", "missing")


@pytest.mark.parametrize("caption", ["caption", "text", "prompt", "Text"])
@pytest.mark.parametrize("path", ["path", "file", " File "])
def test_columns_have_the_names_of_caption_tables(tmp_path, path, caption):
    (tmp_path / "t.csv").write_text(f"{path},{caption}\na.mp4,a red circle\n")
    (source,) = list_sources(str(tmp_path / "t.csv"))
    assert (source.file, source.caption) == ("a.mp4", "a red circle")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"t\.csv: it holds no rows"),
        ("name,caption\na.mp4,one\n", r"t\.csv: it has no column path, only name, caption"),
        ("path,start\na.mp4,soon\n", r"t\.csv, row 2: start is 'soon'; it must be a number of seconds"),
        ("path,start\na.mp4,1_0\n", r"t\.csv, row 2: start is '1_0'; it must be a number of seconds"),
        ("path\na.mp4\n./a.mp4\n", r"rows 2 and 3: a\.mp4 and \./a\.mp4 are one source and listed twice"),
        ("path\nx/../a.mp4\na.mp4\n", r"rows 2 and 3: x/\.\./a\.mp4 and a\.mp4 are one source"),
        ("path,start\na.mp4,0\nb.mp4,-1\n", r"t\.csv, row 3: start is '-1'"),
        ("path,start,end\na.mp4,3,2\n", r"row 2: end is 2, which is not after start 3"),
        ("path,start\na.mp4,1\na.mp4,1\n", r"a\.mp4#t=1 is listed twice"),
        ("path,caption\n,one\n", r"row 2: path is None; it must name a video"),
        ("path\npipe://rm -rf x\n", r"row 2: pipe://rm -rf x is of the kind 'pipe'; allowed are file"),
        ("path\nhttp://host/a.mp4\n", r"is of the kind 'http'; allowed are file"),
    ],
)
def test_a_bad_table_is_named_with_row_and_field(tmp_path, text, reason):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SourceError, match=reason):
        list_sources(str(tmp_path / "t.csv"))


def test_places_that_hold_nothing_say_so(tmp_path):
    for place, reason in (
        (tmp_path / "none", "is not a folder"),
        (tmp_path / "*.mp4", "matches no file"),
        (tmp_path / "none.csv", "there is no such table"),
        ("x" * 300, "is not a folder"),
        (f"{'x' * 300}.csv", "the table cannot be read"),
        ("a\0b.csv", "the table cannot be read"),
        ("/dev/null/t.csv", "there is no such table"),
        ("file://", "names no file or folder"),
        (f"file://{tmp_path}", "is empty"),
        ("ftp://host/videos", "data.source: ftp://host/videos is of the kind 'ftp'"),
    ):
        with pytest.raises(SourceError, match=reason):
            list_sources(str(place))


def test_a_video_in_another_file_system_is_copied_and_cleared_away(shapes_dir):
    content = (shapes_dir / "a.mp4").read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe("/videos/x/c.mp4", content)
    sources = list_sources("memory://videos")
    assert [source.name for source in sources] == ["x/c.mp4"]
    with local_copy(sources[0]) as path:
        assert path.read_bytes() == content
    assert not path.exists()
    report, clips = prepare_source(CUT, sources[0])
    assert len(report.clips) == len(clips) == 5
    memory.rm("/videos", recursive=True)
    report, _ = prepare_source(CUT, sources[0])
    assert report.quarantined is not None
    assert report.quarantined.reason == "missing"


def test_pipes_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "folder.mp4"):
        with (
            pytest.raises(VideoError, match="not a regular file"),
            local_copy(Source(name, str(tmp_path / name), name, tmp_path, "")),
        ):
            pass


def test_spans_a_millisecond_apart_are_two_sources(shapes_dir):
    rows = [{"path": "a.mp4", "start": start} for start in (1234.561, 1234.564, 0.5)]
    (shapes_dir / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert names(shapes_dir / "t.jsonl") == ["a.mp4#t=1234.561", "a.mp4#t=1234.564", "a.mp4#t=0.5"]


def test_a_broken_name_costs_its_source_only(shapes_dir, caplog):
    (shapes_dir / "loop.mp4").symlink_to("loop.mp4")
    (shapes_dir / f"{'x' * 251}.mp4").write_bytes((shapes_dir / "a.mp4").read_bytes())
    (shapes_dir / "linked").symlink_to(shapes_dir / "sub")
    sources = list_sources(str(shapes_dir))
    assert [source.name for source in sources] == ["a.mp4", "loop.mp4", "sub/b.mp4", f"{'x' * 251}.mp4"]
    quarantined = {source.name: prepare_source(CUT, source)[0].quarantined for source in sources}
    assert [name for name, rejection in quarantined.items() if rejection is not None] == ["loop.mp4"]
    loop = quarantined["loop.mp4"]
    assert loop is not None
    assert (loop.reason, loop.detail) == ("unreadable", "it cannot be read: Too many levels of symbolic links")
    assert f"1 linked folders are not searched; linked is {shapes_dir}/linked: put the videos there" in caplog.text


def test_names_that_print_alike_stay_apart(tmp_path):
    for name in (b"\\xff.mp4", b"\xff.mp4"):
        (tmp_path / os.fsdecode(name)).touch()
    assert names(tmp_path) == ["\\xff.mp4", "\\xff.mp4#bytes=ff2e6d7034"]


@contextmanager
def not_root() -> Iterator[None]:
    """Permissions apply within the block, also where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_entered_costs_its_videos_only(shapes_dir, caplog):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        for name in ("a.mp4", "listed/b.mp4", "listed/below/c.mp4", "closed/d.mp4"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((shapes_dir / "a.mp4").read_bytes())
        (folder / "listed").chmod(0o444)
        (folder / "closed").chmod(0o000)
        with not_root():
            sources, counts = list_sources(place), list_place(place).counts
            reports = [prepare_source(CUT, source)[0] for source in sources]
        for name in ("listed", "closed"):
            (folder / name).chmod(0o755)
    assert [source.name for source in sources] == ["a.mp4", "listed/b.mp4"]
    assert [report.quarantined and report.quarantined.reason for report in reports] == [None, "unreadable"]
    assert "2 folders cannot be read, and their videos are missing" in caplog.text
    assert f"unreadable is {place}/closed, {place}/listed/below (Permission denied): make it readable" in caplog.text
    assert counts == ListingCounts(unreadable_folders=2)


def test_what_lies_beside_the_videos_is_counted_and_told_in_one_line(shapes_dir, caplog):
    for name in ("a.txt", "b.PNG", "c.png", "sub/d.xyz", "e", "sub/f.json", ".DS_Store"):
        (shapes_dir / name).touch()
    (shapes_dir / "sub" / "up").symlink_to("..")  # a cycle
    with caplog.at_level("INFO"):
        counts = list_place(str(shapes_dir)).counts
    expected = {"(none)": 2, ".png": 2, ".json": 1, ".txt": 1, ".xyz": 1}  # notes.txt is of no video
    assert counts == ListingCounts(captions=1, files=expected, linked_folders=1)
    (record,) = [record for record in caplog.records if "videos;" in record.getMessage()]
    assert record.levelname == "WARNING"
    told = "2 videos; 1 caption files; 7 files are no videos by their suffix: 2 (none), 2 .png, 1 .json, 1 .txt, 1 .xyz"
    assert told in record.getMessage()
    assert list_place(str(shapes_dir / "*.mp4")).counts == ListingCounts()
    both = add_listings([counts, counts])
    assert (both.captions, both.files[".png"], both.linked_folders) == (2, 4, 2)


def test_the_counts_of_suffixes_are_few_however_many_there_are(tmp_path):
    (tmp_path / "a.mp4").touch()
    for number in range(100):
        (tmp_path / f"x.{number:03d}").touch()
    counts = list_place(str(tmp_path)).counts
    assert len(counts.files) == MAX_SUFFIXES + 1
    assert counts.files[OTHER] == 100 - MAX_SUFFIXES
    assert add_listings([counts, counts]).files[OTHER] == 2 * (100 - MAX_SUFFIXES)
    assert describe_listing(ListingCounts()) == ""


def test_a_glob_searches_no_linked_folder(tmp_path, caplog):
    for name in ("a.mp4", "sub/b.mp4", "sub/deep/c.mp4", ".hidden/d.mp4", "sub/.e.mp4", "sub/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("x", "y"):  # with two such links, Python's own search would take years
        (tmp_path / name).symlink_to(".")
    for place in (str(tmp_path), f"file://{tmp_path}"):
        caplog.clear()
        assert names(f"{place}/**/*.mp4") == ["a.mp4", "sub/b.mp4", "sub/deep/c.mp4"]
        assert "2 linked folders are not searched" in caplog.text
        caplog.clear()
        assert names(f"{place}/*/[bc].mp4") == ["sub/b.mp4"]
        assert names(f"{place}/s*/**/c.mp4") == ["sub/deep/c.mp4"]
        assert names(f"{place}/s??/deep/*") == ["sub/deep/c.mp4"]
        assert names(f"{place}/sub/**") == ["b.mp4", "deep/c.mp4"]
    caplog.clear()
    assert names(tmp_path / "*.mp4") == ["a.mp4"]
    assert not caplog.text


def test_file_uris_are_local_paths(tmp_path):
    for name in (b"\\xff.mp4", b"\xff.mp4", b"c.mp4"):
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "c.txt").write_text("a red circle")
    assert list_sources(f"file://{tmp_path}") == list_sources(str(tmp_path))
    (tmp_path / "t.csv").write_text(f"path\nfile://{tmp_path}/c.mp4\n")
    assert list_sources(f"file://{tmp_path}/t.csv") == list_sources(str(tmp_path / "t.csv"))
    (source,) = list_sources(str(tmp_path / "t.csv"))
    assert source.path == str(tmp_path / "c.mp4")


def test_sidecars_in_a_store_are_counted(caplog):
    memory = fsspec.filesystem("memory")
    for name in ("a.mp4", "a.txt", "sub/b.mp4", "sub/b.json", "readme.txt"):
        memory.pipe(f"/stored/{name}", b"x")
    assert names("memory://stored") == ["a.mp4", "sub/b.mp4"]
    assert "memory://stored: 2 sidecars beside the videos are not read" in caplog.text
    memory.rm("/stored", recursive=True)


def test_a_table_that_cannot_be_read_is_named():
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "t.csv").write_text("path,caption\na.mp4,x\n")
        (folder / "t.csv").chmod(0)
        with not_root():
            with pytest.raises(SourceError, match=r"t\.csv: the table cannot be read \(Permission denied\); make it"):
                list_sources(str(folder / "t.csv"))
            with pytest.raises(CaptionError, match=r"data\.captions: .*t\.csv: the table cannot be read"):
                read_caption_table(folder / "t.csv")


def test_a_message_about_columns_is_short(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({f"video{number}.mp4": "x" for number in range(20000)}))
    with pytest.raises(SourceError, match=r"it has no column path, only video0\.mp4, ") as raised:
        list_sources(str(tmp_path / "t.json"))
    assert len(str(raised.value)) < 500
