"""JSON lines: what is written is read back; damaged lines are named, or skipped where the caller asks for it."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files.jsonl import JsonLineError, append_line, iterate_jsonl, parse_line, publish_jsonl, read_jsonl
from data.records import Record


class Named(Record):
    name: str
    number: float = 0.0


@dataclass(frozen=True)
class Pair:
    left: int
    right: int


@pytest.mark.parametrize(
    ("model", "records"),
    [
        (Named, [Named(name="one\u2028two\u0085three", number=0.1 + 0.2), Named(name="\n")]),
        (Pair, [Pair(1, 2), Pair(3, 4)]),
        (dict[str, Any], [{"step": 1, "loss": 1e300}, {"é": [None, "a"]}]),
    ],
    ids=["pydantic", "dataclass", "dict"],
)
def test_records_are_read_back(tmp_path, model, records):
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path, model) == []
    publish_jsonl(path, records[:1])
    append_line(path, records[1])
    assert read_jsonl(path, model) == records
    assert path.read_bytes().count(b"\n") == 2


def test_a_line_that_was_cut_short_is_skipped_and_the_next_one_begins_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    append_line(path, Named(name="one"))
    path.write_bytes(path.read_bytes() + '{"name": "é'.encode()[:-1])  # in the middle of a character
    assert read_jsonl(path, Named, skip_damaged=True) == [Named(name="one")]
    append_line(path, Named(name="two"))
    assert read_jsonl(path, Named, skip_damaged=True) == [Named(name="one"), Named(name="two")]
    with pytest.raises(JsonLineError, match=r"a\.jsonl: line 2 is damaged \(it is not UTF-8"):
        read_jsonl(path, Named)
    assert next(iterate_jsonl(path, Named)) == Named(name="one")


def test_a_line_that_its_writer_ends_while_it_is_read_is_unfinished(tmp_path, monkeypatch):
    """A read can end in the middle of a line that is being written: at a page of the file, for one."""
    path = tmp_path / "a.jsonl"
    whole = '{"name": "one"}\n{"name": "two"}\n{"name": "three"}\n'

    def parse(*arguments: Any) -> Any:
        try:
            return parse_line(*arguments)
        except JsonLineError:
            path.write_text(whole, encoding="utf-8")
            raise

    monkeypatch.setattr("data.files.jsonl.parse_line", parse)
    for options in ({"ignore_unfinished": True}, {"skip_damaged": True}):
        path.write_text(whole[:20], encoding="utf-8")
        assert read_jsonl(path, Named, **options) == [Named(name="one")]
        assert read_jsonl(path, Named, **options) == [Named(name=name) for name in ("one", "two", "three")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ('{"number": 1}', "name: Field required"),
        ('{"name": "a", "nmae": 1}', "nmae: Extra inputs are not permitted"),
        ('{"name": "a", "name": "b"}', "the key 'name' is there twice"),
        ('{"name": "\\ud83d"}', r"it contains U\+D83D, which is no character"),
        ('{"name": ' + "[" * 100_000, "its values are nested too deeply"),
        ('{"name": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"' + "x" * 5000 + '": 1}', "name: Field required"),
        (b'{"name": "\xe9"}', "it is not UTF-8"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_errors_name_file_line_and_reason_and_can_be_pickled(line, reason):
    with pytest.raises(JsonLineError, match=rf"t\.jsonl: line 7 is damaged \({reason}") as caught:
        parse_line("t.jsonl", 7, line, Named)
    assert len(str(caught.value)) < 500
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_not_a_number_survives(tmp_path):
    append_line(tmp_path / "a.jsonl", {"loss": float("nan")})
    (row,) = read_jsonl(tmp_path / "a.jsonl", dict[str, float])
    assert json.dumps(row) == '{"loss": NaN}'


@settings(deadline=None)
@given(st.lists(st.text()))
def test_any_text_is_read_back_as_one_line_for_each_record(texts):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        publish_jsonl(path, [Named(name=text) for text in texts])
        assert [record.name for record in read_jsonl(path, Named)] == texts
        assert path.read_bytes().count(b"\n") == len(texts)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"name": "\ufeffone"}\r\n'.encode())
    assert read_jsonl(path, Named) == [Named(name="\ufeffone")]
