"""The images that clips start from: what is asked of a model, and what its network is given of them.

Most networks are given the first latent frame itself: the autoencoder is causal, so the first latent frame of a clip
is that of its first frame alone. The networks of Wan 2.1 for image to video get it by channels of their own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats
from data.errors import ReelflowError, VideoError, shorten
from data.files.checksums import file_sha256
from data.video.images import read_image
from data.video.resize import resize_and_crop
from models.autoencoder.protocol import VideoAutoencoder
from models.flow.spec import SolverName
from pipeline.encode.chunks import encode_pixels
from pipeline.encode.codec import to_pixels
from pipeline.encode.statistics import normalize
from pipeline.sample.given import ImageFile
from pipeline.sample.model import SampledModel
from pipeline.sample.prompts import Prompt, PromptError


class ImageError(ReelflowError, ValueError):
    """An image or a clip that went away or changed after the job was planned."""


def check_image(model: SampledModel, prompt: Prompt, bucket: Bucket, solver: SolverName) -> None:
    """Refuse a prompt with an image that the model cannot start from, and one without an image that it needs.

    Args:
        bucket: its shape.
        solver: that it is sampled with.

    Raises:
        PromptError: names the way out.
    """
    named = f"prompt {shorten(prompt.prompt, 60)!r}"
    if prompt.image is None:
        if model.network.needs_image:
            raise PromptError(
                f"{named} names no image, but {model.folder} makes clips that start from one: name an image for "
                "each prompt, in the column image of a prompts file such as prompts.jsonl"
            )
        return
    has_end = prompt.last_image is not None or prompt.last_clip is not None  # for which training has other shares
    if model.image_refusal is not None and not has_end:
        raise PromptError(f"{named} names an image, but {model.image_refusal}, or leave the column image out")
    if bucket.num_frames == 1:
        raise PromptError(
            f"{named} names an image, but its bucket is {bucket.name}, a single frame, of which nothing would be "
            "left to sample: name a bucket of more frames"
        )
    if solver == "dopri5" and not model.network.needs_image:
        raise PromptError(
            f"{named} names an image, which is at a time of its own, but the solver dopri5 takes one time for all "
            "frames: use one of fixed steps, such as heun"
        )


def read_picture(image: ImageFile) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image.

    Raises:
        ImageError: it is missing, damaged or not what it was when the job was planned.
    """
    path = Path(image.path)
    try:
        if file_sha256(path) != image.sha256:
            raise ImageError(f"image {path} has changed since the job began; start it again")
        return read_image(path)
    except (OSError, VideoError) as error:
        raise ImageError(f"image {path} cannot be read any more: {error}") from error


def first_frame_of(picture: UInt8[np.ndarray, "i j 3"], bucket: Bucket) -> Float[Tensor, "3 1 h w"]:
    """A picture as the first frame of clips of that shape: resized and cropped as videos are, in [-1, 1]."""
    return to_pixels(resize_and_crop(picture[None], bucket.height, bucket.width))


def given_latents(
    autoencoder: VideoAutoencoder, stats: LatentStats, clips: Sequence[Float[Tensor, "3 t h w"]], tile: int | None
) -> Float[Tensor, "b c s i j"]:
    """The normalised latents of frames of one number, each clip encoded by itself: it depends on no other."""
    device = next(autoencoder.parameters()).device
    latents = [encode_pixels(autoencoder, clip[None].to(device), tile=tile) for clip in clips]
    return normalize(torch.cat(latents).float(), stats)


def condition_channels(
    autoencoder: VideoAutoencoder,
    stats: LatentStats,
    frames: Sequence[Float[Tensor, "3 1 h w"]],
    num_frames: int,
    tile: int | None,
) -> Float[Tensor, "b k t i j"]:
    """What Wan 2.1 adds to the channels of x_t (Wan team 2025, section 5.1): a mask, and latents.

    The mask says of each frame whether it is given, in a channel for each of the frames that share a latent frame; that
    of the first has them all. The latents are those of the first frame, followed by frames of zeros, normalised.

    Args:
        num_frames: of the clips.
    """
    device, conditions = next(autoencoder.parameters()).device, []
    factor = autoencoder.config.compression.temporal_factor
    for frame in frames:
        rest = frame.new_zeros(3, num_frames - 1, *frame.shape[2:])
        pixels = torch.cat([frame, rest], dim=1)[None].to(device)
        latents = normalize(encode_pixels(autoencoder, pixels, tile=tile).float(), stats)
        is_first = (torch.arange(latents.shape[2], device=device) == 0).to(latents)
        mask = repeat(is_first, "t -> 1 k t i j", k=factor, i=latents.shape[3], j=latents.shape[4])
        conditions.append(torch.cat([mask, latents], dim=1))
    return torch.cat(conditions)
