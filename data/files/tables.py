"""Tables of named columns: CSV, TSV, JSON lines, JSON and Parquet files, read and checked whole."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path, PurePath
from stat import S_ISREG
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ReelflowError, quoted, shorten
from data.files.text import TextError, decode_json, decode_text

Row = dict[str, Any]
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
PARQUET_ROWS = 1024  # in memory at once
# The names that a column may have, the preferred one first; upper case and spaces around them do not matter.
FILE_COLUMNS = ("file", "path", "video", "source")
CAPTION_COLUMNS = ("caption", "text", "prompt", "label")


class TableError(ReelflowError, ValueError):
    """A table that cannot be read; the message names the file and, where there is one, the line or row."""


def is_table(name: str) -> bool:
    """Whether the suffix of a path or URI, in any case, is that of a table."""
    return PurePath(name).suffix.lower() in TABLE_SUFFIXES


def read_table(
    name: str, content: bytes, pair_columns: tuple[str, str] | None = None, missing: object = None
) -> list[tuple[int, Row]]:
    """The rows of a table with their numbers.

    Rows are numbered as a spreadsheet or an editor shows them: in a CSV or TSV file from 2, after the header; in JSON
    lines by line; in JSON and Parquet files from 1.

    Names of columns are in lower case and without spaces around them. A cell of a CSV or TSV file that is empty
    is None; rows without any content are left out.

    Args:
        name: path or URI of the table; its suffix (one of `TABLE_SUFFIXES`, in any case) decides the format.
        content: the bytes of the file; text is UTF-8, with or without a byte order mark.
        pair_columns: names of the columns of keys and of values, for a JSON file that is one object. None: such a
            file is a table of one row. Other JSON files are arrays of objects.
        missing: stands for a cell that a row of a CSV or TSV file lacks at its end.

    Raises:
        TableError: the format is unknown, the content does not follow it, a row has more fields than the header or is
            not an object, a quoted field has a space before its quote, or a column is named twice.
    """
    suffix = PurePath(name).suffix
    rows: list[tuple[int, Any]]
    try:
        match suffix.lower():
            case ".csv" | ".tsv":
                text = StringIO(decode_text(content), newline="")
                return list(_rows_of_csv(name, text, _delimiter(suffix), missing, lambda _: None))
            case ".jsonl":
                rows = _rows_of_json_lines(decode_text(content))
            case ".json":
                rows = list(enumerate(_rows_of_json(decode_json(decode_text(content)), pair_columns), 1))
            case ".parquet":
                rows = list(enumerate(_rows_of_parquet(name, content), 1))
            case _:
                raise TableError(f"{name}: a table is {', '.join(TABLE_SUFFIXES[:-1])} or .parquet, not {suffix!r}")
    except (TextError, csv.Error) as error:
        raise TableError(f"{name}: it cannot be read as {suffix}: {error}") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise TableError(f"{name}, row {number}: {quoted(row)} is not an object with named columns")
    return [(number, _with_plain_columns(f"{name}, row {number}", row)) for number, row in rows]


def iterate_table(
    name: str, stream: BinaryIO, on_empty: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV, TSV or Parquet file as `read_table` gives them, of which a few at a time are in memory.

    Args:
        stream: the open file; of a Parquet file, one that can seek.
        on_empty: called with the number of each row of a CSV or TSV file that has no content and is left out.

    Raises:
        TableError: as `read_table`, when the row is reached.
    """
    suffix = PurePath(name).suffix
    rows: Iterator[tuple[int, Row]]
    if suffix.lower() == ".parquet":
        rows = enumerate(_parquet_batches(name, stream), 1)
        for number, row in rows:
            yield number, _with_plain_columns(f"{name}, row {number}", row)
        return
    text, number = TextIOWrapper(stream, encoding="utf-8-sig", newline=""), 0
    try:
        for number, row in _rows_of_csv(name, text, _delimiter(suffix), None, on_empty):
            yield number, row
    except UnicodeDecodeError as error:
        raise TableError(
            f"{name}: it cannot be read as {suffix}: it is not UTF-8 ({error.reason}, after row {number}); save it as "
            "UTF-8"
        ) from error
    except csv.Error as error:
        raise TableError(f"{name}: it cannot be read as {suffix}: {error}") from error
    finally:
        text.detach()


def _delimiter(suffix: str) -> str:
    return "\t" if suffix.lower() == ".tsv" else ","


def table_content(table: Path) -> bytes:
    """The bytes of a local table.

    Raises:
        TableError: there is no such file, or it cannot be read.
    """
    try:
        if not S_ISREG(table.stat().st_mode):
            raise TableError(f"{table}: the table is not a regular file; make it one")
        return table.read_bytes()
    except TableError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TableError(f"{table}: there is no such table") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise TableError(f"{table}: the table cannot be read ({reason}); make it a readable file") from error


