"""What a samples folder holds."""

import json
from pathlib import Path

from data.records import Record
from pipeline.sample.requests import PromptRequest

SAMPLES_NAME = "manifest.jsonl"


class SampledClip(Record):
    """One line of manifest.jsonl."""

    file: str
    request: PromptRequest
    num_network_calls: int


def read_samples(output_dir: Path) -> list[SampledClip]:
    """The lines of a samples folder's manifest; none where there is no manifest."""
    path = output_dir / SAMPLES_NAME
    if not path.is_file():
        return []
    return [SampledClip(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
