"""Prompts files: text with one prompt per line, or tables with options, read row by row and as often as need be."""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from data.errors import VideoError, shorten
from data.files.jsonl import JsonLineError, parse_line
from data.files.locations import ASK, LOCAL_SCHEME, SCHEMES, client_errors
from data.files.tables import TableError, iterate_table, read_table
from data.records import expand_home
from pipeline.sample.given import IMAGES, files_named_by
from pipeline.sample.prompts import PlacedPrompt, Prompt, PromptError, prompt_of, refusal

MAX_JSON_BYTES = 2**28  # of a .json file, which is read whole
MAX_LINE_BYTES = 2**24
STREAMED_TABLES = (".csv", ".tsv", ".parquet")
TABLE_SUFFIXES = (*STREAMED_TABLES, ".json")
OTHER_SUFFIXES = (".yaml", ".yml", ".xml", ".html", ".toml", ".xlsx", ".ods", ".ndjson", ".gz", ".zip")
_SEPARATORS = re.compile("[\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")  # where Python, but no editor, ends a line


@dataclass
class _Numbers:
    """How many lines are odd in one way, and which was the first."""

    count: int = 0
    first: int = 0

    def add(self, number: int) -> None:
        self.first = self.first or number
        self.count += 1


@dataclass(frozen=True)
class PromptsFile:
    """A prompts file. Each iteration reads it from the start; a few rows at a time are in memory.

    The suffix, in any case, decides the format: .jsonl; the tables .csv, .tsv, .json and .parquet with the columns of
    `pipeline.sample.prompts.COLUMNS`; any other is text, in which runs of white space become one space, as in captions.
    Images and the beginnings of clips are decoded in the first iteration, to see that they can be; their paths become
    absolute.

    Raises:
        PromptError: on iteration: the file is missing, cannot be read or holds no prompts, or a row cannot be used;
            names the line or row.
    """

    place: str
    """Path or URI."""
    on_bad_row: Callable[[str, PromptError], None] | None = None
    """Called with a row that cannot be used, which is then left out; None: the error is raised."""
    _files: set[bytes] = field(default_factory=set, init=False, repr=False, compare=False)
    _notes: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def notes(self) -> list[str]:
        """What is odd in the file, one line of each kind; known after an iteration."""
        return self._notes.get("read", [])

    def __iter__(self) -> Iterator[PlacedPrompt]:
        """Every prompt with its place."""
        suffix, notes, is_empty = PurePosixPath(self.place).suffix.lower(), list[str](), True
        if suffix in OTHER_SUFFIXES:
            raise PromptError(
                f"{self.place}: prompts files are text, .jsonl, {', '.join(TABLE_SUFFIXES)}, not {suffix}"
            )
        with _opened(self.place) as stream:
            if suffix in TABLE_SUFFIXES:
                rows = self._table_rows(stream, suffix, notes)
            else:
                rows = self._line_rows(stream, notes, is_json=suffix == ".jsonl")
            for place, row in rows:
                try:
                    prompt = self.prompt_of_row(place, row)
                except PromptError as error:
                    is_empty = False
                    if self.on_bad_row is None:
                        raise
                    self.on_bad_row(place, error)
                    continue
                is_empty = False
                yield PlacedPrompt(place, prompt)
        if is_empty:
            raise PromptError(f"{self.place} holds no prompt; write one per line")
        self._notes["read"] = notes

    def prompt_of_row(self, place: str, row: "dict[str, Any] | PromptError") -> Prompt:
        """The prompt of a row, whose files can be decoded.

        Raises:
            PromptError: it cannot be used; names the place and the column.
        """
        if isinstance(row, PromptError):
            raise row
        prompt = prompt_of(place, row)
        named = files_named_by(prompt)
        if not named:
            return prompt
        files = {
            column: self._file(f"{place}: {column} {shorten(path)}", column, path) for column, path in named.items()
        }
        return prompt.model_copy(update=files)

    def _file(self, named: str, column: str, text: str) -> str:
        """The absolute path of an image or a clip that can be decoded."""
        try:
            given = Path(expand_home(text))
            if "://" in self.place and not given.is_absolute():
                raise PromptError(f"{named}: the prompts file is not local: name files by their absolute paths")
            file = (Path(self.place).parent / given).resolve()
        except (ValueError, OSError) as error:
            if isinstance(error, PromptError):
                raise
            raise PromptError(f"{named}: {error}") from error
        if (key := _key(file, column)) not in self._files:
            try:
                _check_file(file, column)
            except OSError as error:
                raise PromptError(
                    f"{named} cannot be read ({error.strerror}); name a file by its absolute path, or relative to "
                    f"{shorten(str(Path(self.place).parent.resolve()))}"
                ) from error
            except VideoError as error:
                formats = "PNG or JPEG" if column in IMAGES else "MP4"
                raise PromptError(f"{named}: {shorten(str(error), 300)}; save it anew, as {formats}") from error
            self._files.add(key)
        return str(file)

    def _table_rows(
        self, stream: BinaryIO, suffix: str, notes: list[str]
    ) -> "Iterator[tuple[str, dict[str, Any] | PromptError]]":
        empty, waiting = _Numbers(), list[int]()  # rows at the end of the file do not count
        try:
            if suffix in STREAMED_TABLES:
                rows = iterate_table(self.place, stream, waiting.append)
            else:
                content = stream.read(MAX_JSON_BYTES + 1)
                if len(content) > MAX_JSON_BYTES:
                    raise PromptError(
                        f"{self.place} has more than {MAX_JSON_BYTES} bytes, and a .json file is read whole; save it "
                        "as .jsonl, one object per line"
                    )
                rows = iter(read_table(self.place, content))
            for number, row in rows:
                for one in waiting:
                    empty.add(one)
                waiting.clear()
                yield f"{self.place}: row {number}", row
        except TableError as error:
            raise PromptError(str(error)) from error
        if empty.count:
            notes.append(f"{self.place}: {_skipped('row', empty)}")

    def _line_rows(
        self, stream: BinaryIO, notes: list[str], *, is_json: bool
    ) -> "Iterator[tuple[str, dict[str, Any] | PromptError]]":
        empty, separated = _Numbers(), _Numbers()
        for number, content in _lines(self.place, stream, is_json=is_json):
            place = f"{self.place}: line {number}"
            if is_json:
                if content.strip():
                    yield place, self._json_row(place, number, content)
                else:
                    empty.add(number)
                continue
            try:
                line = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise PromptError(f"{place} is not UTF-8 text ({error.reason} at byte {error.start})") from error
            if not line.strip():
                empty.add(number)
                continue
            if _SEPARATORS.search(line.strip()):
                separated.add(number)
            yield place, {"prompt": " ".join(line.split())}
        if separated.count:
            notes.append(
                f"{self.place}: {separated.count} lines hold line separators other than a line feed, each of which is "
                f"read as a space; the first is line {separated.first}"
            )
        if empty.count:
            notes.append(f"{self.place}: {_skipped('line', empty)}")

    def _json_row(self, place: str, number: int, content: bytes) -> dict[str, Any] | PromptError:
        try:
            return parse_line(self.place, number, content, dict[str, Any])
        except JsonLineError as error:
            return refusal(place, error.reason)


