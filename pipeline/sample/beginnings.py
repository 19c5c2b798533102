"""What a network is told of clips, and what they begin with, read from the files that requests name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.errors import VideoError
from data.files.checksums import file_sha256
from data.records import Frames
from models.autoencoder.protocol import VideoAutoencoder
from models.flow.beginning import Beginning
from models.networks.protocol import Conditions, ImageCondition
from pipeline.encode.codec import to_pixels
from pipeline.sample.clips import read_frames
from pipeline.sample.conditions import Named, Shape, read_mask
from pipeline.sample.given import NOTHING, Given, ImageFile
from pipeline.sample.images import ImageError, condition_channels, first_frame_of, given_latents, read_picture
from pipeline.sample.model import SampledModel
from pipeline.sample.requests import PromptRequest
from pipeline.sample.windows import WHOLE, Window

Pixels = Float[Tensor, "3 t h w"]


@dataclass
class ConditionReader:
    """Reads what requests of one shape and layout are given."""

    model: SampledModel
    autoencoder: VideoAutoencoder
    embed_image: Callable[[UInt8[np.ndarray, "h w 3"]], Tensor] | None
    tile: int | None
    device: torch.device

    def read(
        self, requests: Sequence[PromptRequest], shape: Shape, window: Window = WHOLE, shared: Sequence[Frames] = ()
    ) -> tuple[Conditions, Beginning | None]:
        """What the network is told of a window of clips, and what each begins with; None: with noise alone.

        Args:
            shared: the frames of each that the window shares with the one before.

        Raises:
            ImageError: an image or a clip is missing, or is not what it was when the job was planned.
        """
        fps = torch.tensor([shape.bucket.fps], device=self.device)
        if self.model.network.needs_image:
            return Conditions(fps, image=self._image_condition(requests, shape)), None
        if requests[0].given is not None and requests[0].given.source is not None:
            return Conditions(fps), self._varied(requests, shape)
        named = _named_by(requests[0])
        num_first, num_last = named.given_latents(shape, requests[0].given or NOTHING, window)
        if num_first == num_last == 0:
            return Conditions(fps), None
        latents = torch.zeros(len(requests), *self._latent_shape(shape), device=self.device)
        times = torch.zeros(shape.num_latent, dtype=torch.float64)
        if num_first > 0:
            starts = [to_pixels(frames) for frames in shared] or [self._start(request, shape) for request in requests]
            latents[:, :, :num_first] = self._encoded(starts)
            times[:num_first] = 1
        if num_last > 0:
            ends = self._encoded([self._end(request, shape) for request in requests])
            latents[:, :, -num_last:] = ends[:, :, 1:]  # the first frame is the one before
            times[-num_last:] = 1
        beginning = Beginning(latents, times.to(self.device))
        return Conditions(fps, beginning.known), beginning

    def _latent_shape(self, shape: Shape) -> tuple[int, ...]:
        bucket = shape.bucket
        return self.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)

    def _encoded(self, clips: Sequence[Pixels]) -> Float[Tensor, "b c t i j"]:
        return given_latents(self.autoencoder, self.model.stats, clips, self.tile)

    def _start(self, request: PromptRequest, shape: Shape) -> Pixels:
        """The frames that a clip starts with."""
        given = request.given or NOTHING
        if given.clip is None:
            return first_frame_of(read_picture(_present(request.image)), shape.bucket)
        return to_pixels(read_frames(given.clip, shape.bucket, shape.context_frames(given), at_end=True))

    def _end(self, request: PromptRequest, shape: Shape) -> Pixels:
        """The frames that a clip ends with, after one that stands for all before them; an image is held still."""
        given = request.given or NOTHING
        if given.last_clip is None:
            still = first_frame_of(read_picture(_present(given.last_image)), shape.bucket)
            return still.expand(-1, shape.compression.temporal_factor + 1, -1, -1)
        return to_pixels(read_frames(given.last_clip, shape.bucket, shape.ending_frames(given), at_end=False))

    def _varied(self, requests: Sequence[PromptRequest], shape: Shape) -> Beginning:
        """Clips that are partly noised, and what masks keep of them."""
        givens: list[Given] = [request.given or NOTHING for request in requests]
        num_frames = shape.bucket.num_frames
        clips = [to_pixels(read_frames(_present(g.source), shape.bucket, num_frames, at_end=False)) for g in givens]
        start = 1 - (givens[0].strength or 1.0)
        times = torch.full((shape.num_latent,), start, dtype=torch.float64, device=self.device)
        masks = [self._kept(given.mask, shape) for given in givens if given.mask is not None]
        return Beginning(self._encoded(clips), times, torch.stack(masks).to(self.device) if masks else None)

    def _kept(self, mask: ImageFile, shape: Shape) -> Tensor:
        """What a mask keeps, (1 1 h w)."""
        path = Path(mask.path)
        try:
            if file_sha256(path) != mask.sha256:
                raise ImageError(f"mask {path} has changed since the job began; start it again")
            return torch.from_numpy(read_mask(path, shape.bucket, shape.compression))[None, None]
        except (OSError, VideoError) as error:
            raise ImageError(f"mask {path} cannot be read any more: {error}") from error

    def _image_condition(self, requests: Sequence[PromptRequest], shape: Shape) -> ImageCondition:
        """The first frames as channels, and embeddings of an image encoder."""
        frames, embeddings = [], []
        for request in requests:  # one at a time is in memory at its full size
            picture = read_picture(_present(request.image))
            frames.append(first_frame_of(picture, shape.bucket))
            if self.embed_image is not None:
                embeddings.append(self.embed_image(picture))
        num_frames = shape.bucket.num_frames
        channels = condition_channels(self.autoencoder, self.model.stats, frames, num_frames, self.tile)
        return ImageCondition(channels, torch.cat(embeddings) if embeddings else None)


def _named_by(request: PromptRequest) -> Named:
    given = request.given or NOTHING
    return Named(*(each is not None for each in (request.image, given.clip, given.last_image, given.last_clip)))


def _present(file: ImageFile | None) -> ImageFile:
    """A file of a layout that has it."""
    if file is None:
        raise ValueError("requests that are computed together have to be given the same kinds of files")
    return file
