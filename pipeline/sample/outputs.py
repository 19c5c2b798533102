"""The manifest of a folder of sampled clips."""

from pathlib import Path

from data.files.jsonl import read_jsonl
from data.records import Record
from pipeline.report.figures import GalleryClip
from pipeline.sample.requests import PromptRequest

SAMPLES_NAME = "manifest.jsonl"


class SampledClip(Record):
    """One line of manifest.jsonl."""

    file: str  # name in the samples folder
    request: PromptRequest
    num_network_calls: int  # of the batch that the clip was sampled in

    def shown(self, right: bool | None = None) -> GalleryClip:
        """The clip as pages show it.

        Args:
            right: the judge's verdict, where there is one.
        """
        return GalleryClip(self.file, self.request.prompt, self.request.seed, self.request.guidance_scale, right)


def read_samples(output_dir: Path) -> list[SampledClip]:
    """The clips that the manifest of a samples folder lists; none where there is no manifest.

    Raises:
        JsonLineError: a line is damaged.
    """
    return read_jsonl(output_dir / SAMPLES_NAME, SampledClip)
