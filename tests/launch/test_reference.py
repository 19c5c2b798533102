"""The generated reference page and schema are those of the source, and say something of every field."""

import json
import re
from pathlib import Path

from pydantic import BaseModel

from data.records import Settings
from launch.config import RunConfig
from launch.overrides import records_in
from launch.reference import PAGE, SCHEMA, render_page, render_schema


def settings_records() -> set[type[BaseModel]]:
    """Every record that a configuration may hold."""
    found, waiting = set(), [RunConfig]
    while waiting:
        record = waiting.pop()
        if record not in found:
            found.add(record)
            for field in record.model_fields.values():
                waiting += records_in(field.annotation)
    return found


def test_the_page_and_the_schema_are_current():
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run `python -m launch.reference`"
    assert SCHEMA.read_text(encoding="utf-8") == render_schema(), "run `python -m launch.reference`"


def test_every_field_has_a_row_and_a_sentence():
    page = render_page()
    records = settings_records()
    assert len(records) > 20
    assert all(issubclass(record, Settings) for record in records)
    for record in records:
        for name, field in record.model_fields.items():
            assert field.description, f"{record.__name__}.{name} has no docstring"
            assert re.match(r"^[A-Z`].{8,}[.:)]$", field.description.strip(), re.DOTALL), (record.__name__, name)
            assert re.search(rf"[`.]{name}(`|$|\.|\n)", page, re.MULTILINE), f"{record.__name__}.{name} is not shown"


def test_the_schema_names_the_sections_and_refuses_unknown_fields():
    schema = json.loads(render_schema())
    assert {"name", "seed", "data", "autoencoder", "encode", "dit", "sample", "evaluate", "cluster"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False
    assert Path(SCHEMA).suffix == ".json"
