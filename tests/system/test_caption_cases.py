"""Tables and sidecars that once went wrong give the right captions, or an error that names row, value and way out."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.curation.caption_names import clean_file_name
from data.curation.caption_table import VideoPlace, match_table, read_caption_table
from data.curation.caption_text import CaptionError, clean_caption
from data.curation.captions import caption_of
from data.curation.source import SourceError
from data.curation.sources import list_sources
from data.dataset.buckets import Bucket
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from testing.paths import CASES_DIR

VIDEOS = ("a.mp4", "b.mp4", "c.mp4")
BUCKETS = (Bucket(num_frames=1, height=32, width=32, fps=8),)
CUT = PrepareConfig(BUCKETS, {}, ShardConfig(buckets=BUCKETS, max_clips_per_video=1))
# An error's words, a reason of the quarantine, or the captions.
RIGHT: dict[str, str | tuple[str, ...]] = {
    "comma": r"t\.csv, row 2: 3 fields where the header has 2; put",
    "s_comma": r"t\.csv, row 2: 3 fields where the header has 2; put",
    "openquote": r"t\.csv, row 2: .*; close each quote",
    "s_openquote": r"t\.csv, row 2: .*; close each quote",
    "kohya_json": r"t\.json, row 1: caption is \{'caption': 'a red circle', 'tags': 'x'\}; it must be text",
    "nan_json": r"t\.jsonl, row 1: caption is nan; it must be text",
    "no_match": r"0 of 3 videos have a caption from the table; .*nearest: 'a\.mp4'.*; write",
    "no_extension": r"0 of 3 videos have a caption from the table; .*'a' \(nearest: 'a\.mp4'\).*; write",
    "late_keys": r"t\.jsonl, row 2: it has 'path' where other rows have 'file'; use",
    "late_list": r"t\.jsonl, row 2: \['b\.mp4', 'y'\] is not an object",
    "late_number": r"t\.json, row 2: 5 is not an object",
    "bom_txt": ("a red circle", "a red circle", ""),
    "s_surrogate": "unreadable",
    "s_nul": "unreadable",
    "s_long": "unreadable",
    "s_loop": "unreadable",
    "s_text_column": ("a red circle",),
}


def captions_of(folder: Path, table: Path | None) -> tuple[str, ...]:
    """The captions that the videos of a folder get."""
    captions = {} if table is None else read_caption_table(table)
    sources = list_sources(str(folder))
    if table is not None:
        match_table(table, captions, [VideoPlace(source.root, source.file, source.path) for source in sources])
    return tuple(caption_of(source.root, source.file, captions) for source in sources)


@pytest.mark.parametrize("case", sorted(path.name for path in (CASES_DIR / "captions").glob("*")))
def test_each_case_gives_the_right_result(tmp_path, case):
    for file in (CASES_DIR / "captions" / case).iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    for video in VIDEOS:
        shutil.copyfile(CASES_DIR / "plain.mp4", tmp_path / video)
    right, table = RIGHT[case], next(tmp_path.glob("t.*"), None)
    if not case.startswith("s_"):
        if isinstance(right, tuple):
            assert captions_of(tmp_path, table) == right
        else:
            with pytest.raises(CaptionError, match=right):
                captions_of(tmp_path, table)
        return
    if case == "s_loop":
        (tmp_path / "a.mp4").unlink()
        (tmp_path / "a.mp4").symlink_to("a.mp4")
    if right == "unreadable":
        (source,) = list_sources(str(table))
        report, clips = prepare_source(CUT, source)
        assert report.quarantined is not None
        assert (report.quarantined.reason, list(clips)) == (right, [])
        assert report.model_validate_json(report.model_dump_json()) == report
    elif isinstance(right, tuple):
        assert tuple(source.caption for source in list_sources(str(table))) == right
    else:
        with pytest.raises(SourceError, match=right):
            list_sources(str(table))


def test_every_case_has_a_right_result():
    assert {path.name for path in (CASES_DIR / "captions").glob("*")} == set(RIGHT)


VALUES = st.none() | st.booleans() | st.floats() | st.text(st.characters()) | st.lists(st.text(), max_size=2)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(st.characters(), min_size=1, max_size=8), VALUES), min_size=1, max_size=4))
def test_a_random_table_is_read_as_written_or_refused_by_row(tmp_path, rows):
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"file": name, "caption": value}) + "\n" for name, value in rows))
    try:
        read = read_caption_table(table)
    except CaptionError as error:
        assert f"{table}, row" in str(error)  # noqa: PT017 - an error is one of two right results
        return
    written = {clean_file_name(name): value or "" for name, value in rows}
    assert read == written


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode()))
def test_a_random_sidecar_is_read_as_written_or_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    try:
        read = caption_of(tmp_path, "a.mp4", {})
    except CaptionError as error:
        assert str(error).startswith("its ")  # noqa: PT017 - an error is one of two right results
        return
    assert read == clean_caption(content.decode("utf-8").removeprefix("\ufeff"))


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.dictionaries(CELLS.map(lambda name: f"{name}.mp4"), CELLS, min_size=1, max_size=4),
    kind=st.sampled_from([("t.csv", ","), ("t.tsv", "\t")]),
)
def test_a_random_table_of_sources_is_read_as_written_or_refused(tmp_path, rows, kind):
    name, delimiter = kind
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("path", "caption"), *rows.items()])
    try:
        sources = list_sources(str(tmp_path / name))
    except SourceError as error:
        assert any("://" in name for name in rows)  # an address of a kind that is not allowed
        assert f"{name}, row" in str(error)  # noqa: PT017
        return
    assert {source.name: source.caption for source in sources} == rows
