"""Encoding and decoding of large frames in tiles that overlap and are blended, in the memory of one tile.

A tile sees nothing beyond its edges, so near them it differs from the whole frame. Where all layers have a finite reach
and `margin` is at least that, no such value is used, and the result is that of the whole frame up to rounding. The
attention of Wan's autoencoders sees a whole tile in place of a whole frame: their tiles differ by that, and blending
hides the seams.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from data.dataset.compression import Compression
from models.autoencoder.protocol import VideoAutoencoder


@dataclass(frozen=True)
class Tiling:
    """Size of the tiles, in latent positions.

    Raises:
        ValueError: the sizes do not fit together.
    """

    side: int = 32
    """Height and width of a tile; a shorter side of a frame is not divided."""
    overlap: int = 8
    """Positions that neighbours share at least."""
    margin: int = 0
    """Positions next to an edge inside the frame that are computed but not used, at both sides of an overlap."""

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.margin < self.overlap < self.side:
            raise ValueError(
                f"tiles of side {self.side} with overlap {self.overlap} and margin {self.margin} cannot be blended: "
                "the overlap must be longer than two margins and shorter than the side"
            )


def tiling_of(side_pixels: int, compression: Compression) -> Tiling:
    """Tiles of a side in pixels, which overlap by a quarter of it."""
    side = side_pixels // compression.spatial_factor
    return Tiling(side=side, overlap=max(1, side // 4))


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """Where the fewest tiles start that cover a length: the first at 0, the last at its end, in nearly equal steps.

    Args:
        side: of a tile; one that is not shorter than the length covers it alone.
        overlap: positions that neighbours share at least; less than `side`.
    """
    room = length - side  # for the starts
    if room <= 0:
        return [0]
    num_steps = -(-room // (side - overlap))
    return [room * step // num_steps for step in range(num_steps + 1)]


def blend_weights(length: int, tiling: Tiling, scale: int = 1) -> list[tuple[int, Float[Tensor, " side"]]]:
    """The tiles along an axis: the start of each and the weights of its values, which add up to 1 at each position.

    Weights rise linearly from each edge inside the frame, behind its margin.

    Args:
        length: of the axis, in latent positions.
        scale: values per latent position; the weights are of values, the starts are in latent positions.
    """
    starts, side = tile_starts(length, tiling.side, tiling.overlap), min(length, tiling.side)
    margin, ramp = scale * tiling.margin, scale * (tiling.overlap - 2 * tiling.margin)
    rise = ((torch.arange(scale * side) + 0.5 - margin) / ramp).clamp(0, 1)
    total, tiles = torch.zeros(scale * length), []
    for start in starts:
        weights = torch.ones(scale * side)
        if start > 0:
            weights = weights * rise
        if start + side < length:
            weights = weights * rise.flip(0)
        total[scale * start : scale * (start + side)] += weights
        tiles.append((start, weights))
    return [(start, weights / total[scale * start : scale * (start + side)]) for start, weights in tiles]


def encode_tiled(
    network: VideoAutoencoder, pixels: Float[Tensor, "b 3 t h w"], tiling: Tiling, most_frames: int
) -> Float[Tensor, "b c s i j"]:
    """The latent means of clips, without gradients, tile by tile and in chunks of at most `most_frames` frames.

    Raises:
        ValueError: the clips cannot be encoded, or `most_frames` is no multiple of the temporal stride.
    """
    num_frames, height, width = pixels.shape[2:]
    latents = pixels.new_zeros(len(pixels), *network.config.latent_shape(num_frames, height, width))
    compression = network.config.compression
    lengths = compression.chunk_lengths(num_frames, most_frames)
    _add_tiles(latents, pixels, lengths, network.encode_frames, tiling, scales=(compression.spatial_factor, 1))
    return latents


def decode_tiled(
    network: VideoAutoencoder, latents: Float[Tensor, "b c t h w"], tiling: Tiling, most_frames: int
) -> Float[Tensor, "b 3 s i j"]:
    """The pixels of latents, without gradients, tile by tile and in chunks of at most `most_frames` frames.

    Raises:
        ValueError: `most_frames` is no multiple of the temporal stride.
    """
    compression = network.config.compression
    num_frames, factor = compression.num_frames(latents.shape[2]), compression.spatial_factor
    lengths = [compression.num_latent_frames(n) for n in compression.chunk_lengths(num_frames, most_frames)]
    pixels = latents.new_zeros(len(latents), 3, num_frames, *(factor * side for side in latents.shape[3:]))
    _add_tiles(pixels, latents, lengths, network.decode_latents, tiling, scales=(1, factor))
    return pixels


def _add_tiles(
    out: Float[Tensor, "b d s i j"],
    x: Float[Tensor, "b c t h w"],
    lengths: list[int],
    run: Callable[[Iterable[Tensor]], Iterator[Tensor]],
    tiling: Tiling,
    scales: tuple[int, int],
) -> None:
    """Add each tile of `x`, passed through `run` in chunks of `lengths` frames, to its place in `out`.

    All chunks of a tile follow one another, since what layers keep of the frames before is as large as a tile.

    Args:
        scales: values per latent position of `x` and of `out`.
    """
    scale, out_scale = scales
    height, width = (side // scale for side in x.shape[3:])
    rows, columns = (blend_weights(length, tiling, out_scale) for length in (height, width))
    for (top, row), (left, column) in product(rows, columns):
        part = x[:, :, :, scale * top :, scale * left :][..., : scale * tiling.side, : scale * tiling.side]
        place = out[:, :, :, out_scale * top :, out_scale * left :][..., : len(row), : len(column)]
        weights = (rearrange(row, "h -> h 1") * column).to(out)
        begin = 0
        for chunk in run(part.split(lengths, dim=2)):
            end = begin + chunk.shape[2]
            place[:, :, begin:end] += chunk * weights
            begin = end
