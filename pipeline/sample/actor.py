"""The Ray actor that makes clips: it loads the model once, and writes the files of a batch of requests at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from pipeline.encode.captions import text_tensors
from pipeline.run.shared_files import SHARED, WorkerFiles
from pipeline.sample.captions import RememberedCaptions
from pipeline.sample.config import MP4_ALONE, OutputsConfig, SampleConfig
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import SampledClip
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler, OnProgress
from pipeline.sample.samplers import SamplingProcess
from pipeline.sample.sharing import LostProcessError
from pipeline.sample.writers import ClipWriter, add_all


class SamplerActor:
    """A Ray actor that makes clips.

    Args:
        model_dir, output_dir: absolute.
        num_threads: that compute, in each process that shares the clips.
        outputs: the files to write of each clip.
        files: by which it gets what it reads, and gives clips.
    """

    def __init__(
        self,
        model_dir: Path,
        output_dir: Path,
        config: SampleConfig,
        num_threads: int,
        outputs: OutputsConfig = MP4_ALONE,
        files: WorkerFiles = SHARED,
    ) -> None:
        self._files = files
        files.fetch_folder(model_dir)
        self._process = SamplingProcess(open_model(model_dir), config, num_threads)
        self._output_dir, self._outputs = output_dir, outputs

    def make(self, requests: list[PromptRequest], on_progress: OnProgress | None = None) -> list[SampledClip]:
        """Sample and publish clips of equal shape and settings; returns their lines of the manifest.

        Clips are compressed and written while the network computes the next ones, or the next windows of long ones.

        Args:
            on_progress: where the caller is in this process: as `ClipSampler.stream_group`.
        """
        named = (placed for request in requests for placed in (request.checkpoint, request.weaker))
        for folder in {placed.folder for placed in named if placed is not None}:
            self._files.fetch_folder(Path(folder))
        try:
            clips = self._make(requests, on_progress)
        except LostProcessError:
            os._exit(1)  # as if this process had been killed: the job gives the batch to another actor
        names = [name for clip in clips for name in (*(other.file for other in clip.others), clip.file)]
        self._files.publish(*(self._output_dir / name for name in names))
        return clips

    def _make(self, requests: list[PromptRequest], on_progress: OnProgress | None) -> list[SampledClip]:
        clips: list[Future[list[SampledClip]]] = []
        with self._process.batch(requests) as sampler, ThreadPoolExecutor(max_workers=1) as writer:
            added: Future[None] | None = None
            for group in sampler.groups(requests):
                writers, total = [self._writer(sampler.model, request) for request in group], 0
                for part in sampler.stream_group(group, on_progress):
                    if added is not None:
                        added.result()  # the memory of one group waits, and an error ends the work
                    added, total = writer.submit(add_all, writers, part.frames, part.latents), total + part.calls
                clips.append(writer.submit(self._publish, sampler, writers, total))
            return [clip for published in clips for clip in published.result()]

    def _writer(self, model: SampledModel, request: PromptRequest) -> ClipWriter:
        fps = model.bucket(request.bucket).fps
        return ClipWriter(request, self._outputs, model.named, model.folder, fps)

    def _publish(self, sampler: ClipSampler, writers: Sequence[ClipWriter], calls: int) -> list[SampledClip]:
        read, texts = sampler.read_captions, [{} for _ in writers]
        if "webdataset" in self._outputs.outputs and isinstance(read, RememberedCaptions):
            with torch.inference_mode():
                texts = [text_tensors(read([each.request.prompt]))[0] for each in writers]
        return [each.publish(self._output_dir, calls, text) for each, text in zip(writers, texts, strict=True)]
