"""Tables of named columns: CSV, JSON lines, JSON and Parquet files, read whole."""

import csv
import json
from io import BytesIO, StringIO
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ReelflowError
from data.files.jsonl import JsonLineError, parse_line

Row = dict[str, Any]


class TableError(ReelflowError, ValueError):
    """A table that cannot be read; the message names the file and, where there is one, the line or row."""


def read_table(name: str, content: bytes, pair_columns: tuple[str, str] | None = None) -> list[tuple[int, Row]]:
    """The rows of a table with their numbers, from 1 and without the header. An empty cell of a CSV file is None.

    Args:
        name: path or URI of the table; its suffix (.csv, .jsonl, .json or .parquet, in any case) decides the format.
        content: the bytes of the file; text is UTF-8, with or without a byte order mark.
        pair_columns: names of the columns of keys and of values, for a JSON file that is one object. None: such a
            file is a table of one row. Other JSON files are arrays of objects.

    Raises:
        TableError: the format is unknown, the content does not follow it, or a row is not an object.
    """
    suffix = PurePath(name).suffix
    rows: list[Any]
    try:
        match suffix.lower():
            case ".csv":
                rows = list(csv.DictReader(StringIO(content.decode("utf-8-sig"), newline="")))
                rows = [{column: value or None for column, value in row.items()} for row in rows]
            case ".jsonl":
                lines = enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
                rows = [parse_line(name, number, line, object) for number, line in lines if line.strip()]
            case ".json":
                rows = _rows_of_json(json.loads(content.decode("utf-8-sig")), pair_columns)
            case ".parquet":
                rows = pq.read_table(BytesIO(content)).to_pylist()
            case _:
                raise TableError(f"{name}: a table is .csv, .jsonl, .json or .parquet, not {suffix!r}")
    except JsonLineError as error:
        raise TableError(f"{name}: it cannot be read as {suffix}: line {error.number}: {error.reason}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowException) as error:
        raise TableError(f"{name}: it cannot be read as {suffix}: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise TableError(f"{name}, row {number}: {row!r} is not an object with named columns")
    return list(enumerate(rows, 1))


def _rows_of_json(content: object, pair_columns: tuple[str, str] | None) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and pair_columns is not None:
        return [dict(zip(pair_columns, pair, strict=True)) for pair in content.items()]
    return [content]  # one row, or not an object: refused by the caller
