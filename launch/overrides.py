"""Overrides from the command line, and validation errors as text."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError

from data.errors import ReelflowError, shorten
from data.records import HIDDEN
from launch.plain_yaml import YamlError, read_plain_yaml

MAX_PROBLEMS = 20
_BRIEF = Repr()  # of values, which may be as large as the file
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, 100, 100, 40


class ConfigError(ReelflowError, ValueError):
    """A configuration that cannot be used; the message names the field, the value and the way out."""


@dataclass(frozen=True)
class Given:
    """The value of a field that has an option of its own, such as --prompts: it is used as it is, not as YAML."""

    key: str  # section.field
    value: Any


Override: TypeAlias = str | Given
"""`section.field=value` of --set, or the value of another option."""


def apply_override(tree: dict[str, Any], override: Override, root: type[BaseModel]) -> None:
    """Set one field in a tree of plain values.

    The value of a field of text or a path is the text itself, so that `my videos #2` is that folder. Text in quotes is
    read as YAML reads it, where it can be; `null`, `~` and nothing are None where the field may be None. Any other
    value is YAML.
    A field that is overridden under an old name loses the value it has under the new one, and the reverse.

    Args:
        root: the record that the tree describes.

    Raises:
        ConfigError: it is not of that form.
    """
    told = f"--set {shorten(override)}" if isinstance(override, str) else override.key
    key, separator, text = (override.key, "=", "") if isinstance(override, Given) else override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{told}: write section.field=value, for example dit.train.steps=2000")
    *sections, field = key.strip().split(".")
    if isinstance(override, Given):
        value = override.value
    else:
        text = text.strip() if key.endswith(" ") else text
        try:
            value = _read_value(told, text, _annotation_at(root, sections, field))
        except YamlError as error:
            raise ConfigError(f"{told}: {error}; quote text that has brackets or colons") from error
    _set(tree, told, [*sections, field], value, root)


def _set(tree: dict[str, Any], told: str, path: list[str], value: Any, root: type[BaseModel]) -> None:  # noqa: ANN401
    *sections, field = path
    node: Any = tree
    for section in sections:
        node = node[_place(told, section, node)] if isinstance(node, list) else node.setdefault(section, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"{told}: {section} is not a section")
    if isinstance(node, list):
        node[_place(told, field, node)] = value
        return
    for record in _records_at(root, sections):
        for name in _other_names(record, field):
            node.pop(name, None)
    node[field] = value


def _read_value(told: str, text: str, annotation: Any) -> Any:  # noqa: ANN401 - a type of a field, and a value of it
    kinds = choices_in(annotation)
    if not kinds & {str, Path}:
        return read_plain_yaml(text, whole=True)
    is_null = text in ("", "null") or (text == "~" and NoneType in kinds)
    if is_null and (NoneType in kinds or text == ""):
        return None
    stripped = text.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\"":
        with suppress(YamlError):  # such as "a" and "b", which is text that begins and ends with quotes
            return read_plain_yaml(stripped, whole=True)
    if text != stripped:
        raise ConfigError(f"{told}: the value begins or ends with white space; leave it out, or put the text in quotes")
    return text


def choices_in(annotation: Any) -> set[Any]:  # noqa: ANN401 - a type
    """The types that a type expression lets one choose from, without what `Annotated` adds to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return choices_in(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {choice for part in get_args(annotation) for choice in choices_in(part)}
    return {annotation}


def _annotation_at(root: type[BaseModel], sections: Sequence[str], name: str) -> Any:  # noqa: ANN401 - a type
    """The type of a field, under whatever of its names; None where there is no such field."""
    for record in _records_at(root, sections):
        for field_name, field in record.model_fields.items():
            if name == field_name or field_name in _other_names(record, name):
                return field.annotation
    return None


def _other_names(record: type[BaseModel], name: str) -> set[str]:
    """The other names, old and new, of the field that is called `name`."""
    for field_name, field in record.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            names = {field_name, *(str(choice) for choice in field.validation_alias.choices)}
            if name in names:
                return names - {name}
    return set()


def _place(told: str, number: str, items: list[Any]) -> int:
    if not number.isdecimal() or len(number) > 9 or int(number) >= len(items):
        raise ConfigError(f"{told}: {shorten(number)!r} must be a number below {len(items)}, counted from 0")
    return int(number)


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> str:
    """A line for each of the first `MAX_PROBLEMS` problems: field, value, and the nearest valid key or value."""
    lines = []
    problems = error.errors()
    for problem in problems[:MAX_PROBLEMS]:
        location = shorten(".".join(_as_written(root, problem["loc"])))
        if problem["type"] == "extra_forbidden":
            known = [name for record in _records_at(root, problem["loc"][:-1]) for name in record.model_fields]
            close = difflib.get_close_matches(shorten(str(problem["loc"][-1])), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            lines.append(f"{location}: there is no such field; {hint}")
            continue
        message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
        if problem["type"] == "union_tag_invalid":
            location += f".{next(iter(single_values(_records_at(root, problem['loc'])[0])))}"
            tags = problem.get("ctx", {})
            message, value = f"input should be {tags.get('expected_tags')}", tags.get("tag")
        message = shorten(message[:1].lower() + message[1:], 1000)
        hidden = isinstance(value, dict | BaseModel) or problem["type"] == HIDDEN
        shown = "" if hidden else f" (it is {shorten(_BRIEF.repr(value), 200)})"
        lines.append(f"{location or 'config'}: {message}{shown}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} more")
    return f"{source} cannot be used:" + "".join(f"\n  {line}" for line in lines)


def records_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type expression
    """The records that occur in a type expression."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [record for part in get_args(annotation) for record in records_in(part)]
    return list(dict.fromkeys(found))


def _records_at(root: type[BaseModel], location: Sequence[int | str]) -> list[type[BaseModel]]:
    """The records that may be at a place of the tree, through lists, mappings and what may be missing.

    Several where a field says which of them it is; pydantic puts the value of that field into the location.
    """
    records = [root]
    for part in location:
        records = _next_records(records, part)
    return records


def _next_records(records: list[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    """One step of `_records_at`."""
    fields = [record.model_fields[str(part)] for record in records if part in record.model_fields]
    if fields:
        return list(dict.fromkeys(record for field in fields for record in records_in(field.annotation)))
    return (
        [record for record in records if part in single_values(record).values()] if _is_tag(records, part) else records
    )


def _is_tag(records: list[type[BaseModel]], part: int | str) -> bool:
    """Whether a part of a location only says which of several records is meant."""
    return len(records) > 1 and any(part in single_values(record).values() for record in records)


def single_values(record: type[BaseModel]) -> dict[str, Any]:
    """The fields of a record that can have one value only, by which the records of a union are told apart."""
    values = {name: get_args(field.annotation) for name, field in record.model_fields.items()}
    return {name: value[0] for name, value in values.items() if len(value) == 1 and isinstance(value[0], str)}


def _as_written(root: type[BaseModel], location: Sequence[int | str]) -> Iterator[str]:
    """The parts of a location that a user writes: those that only tell records apart are left out."""
    records = [root]
    for part in location:
        if not _is_tag(records, part):
            yield str(part)
        records = _next_records(records, part)
