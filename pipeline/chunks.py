"""Clips through the autoencoder in calls of bounded size: short ones several at a time, long ones in chunks."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.video import Frames, decode_chunks
from models.autoencoder import Autoencoder, chunk_lengths, num_latent_frames, num_pixel_frames
from pipeline.train_autoencoder import to_frames, to_pixels

CALL_FRAMES = 512  # of pixels, in one call; more gain no speed


def clips_per_call(num_frames: int, most_frames: int) -> int:
    """How many clips of so many frames go through the autoencoder together: 1 if it has to go in chunks."""
    return max(1, most_frames // num_frames)


def pixel_chunks(
    contents: Sequence[bytes | memoryview], num_frames: int, most_frames: int = CALL_FRAMES
) -> Iterator[Float[Tensor, "b 3 t h w"]]:
    """Clips of one shape, decoded a chunk at a time; in one chunk, if they have no more than `most_frames`.

    Raises:
        VideoError: on the way: one cannot be decoded, or has another number of frames.
    """
    lengths = chunk_lengths(num_frames, most_frames)
    for chunk in zip(*(decode_chunks(content, lengths) for content in contents), strict=True):
        yield torch.stack([to_pixels(frames) for frames in chunk])


def reconstructed(
    network: Autoencoder, chunks: Iterable[Float[Tensor, "b 3 t h w"]]
) -> Iterator[tuple[Float[Tensor, "b 3 t h w"], Float[Tensor, "b 3 t h w"]]]:
    """Each chunk of clips, and what the autoencoder makes of it."""
    originals, encoded = tee(chunks)
    return zip(originals, network.decode_latents(network.encode_frames(encoded)), strict=True)


def decode_clips(
    network: Autoencoder, latents: Float[Tensor, "b c t h w"], most_frames: int = CALL_FRAMES
) -> list[Frames]:
    """What latents show, clip by clip, in the memory of the clips themselves and of `most_frames` in the network."""
    num_frames = num_pixel_frames(latents.shape[2])
    lengths = [num_latent_frames(length) for length in chunk_lengths(num_frames, most_frames)]
    clips = []
    for together in latents.split(clips_per_call(num_frames, most_frames)):
        chunks = network.decode_latents(together.split(lengths, dim=2))
        parts = [[to_frames(clip) for clip in pixels] for pixels in chunks]
        clips += [np.concatenate(clip) for clip in zip(*parts, strict=True)]
    return clips