def find_column(table: str, rows: Sequence[tuple[int, Row]], names: Sequence[str]) -> str | None:
    """The first of `names` that is a column of the table; None if there is no such column.

    Raises:
        TableError: a row has its value under another of the names, and none under the one that is found.
    """
    columns = {column for _, row in rows for column in row}
    found = next((name for name in names if name in columns), None)
    for number, row in rows:
        other = next((name for name in names if name in row), None)
        if found is not None and found not in row and other is not None:
            raise TableError(
                f"{table}, row {number}: it has {other!r} where other rows have {found!r}; use one name in all rows"
            )
    return found


def _rows_of_csv(
    name: str, text: Iterable[str], delimiter: str, missing: object, on_empty: Callable[[int], None]
) -> Iterator[tuple[int, Row]]:
    """The rows of a file, given as its lines with their ends."""
    own: list[str] = []  # the lines of the row that was read last

    def lines() -> Iterator[str]:
        for line in text:
            own.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number, line = 0, 0  # of the row that was read last, and of its last line
    while True:
        number, first_line = number + 1, line + 1
        where = f"row {number}" if first_line == number else f"row {number} (line {first_line})"
        own.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise TableError(
                f"{name}, {where}: {error}; close each quote that opens a field, and write a quote inside it twice"
            ) from error
        if cells is None:
            return
        if header is None and cells:
            header = [plain_column(cell) for cell in cells]
            _check_header(name, header)
        elif header is None or not any(cells):
            on_empty(number)
        else:
            _check_quotes(f"{name}, {where}", "".join(own), cells, delimiter)
            yield number, _row_of_cells(f"{name}, {where}", header, cells, missing)
        line = reader.line_num


def _check_header(name: str, header: list[str]) -> None:
    counts = Counter(column for column in header if column)
    twice = next((column for column, count in counts.items() if count > 1), None)
    if twice is not None:
        raise TableError(f"{name}: the column {quoted(twice)} is there twice; rename or remove one of them")


def _row_of_cells(where: str, header: list[str], cells: list[str], missing: object) -> Row:
    """A row of a CSV file; a first column without a name is an index, a later one may not hold anything."""
    beyond = [number for number, cell in enumerate(cells) if cell and number > 0 and not "".join(header[number:])]
    if len(cells) > len(header) or beyond:
        named = len(header) if len(cells) > len(header) else beyond[0]
        raise TableError(
            f"{where}: {len(cells)} fields where the header has {named}; put a field that contains the separator "
            f"in double quotes"
        )
    padded = [*(cell or None for cell in cells), *[missing] * (len(header) - len(cells))]
    return {column: cell for column, cell in zip(header, padded, strict=True) if column}


def _check_quotes(where: str, text: str, cells: list[str], delimiter: str) -> None:
    """Refuse a field whose quote comes after a space: the quotes, and separators between them, would be its content.

    Args:
        text: the row as it stands in the file.
    """
    late = [cell for cell in cells if cell.startswith(" ") and cell.lstrip(" ").startswith('"')]
    if not late:
        return
    try:
        meant = next(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error:
        meant = []
    if [cell.lstrip(" ") for cell in cells] != [cell.lstrip(" ") for cell in meant]:
        raise TableError(f"{where}: the field {quoted(late[0])} has a space before its quote; remove the space")


def _rows_of_parquet(name: str, content: bytes) -> list[Row]:
    return list(_parquet_batches(name, BytesIO(content)))


def _parquet_batches(name: str, stream: BinaryIO) -> Iterator[Row]:
    """The rows of a Parquet file, of which a batch at a time is in memory.

    Raises:
        TableError: it is damaged, a column is named twice, or Python has no value for one (a date beyond year 9999).
    """
    column = ""
    try:
        file = pq.ParquetFile(stream)
        _check_header(name, [plain_column(name) for name in file.schema_arrow.names])
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            columns: dict[str, list[Any]] = {}
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                columns[column] = values.to_pylist()
            column = ""
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    except TableError:
        raise
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        place = f" (column {quoted(column)})" if column else ""
        raise TableError(
            f"{name}: it cannot be read as .parquet{place}: {shorten(' '.join(str(error).split()))}"
        ) from error


def _rows_of_json_lines(text: str) -> list[tuple[int, Any]]:
    rows: list[tuple[int, Any]] = []
    # Other line separators than a line feed may be part of a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, decode_json(line)))
        except TextError as error:
            raise TextError(f"line {number}: {error}") from error
    return rows


def _rows_of_json(content: object, pair_columns: tuple[str, str] | None) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and pair_columns is not None:
        return [dict(zip(pair_columns, pair, strict=True)) for pair in content.items()]
    return [content]  # one row, or not an object: refused by the caller


def column_names(row: Row) -> str:
    """The names of the columns of a row as a message shows them: printable and shortened."""
    return shorten(", ".join(name if name.isprintable() else quoted(name) for name in row)) or "none"


def plain_column(name: str) -> str:
    """The name of a column in lower case and without spaces around it."""
    return name.strip().lower()


def _with_plain_columns(where: str, row: Row) -> Row:
    plain = {plain_column(column): value for column, value in row.items()}
    if len(plain) < len(row):
        raise TableError(f"{where}: two columns differ only in upper case or spaces; rename or remove one of them")
    return plain
