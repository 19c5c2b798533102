"""Clips that are sampled in this process, as the actors of a job sample them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files.jsonl import publish_jsonl
from pipeline.sample.actor import SamplerActor
from pipeline.sample.batches import batches_of
from pipeline.sample.config import MP4_ALONE, OutputsConfig, SampleConfig
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.plan import Plan
from pipeline.sample.prompts import PlacedPrompt, Prompt

SETTINGS = SampleConfig(solver="euler", steps=2, precision="fp32")


@dataclass(frozen=True)
class Sampled:
    """Clips in a folder, and the model that made them."""

    folder: Path
    model: SampledModel
    clips: list[SampledClip]


def sample(
    folder: Path, model_dir: Path, prompts: Sequence[Prompt], outputs: OutputsConfig = MP4_ALONE, batch: int = 4
) -> Sampled:
    """Sample prompts into a folder; its manifest lists them in the order in which they are made."""
    folder.mkdir(exist_ok=True, parents=True)
    model = open_model(model_dir)
    placed = [PlacedPrompt(f"row {number}", prompt) for number, prompt in enumerate(prompts)]
    requests = list(Plan(model, SETTINGS, placed, 0, outputs=outputs))
    actor = SamplerActor(model.folder.resolve(), folder, SETTINGS, 1, outputs)
    clips = [clip for some in batches_of(requests, batch) for clip in actor.make(some)]
    publish_jsonl(folder / SAMPLES_NAME, clips)
    return Sampled(folder, model, clips)
