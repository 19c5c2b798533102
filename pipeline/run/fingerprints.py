"""The one rule for "does this setting change the output?", and short names for what an output was made from.

Every field of a configuration record belongs to the output, unless its type is marked: `Runtime` (only how the work is
done), `Layout` (only how samples are grouped into shards) or `AddedLater` (left out while it has the value that older
versions implied). `tests/pipeline/run/test_fingerprints.py` lists every field, so a new one fails until it is decided.
"""

import json
from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import Any

from pydantic import BaseModel

from data.records import AddedLater, FieldMarker, Layout, Runtime

canonical_json = json.JSONEncoder(sort_keys=True).encode
"""JSON text with sorted keys, of which fingerprints are made; `json.dumps` would make an encoder at each call."""

Excluded = dict[Any, Any]
"""What pydantic leaves out of a dump: field or index -> True, or what to leave out of the value."""


def output_settings(config: BaseModel, *, layout: bool = True) -> dict[str, Any]:
    """The settings that decide an output, as JSON values under the names they are stored by.

    Args:
        config: any record of the configuration.
        layout: include the fields marked `Layout`.
    """
    return config.model_dump(mode="json", by_alias=True, exclude=_excluded(config, _markers(layout)))


def output_json(config: BaseModel, *, layout: bool = True, exclude: Collection[str] = ()) -> str:
    """`output_settings` as JSON text, in the order of the fields: a part of content addresses.

    Args:
        exclude: fields that the address has in another form; `part.field` names a field of the record in `part`.
    """
    excluded = _excluded(config, _markers(layout))
    for name in exclude:
        _exclude(excluded, name.split("."))
    return config.model_dump_json(by_alias=True, exclude=excluded)


def _exclude(excluded: Excluded, path: list[str]) -> None:
    """Add a field, or a field of a record in a field, to what is left out."""
    name, *inner = path
    if not inner:
        excluded[name] = True
    elif excluded.get(name) is not True:
        _exclude(excluded.setdefault(name, {}), inner)


def stored(config: BaseModel) -> dict[str, Any]:
    """A whole record as it is stored in checkpoints: every field but those added later that have the implied value."""
    return config.model_dump(by_alias=True, exclude=_excluded(config, ()))


def fingerprint(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    return sha256(canonical_json(value).encode()).hexdigest()[:16]


def fingerprint_of_items(items: Iterable[Any]) -> str:
    """`fingerprint` of a list, of which one item at a time is in memory."""
    return fingerprint_of_encoded(map(canonical_json, items))


def fingerprint_of_encoded(items: Iterable[str]) -> str:
    """`fingerprint` of a list of which the items are `canonical_json` already."""
    digest, separator = sha256(b"["), ""
    for item in items:
        digest.update(f"{separator}{item}".encode())
        separator = ", "
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _markers(layout: bool) -> tuple[FieldMarker, ...]:
    return (Runtime,) if layout else (Runtime, Layout)


def _excluded(value: Any, markers: tuple[FieldMarker, ...]) -> Excluded:  # noqa: ANN401 - whatever a field holds
    """The fields of a value, and of the records within it, that carry one of the markers or an implied value."""
    if isinstance(value, BaseModel):
        excluded: Excluded = {}
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            implied = [marker.implied for marker in field.metadata if isinstance(marker, AddedLater)]
            if any(marker in field.metadata for marker in markers) or item in implied:
                excluded[name] = True
            elif inner := _excluded(item, markers):
                excluded[name] = inner
        return excluded
    if isinstance(value, dict):
        return {key: inner for key, item in value.items() if (inner := _excluded(item, markers))}
    if isinstance(value, list | tuple):
        return {index: inner for index, item in enumerate(value) if (inner := _excluded(item, markers))}
    return {}
