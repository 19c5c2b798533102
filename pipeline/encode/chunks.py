"""Encoding and decoding in calls of bounded size: short clips several at a time, long ones in chunks."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from data.records import Frames
from data.video.codec import decode_chunks
from models.autoencoder.config import CALL_FRAMES, VideoAutoencoderConfig
from models.autoencoder.protocol import VideoAutoencoder
from models.autoencoder.tiling import decode_tiled, encode_tiled, tiling_of
from pipeline.encode.codec import to_frames, to_pixels


def frames_per_call(
    autoencoder: VideoAutoencoderConfig, height: int, width: int, most_frames: int, tile: int | None
) -> int:
    """The most frames of a call for frames of such a size: `most_frames`, or fewer where the autoencoder needs it."""
    side = max(height, width) if tile is None else tile
    return min(most_frames, autoencoder.call_frames(min(height, side), min(width, side)))


def clips_per_call(num_frames: int, most_frames: int) -> int:
    """How many clips of `num_frames` frames one call takes; 1 where a clip is longer than a call."""
    return max(1, most_frames // num_frames)


def pixel_chunks(
    contents: Sequence[bytes | memoryview], num_frames: int, compression: Compression, most_frames: int = CALL_FRAMES
) -> Iterator[Float[Tensor, "b 3 t h w"]]:
    """Decode clips of one shape, a chunk of each at a time, as float in [-1, 1].

    Args:
        contents: MP4 files of `num_frames` frames each.
        most_frames: of a chunk; a clip that has no more is one chunk.

    Raises:
        VideoError: a clip cannot be decoded, or has another number of frames. Raised while iterating.
    """
    lengths = compression.chunk_lengths(num_frames, most_frames)
    for chunk in zip(*(decode_chunks(content, lengths) for content in contents), strict=True):
        yield torch.stack([to_pixels(frames) for frames in chunk])


def reconstructed(
    network: VideoAutoencoder, chunks: Iterable[Float[Tensor, "b 3 t h w"]]
) -> Iterator[tuple[Float[Tensor, "b 3 t h w"], Float[Tensor, "b 3 t h w"]]]:
    """Each chunk of clips, and its reconstruction by the autoencoder."""
    originals, encoded = tee(chunks)
    return zip(originals, network.decode_latents(network.encode_frames(encoded)), strict=True)


def encode_clips(
    network: VideoAutoencoder,
    contents: Sequence[bytes | memoryview],
    bucket: Bucket,
    most_frames: int = CALL_FRAMES,
    tile: int | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Encode clips of one shape; returns the means of their latents, not normalised, on the CPU.

    The memory of the network is that of `most_frames` frames, however long the clips are, and with a `tile` that of
    frames of such a side in pixels, however large they are; the pixels of the clips are then in memory as a whole.

    Raises:
        VideoError: a clip cannot be decoded, or has not the bucket's number of frames.
    """
    device = next(network.parameters()).device
    shape = network.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    most_frames = frames_per_call(network.config, bucket.height, bucket.width, most_frames, tile)
    # Allocated once: chunks that are kept while larger tensors come and go would fragment the heap.
    means, begin = torch.empty(len(contents), *shape), 0
    pixels = (
        chunk.to(device) for chunk in pixel_chunks(contents, bucket.num_frames, network.config.compression, most_frames)
    )
    if tile is not None and max(bucket.height, bucket.width) > tile:
        whole = torch.cat(list(pixels), dim=2)
        return encode_tiled(network, whole, tiling_of(tile, network.config.compression), most_frames).cpu()
    for chunk in network.encode_frames(pixels):
        end = begin + chunk.shape[2]
        means[:, :, begin:end] = chunk
        begin = end
    return means


def encode_pixels(
    network: VideoAutoencoder,
    pixels: Float[Tensor, "b 3 t h w"],
    most_frames: int = CALL_FRAMES,
    tile: int | None = None,
) -> Float[Tensor, "b c i j k"]:
    """Encode clips that are in memory, in [-1, 1]; returns the means of their latents, not normalised.

    The memory of the network is bounded as in `encode_clips`.

    Raises:
        ValueError: the network does not take clips of this shape.
    """
    num_frames, height, width = pixels.shape[2:]
    most_frames = frames_per_call(network.config, height, width, most_frames, tile)
    if tile is not None and max(height, width) > tile:
        return encode_tiled(network, pixels, tiling_of(tile, network.config.compression), most_frames)
    lengths = network.config.compression.chunk_lengths(num_frames, most_frames)
    return torch.cat(list(network.encode_frames(pixels.split(lengths, dim=2))), dim=2)


def decode_clips(
    network: VideoAutoencoder,
    latents: Float[Tensor, "b c t h w"],
    most_frames: int = CALL_FRAMES,
    tile: int | None = None,
) -> list[Frames]:
    """Decode latents that are not normalised; returns their clips.

    Beside the clips themselves, the memory of the network is that of `most_frames` frames, and with a `tile` that of
    frames of such a side in pixels, however large they are.
    """
    compression = network.config.compression
    num_frames = compression.num_frames(latents.shape[2])
    height, width = (compression.spatial_factor * side for side in latents.shape[3:])
    most_frames = frames_per_call(network.config, height, width, most_frames, tile)
    chunk_lengths = compression.chunk_lengths(num_frames, most_frames)
    lengths = [compression.num_latent_frames(length) for length in chunk_lengths]
    if tile is not None and max(height, width) > tile:
        tiling = tiling_of(tile, compression)
        return [to_frames(decode_tiled(network, latent[None], tiling, most_frames)[0]) for latent in latents]
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
