"""Overrides from the command line, and validation errors as text."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ValidationError

from data.errors import ReelflowError


class ConfigError(ReelflowError, ValueError):
    """A configuration that cannot be used; the message names the field, the value and the way out."""


def apply_override(tree: dict[str, Any], override: str, root: type[BaseModel]) -> None:
    """Set one `section.field=value` in a tree of plain values; the value is read as YAML.

    A field that is overridden under an old name loses the value it has under the new one, and the reverse.

    Args:
        root: the record that the tree describes.

    Raises:
        ConfigError: it is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write section.field=value, for example dit.train.steps=2000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not YAML; quote text that has brackets or colons") from error
    *sections, field = key.strip().split(".")
    node: Any = tree
    for section in sections:
        node = node[_place(override, section, node)] if isinstance(node, list) else node.setdefault(section, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {section} is not a section")
    if isinstance(node, list):
        node[_place(override, field, node)] = value
        return
    for name in _other_names(_record_at(root, sections), field):
        node.pop(name, None)
    node[field] = value


def _other_names(record: type[BaseModel] | None, name: str) -> set[str]:
    """The other names, old and new, of the field that is called `name`."""
    for field_name, field in ({} if record is None else record.model_fields).items():
        if isinstance(field.validation_alias, AliasChoices):
            names = {field_name, *(str(choice) for choice in field.validation_alias.choices)}
            if name in names:
                return names - {name}
    return set()


def _place(override: str, number: str, items: list[Any]) -> int:
    if not number.isdecimal() or int(number) >= len(items):
        raise ConfigError(f"--set {override}: {number!r} must be a number below {len(items)}, counted from 0")
    return int(number)


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> str:
    """Every problem on a line: field, value, and the nearest valid key or value."""
    lines = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            record = _record_at(root, problem["loc"][:-1])
            known = [] if record is None else list(record.model_fields)
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            lines.append(f"{location}: there is no such field; {hint}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        value = problem["input"]
        shown = "" if isinstance(value, dict | BaseModel) else f" (it is {value!r})"
        lines.append(f"{location or 'config'}: {message}{shown}")
    return f"{source} cannot be used:" + "".join(f"\n  {line}" for line in lines)


def _record_at(root: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The record at a place of the tree, through lists, mappings and what may be missing."""
    model: Any = root
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        while not (isinstance(model, type) and issubclass(model, BaseModel)):
            inner = [kind for kind in get_args(model) if kind not in (type(None), ...)]
            if not inner:
                return None
            model = inner[-1]
    return model
