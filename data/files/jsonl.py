"""JSON lines: files with one JSON object per line, UTF-8, lines separated by a line feed only.

Other line separators of Unicode (U+2028, for one) may occur unescaped inside a JSON string, so lines are never split
with `str.splitlines`.
"""

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from data.errors import ReelflowError, shorten
from data.files.publish import published
from data.files.text import object_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Line: TypeAlias = "BaseModel | DataclassInstance | dict[str, Any]"


class JsonLineError(ReelflowError, ValueError):
    """A line that is not valid JSON, or not the record that the file should hold."""

    def __init__(self, path: str, number: int, reason: str) -> None:
        super().__init__(path, number, reason)  # all three, so that it can be pickled
        self.path, self.number, self.reason = path, number, reason

    def __str__(self) -> str:
        return f"{self.path}: line {self.number} is damaged ({self.reason})"


def parse_line(path: Path | str, number: int, line: bytes | str, model: type[T]) -> T:
    """One line as a `model`: a pydantic model, a dataclass or `dict[str, Any]`.

    Args:
        path: only for the error message.
        number: of the line, from 1; only for the error message.

    Raises:
        JsonLineError: the line is not valid JSON, has a key twice or half of a character (U+D800 to U+DFFF), or does
            not fit the model; its `reason` is the first mistake.
    """
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        content = json.loads(text, object_pairs_hook=object_of)
        if "\\ud" in text.lower():  # halves of characters, which could not be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return _adapter(model).validate_python(content)
    except json.JSONDecodeError as error:
        reason = error.msg
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8: {error.reason}"
    except UnicodeEncodeError as error:
        reason = f"it contains U+{ord(error.object[error.start]):04X}, which is no character of a text"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
    except RecursionError:
        reason = "its values are nested too deeply"
    except ValueError as error:  # a key that is there twice, or a number of more than 4300 digits
        reason = str(error)
    raise JsonLineError(str(path), number, shorten(reason, 400))


def numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of an open binary file with their numbers, from 1, with line feeds, without a byte order mark."""
    for number, line in enumerate(lines, 1):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def iterate_jsonl(
    path: Path, model: type[T], *, skip_damaged: bool = False, ignore_unfinished: bool = False
) -> Iterator[T]:
    """The records of a file, one at a time; none where there is no such file. Empty lines are skipped.

    Args:
        skip_damaged: leave out lines that are not a whole record, such as one in the middle of the file that was cut
            short when its writer was killed, and an unfinished last line.
        ignore_unfinished: leave out the last line where it ends in the middle: it is being written, or its writer was
            killed.

    Raises:
        JsonLineError: a line is damaged and not left out.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            if not line.strip():
                continue
            try:
                yield parse_line(path, number, line.removesuffix(b"\n"), model)
            except JsonLineError:
                if (skip_damaged or ignore_unfinished) and _is_unfinished(line):
                    return  # its writer may have ended it since, but what would be read next is not a line's beginning
                if not skip_damaged:
                    raise


def _is_unfinished(line: bytes) -> bool:
    """Whether a line has no line feed and is only the beginning of an object."""
    if line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return True
    return False


def read_jsonl(path: Path, model: type[T], *, skip_damaged: bool = False, ignore_unfinished: bool = False) -> list[T]:
    """All records of a file at once; arguments and errors as `iterate_jsonl`."""
    return list(iterate_jsonl(path, model, skip_damaged=skip_damaged, ignore_unfinished=ignore_unfinished))


def format_line(record: Line) -> str:
    """The JSON of one record, without a line feed."""
    if isinstance(record, BaseModel):
        return record.model_dump_json()
    return json.dumps(asdict(record) if is_dataclass(record) else record)


@contextmanager
def published_jsonl(path: Path) -> Iterator[Callable[[Line], None]]:
    """Replace a file by one with the records that the yielded function is given; on an error it stays as it is."""
    with published(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:

        def write(record: Line) -> None:
            file.write(format_line(record) + "\n")

        yield write


def publish_jsonl(path: Path, records: Iterable[Line]) -> None:
    """Replace a file by one with these records, atomically."""
    with published_jsonl(path) as write:
        for record in records:
            write(record)


def append_line(path: Path, record: Line) -> None:
    """`append_lines` of one record."""
    append_lines(path, [record])


def append_lines(path: Path, records: Iterable[Line]) -> None:
    """Add records to the end of a file, which is created if need be; flushed to the operating system at once.

    They are one write, so that the lines of several processes stay whole. They begin on a new line even where the line
    before was cut short.
    """
    content = "".join(format_line(record) + "\n" for record in records).encode("utf-8")
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        file.write(content)


@lru_cache(maxsize=32)
def _adapter(model: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(model)
