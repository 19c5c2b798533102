"""The configuration reference page and the JSON schema for editors, generated from the fields' docstrings.

`python -m launch.reference` writes both; a test says whether they are current.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from data.records import Layout, Runtime
from launch.config import RunConfig
from launch.overrides import choices_in, records_in, single_values

DOCS_DIR = Path(__file__).resolve().parent.parent / "docs" / "reference"
PAGE, SCHEMA = DOCS_DIR / "configuration.md", DOCS_DIR / "configuration.schema.json"
HEAD = """# Configuration

Generated from the source by `python -m launch.reference`; do not edit.

A configuration is a YAML file with these sections. A key that is there twice, numbers in base 8 (`0100`) or 60
(`1:30`), dates, and files of more than 50 levels or 100,000 values are refused with their line. Only `true` and `false`
are truth values. Numbers are finite.

`--set section.field=value` overrides a field. The value of a text or path is used as it is given, `#` and all; in
quotes it is read as YAML reads it, and where the field may be none, `null`, `~` and nothing mean none. Other values are
YAML. A path that begins with `~` is in the home folder. `--dry-run` shows the resolved configuration and the plan.
Editors complete and check a file whose first line is `# yaml-language-server: $schema=PATH`, with the path of
[the schema](configuration.schema.json).

The column *changes* says what a change of the field means: **output**: what was made with another value is made again;
**grouping**: the same samples lie in other shards; *nothing* for how the work is done: what is there stays valid.
"""


def render_page() -> str:
    """The reference page, as Markdown."""
    return HEAD + "".join(_sections(RunConfig, "", {}))


def render_schema() -> str:
    """The JSON schema of a configuration file."""
    schema = _without_section_defaults(RunConfig.model_json_schema())
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def _without_section_defaults(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A schema without the defaults of whole sections: each field has its own."""
    if isinstance(value, dict):
        return {
            key: _without_section_defaults(item)
            for key, item in value.items()
            if not (key == "default" and isinstance(item, dict))
        }
    return [_without_section_defaults(item) for item in value] if isinstance(value, list) else value


def _sections(
    model: type[BaseModel], path: str, described: dict[type[BaseModel], str], kind: str = ""
) -> Iterator[str]:
    """A table of the fields of a section, then the sections within it.

    Args:
        path: of the section, such as `dit.train`; empty for the whole file.
        described: the records that have a section, and its path; those that follow refer to it.
        kind: ends the heading, where a section may be one of several records.
    """
    yield f"\n## {path or 'the file'}{kind}\n\n{_summary(model)}\n"
    base = next((known for known in model.__mro__[1:] if known in described), None)
    if base is not None:
        yield f"\nIt has every field of [{described[base]}](#{described[base].replace('.', '')}), and these.\n"
    described[model] = path
    fields = {
        name: field for name, field in model.model_fields.items() if base is None or name not in base.model_fields
    }
    rows = [_row(f"{path}.{name}".lstrip("."), field) for name, field in fields.items() if not _is_section(field)]
    if rows:
        yield "\n| field | values | default | changes | meaning |\n|---|---|---|---|---|\n"
        yield from rows
    for name, field in fields.items():
        place = f"{path}.{name}".lstrip(".")
        for number, record in enumerate(records_in(field.annotation)):
            if record in described:
                yield f"\n## {place}\n\nThe fields of [{described[record]}](#{described[record].replace('.', '')}).\n"
            else:
                kind = f" ({', '.join(single_values(record).values())})" if number and _is_section(field) else ""
                yield from _sections(record, place, described, kind)


def _is_section(field: FieldInfo) -> bool:
    """Whether a field is a record, maybe one of several kinds, not a list of them and not optional."""
    return all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in choices_in(field.annotation))


def _row(path: str, field: FieldInfo) -> str:
    markers = field.metadata
    changes = "nothing" if Runtime in markers else "grouping" if Layout in markers else "output"
    meaning = " ".join((field.description or "").split())
    return f"| `{path}` | {_values(field)} | {_default(field)} | {changes} | {_cell(meaning)} |\n"


def _values(field: FieldInfo) -> str:
    """The type and the range of a field."""
    kinds = _cell(_type_name(field.annotation))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of", "min_length": "length ≥"}
    bounds = [
        f"{sign} {value}"
        for item in field.metadata
        for key, sign in signs.items()
        if (value := getattr(item, key, None)) is not None
    ]
    return ", ".join([kinds, *bounds])


def _type_name(annotation: Any) -> str:  # noqa: ANN401 - any type expression
    """A type in words: `a` or `b`, list of int, none."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in parts)
    if origin is tuple:
        items = [_type_name(part) for part in parts if part is not Ellipsis]
        return f"list of {items[0]}" if Ellipsis in parts else f"[{', '.join(items)}]"
    if origin is dict:
        return f"mapping of names to {_type_name(parts[1])}"
    if annotation is NoneType:
        return "none"
    if issubclass(annotation, BaseModel):
        return f"section ({annotation.__name__})"
    name: str = annotation.__name__
    return {"str": "text", "Path": "path", "bool": "true or false"}.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return "one, of default fields" if len(value) == 1 else f"{len(value)}"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"`{_cell(json.dumps(value) if isinstance(value, tuple | dict) else str(value))}`"


def _summary(model: type[BaseModel]) -> str:
    """The first sentence or paragraph of a record's docstring."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write both files."""
    DOCS_DIR.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render_page(), encoding="utf-8")
    SCHEMA.write_text(render_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
