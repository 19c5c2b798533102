"""The files of a clip, written while its frames are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from data.dataset.latents import LATENT_TENSOR, NOISE_SEED_TENSOR
from data.files.publish import publish_bytes
from data.records import Frames
from data.video.codec import ClipEncoder
from data.video.config import VideoConfig
from data.video.picture_zip import PictureZipEncoder
from data.video.previews import PreviewEncoder
from pipeline.sample.config import OutputFormat, OutputsConfig
from pipeline.sample.outputs import OutputFile, SampledClip, other_name
from pipeline.sample.provenance import NamedCheckpoint, Provenance, without_places
from pipeline.sample.requests import PromptRequest

Encoder = ClipEncoder | PreviewEncoder | PictureZipEncoder


def provenance_of(request: PromptRequest, checkpoint: NamedCheckpoint, video: VideoConfig) -> Provenance:
    """What the MP4 file of a request's clip says of itself."""
    return Provenance(checkpoint=checkpoint, request=without_places(request), video=video.resolved())


def encoder_of(kind: OutputFormat, config: OutputsConfig, fps: float, provenance: Provenance | None) -> Encoder | None:
    """What writes a format; None: it is not made of frames.

    Args:
        provenance: for MP4 files; None: as older versions wrote them, which do not say how they were made.
    """
    match kind:
        case "mp4":
            return ClipEncoder(fps, config.video, {} if provenance is None else provenance.tags())
        case "gif" | "webp":
            return PreviewEncoder(kind, fps, config.preview_side)
        case "frames":
            return PictureZipEncoder()
        case "webdataset":
            return None


@dataclass
class ClipWriter:
    """Collects the frames of one clip, and writes its files.

    Args:
        model_folder: where the checkpoint is.
    """

    request: PromptRequest
    config: OutputsConfig
    checkpoint: NamedCheckpoint
    model_folder: Path
    fps: float

    def __post_init__(self) -> None:
        provenance = provenance_of(self.request, self.checkpoint, self.config.video)
        made = {kind: encoder_of(kind, self.config, self.fps, provenance) for kind in self.config.outputs}
        self._encoders = {kind: encoder for kind, encoder in made.items() if encoder is not None}
        self._latent: Tensor | None = None

    def add(self, frames: Frames, latent: Tensor) -> None:
        """The next frames, and the latent of their window, (c t h w) before normalisation."""
        for encoder in self._encoders.values():
            encoder.add(frames)
        assert self._latent is None, "a clip of several windows has no latent"  # the plan has refused it
        self._latent = latent if "webdataset" in self.config.outputs else None

    def publish(self, folder: Path, num_network_calls: int, text: Mapping[str, Tensor]) -> SampledClip:
        """Write the files, the MP4 file last; returns the clip's line of the manifest.

        Args:
            text: tensors of the prompt's embedding, stored with the latent.
        """
        others = []
        for kind in self.config.outputs:
            if kind == "mp4":
                continue
            if kind == "webdataset":
                assert self._latent is not None
                seed = {NOISE_SEED_TENSOR: torch.tensor([self.request.seed])} if self.request.is_of_noise_alone else {}
                content = save({LATENT_TENSOR: self._latent.contiguous(), **seed, **text})
            else:
                content = self._encoders[kind].finish()
            name = other_name(self.request.file_name, kind)
            publish_bytes(folder / name, content)
            side = self.config.preview_side if kind in ("gif", "webp") else None
            others.append(
                OutputFile(kind=kind, file=name, num_bytes=len(content), sha256=sha256(content).hexdigest(), side=side)
            )
        content = self._encoders["mp4"].finish()
        publish_bytes(folder / self.request.file_name, content)
        return SampledClip(
            file=self.request.file_name,
            request=self.request,
            num_network_calls=num_network_calls,
            sha256=sha256(content).hexdigest(),
            num_bytes=len(content),
            model=self.checkpoint.fingerprint,
            model_folder=str(self.model_folder),
            video=self.config.video.resolved(),
            others=tuple(others),
        )


def add_all(writers: Sequence[ClipWriter], frames: Sequence[Frames], latents: Sequence[Tensor]) -> None:
    """Add a part to the clip of each writer."""
    for writer, part, latent in zip(writers, frames, latents, strict=True):
        writer.add(part, latent)
