"""Shape arithmetic of the autoencoder: frames and pixels to latents and back."""

from models.autoencoder.config import AutoencoderConfig

TEMPORAL_FACTOR = 4
SPATIAL_FACTOR = 8


def latent_shape(config: AutoencoderConfig, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Shape (c, t, h, w) of the latent of a clip.

    Raises:
        ValueError: the clip is not 4k + 1 frames of multiples of 8 pixels.
    """
    if num_frames % TEMPORAL_FACTOR != 1 or height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise ValueError(
            f"a clip of {num_frames} frames of {height} x {width} pixels cannot be encoded: "
            f"it takes {TEMPORAL_FACTOR}k + 1 frames and multiples of {SPATIAL_FACTOR} pixels"
        )
    return (
        config.latent_channels,
        (num_frames - 1) // TEMPORAL_FACTOR + 1,
        height // SPATIAL_FACTOR,
        width // SPATIAL_FACTOR,
    )


def chunk_lengths(num_frames: int, most: int) -> list[int]:
    """Frames of each chunk of a clip, none above `most`: 4k + 1 in the first, multiples of 4 in the others.

    Args:
        num_frames: of the clip, 4k + 1.
        most: a multiple of 4.

    Raises:
        ValueError: either is of another form.
    """
    if num_frames % TEMPORAL_FACTOR != 1 or most % TEMPORAL_FACTOR or most < TEMPORAL_FACTOR:
        raise ValueError(
            f"{num_frames} frames cannot be cut into chunks of at most {most}: "
            f"it takes {TEMPORAL_FACTOR}k + 1 frames and a multiple of {TEMPORAL_FACTOR}"
        )
    first = min(num_frames, most - TEMPORAL_FACTOR + 1)
    whole, rest = divmod(num_frames - first, most)
    return [first, *[most] * whole, *([rest] if rest else [])]


def num_latent_frames(num_frames: int) -> int:
    """Latent frames of a clip or a chunk: the first frame of a clip stands alone, the others come in fours."""
    return -(-num_frames // TEMPORAL_FACTOR)


def num_pixel_frames(num_latents: int) -> int:
    """Frames of a clip of so many latent frames."""
    return TEMPORAL_FACTOR * (num_latents - 1) + 1