def _check_file(file: Path, column: str) -> None:
    """Decode an image, or the beginning of a video.

    Raises:
        VideoError: it cannot be decoded.
        OSError: it cannot be read.
    """
    from data.video.extract import measure_source  # loads libraries that prompts without files do not need
    from data.video.images import read_image

    if column in IMAGES:
        read_image(file)
        return
    file.open("rb").close()  # a missing file is an error of the file system
    measure_source(file)


def _key(path: Path, column: str) -> bytes:
    from hashlib import blake2b

    text = f"{path}\0{column in IMAGES}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _skipped(unit: str, empty: _Numbers) -> str:
    if empty.count == 1:
        return f"{unit} {empty.first} is empty and was skipped"
    return f"{empty.count} {unit}s are empty and were skipped; the first is {unit} {empty.first}"


def _lines(place: str, stream: BinaryIO, *, is_json: bool) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, without their ends and without a byte order mark.

    A line of text also ends with a carriage return.
    """
    number, is_first = 0, True
    while line := stream.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise PromptError(
                f"{place}: line {number + 1} has {MAX_LINE_BYTES} bytes or more; prompts files have one prompt per line"
            )
        line = (line.removeprefix(BOM_UTF8) if is_first else line).removesuffix(b"\n")
        is_first = False
        for part in [line] if is_json else line.removesuffix(b"\r").split(b"\r"):
            number += 1
            yield number, part


@contextmanager
def _opened(place: str) -> Iterator[BinaryIO]:
    """The file at a path or URI.

    Raises:
        PromptError: it is not there, or cannot be read.
    """
    if "://" in place and (scheme := place.partition("://")[0]) not in SCHEMES:
        raise PromptError(f"{place} is of the kind {scheme!r}; allowed are {', '.join(SCHEMES)}")
    path = None if "://" in place and not place.startswith(LOCAL_SCHEME) else Path(place.removeprefix(LOCAL_SCHEME))
    try:
        if path is not None:
            if not path.is_file():
                raise PromptError(f"{place}: there is no such prompts file; write one with one prompt per line")
            with path.open("rb") as stream:
                yield stream
            return
        # Files of fsspec read no part of a line.
        with fsspec.open(place, "rb") as stream, BufferedReader(cast("RawIOBase", stream)) as lines:
            yield lines
    except ImportError as error:
        raise PromptError(f"{place} needs a package that is not installed: {error}") from error
    except FileNotFoundError as error:
        raise PromptError(f"{place}: there is no such prompts file ({error}); {ASK}") from error
    except (OSError, *client_errors(place)) as error:
        raise PromptError(
            f"{place} cannot be read ({getattr(error, 'strerror', None) or error}); make it readable, or {ASK}"
        ) from error
