"""Clips through the autoencoder in calls of bounded size: short ones several at a time, long ones in chunks."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.dataset.buckets import Bucket
from data.records import Frames
from data.video.codec import decode_chunks
from models.autoencoder.model import Autoencoder
from models.autoencoder.shapes import SPATIAL_FACTOR, chunk_lengths, latent_shape, num_latent_frames, num_pixel_frames
from pipeline.encode.codec import to_frames, to_pixels
from pipeline.encode.config import CALL_FRAMES


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


def encode_clips(
    network: Autoencoder, contents: Sequence[bytes | memoryview], bucket: Bucket, most_frames: int = CALL_FRAMES
) -> Float[Tensor, "b c t h w"]:
    """Means of the latents of some clips of one shape, on the CPU, in the memory of `most_frames` in the network.

    Raises:
        VideoError: a clip cannot be decoded, or is not of the bucket's length.
    """
    device = next(network.parameters()).device
    shape = latent_shape(network.config, bucket.num_frames, bucket.height, bucket.width)
    # Filled as they come: pieces, kept while larger tensors come and go, would lie scattered over a growing heap.
    means, begin = torch.empty(len(contents), *shape), 0
    pixels = (chunk.to(device) for chunk in pixel_chunks(contents, bucket.num_frames, most_frames))
    for chunk in network.encode_frames(pixels):
        end = begin + chunk.shape[2]
        means[:, :, begin:end] = chunk
        begin = end
    return means


def decode_clips(
    network: Autoencoder, latents: Float[Tensor, "b c t h w"], most_frames: int = CALL_FRAMES
) -> list[Frames]:
    """What latents show, clip by clip, in the memory of the clips themselves and of `most_frames` in the network."""
    num_frames = num_pixel_frames(latents.shape[2])
    height, width = (SPATIAL_FACTOR * side for side in latents.shape[3:])
    lengths = [num_latent_frames(length) for length in chunk_lengths(num_frames, most_frames)]
    clips = np.empty((len(latents), num_frames, height, width, 3), np.uint8)
    size = clips_per_call(num_frames, most_frames)
    for first in range(0, len(latents), size):
        begin = 0
        for pixels in network.decode_latents(latents[first : first + size].split(lengths, dim=2)):
            end = begin + pixels.shape[2]
            for clip, shown in zip(clips[first : first + size], pixels, strict=True):
                clip[begin:end] = to_frames(shown)
            begin = end
    return list(clips)
