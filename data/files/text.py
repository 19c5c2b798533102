"""Text and JSON from the bytes of a file that a user wrote: one decoder for tables and sidecars."""

import codecs
import json
from collections import Counter
from typing import Any

from data.errors import ReelflowError, quoted


class TextError(ReelflowError, ValueError):
    """Bytes that are not the text or JSON they should be; the message is one sentence, without the name of the file."""


def decode_text(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, which is no part of the text.

    Raises:
        TextError: it is not UTF-8.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TextError("it is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"it is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def decode_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        TextError: it is not JSON, is nested too deeply, has a number of thousands of digits, or an object has a key
            twice.
    """
    try:
        return json.loads(text, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        raise TextError(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise TextError("it is nested too deeply; write flat objects") from error
    except ValueError as error:  # a whole number of more than 4300 digits
        raise TextError(str(error)) from error


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key may be there twice: the first value would be lost.

    Raises:
        TextError: a key is there twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise TextError(f"the key {quoted(twice)} is there twice; keep one of them")
    return content
