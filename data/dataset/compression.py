"""How the shape of a clip and the shape of its latent depend on each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """The strides of a video autoencoder that is causal in time.

    The first frame of a clip has a latent frame of its own; after it every `temporal_factor` frames share one. So a
    clip has `temporal_factor` * k + 1 frames and k + 1 latent frames, and an image is a clip of one frame.
    """

    temporal_factor: int
    """Frames per latent frame, after the first."""
    spatial_factor: int
    """Pixels per latent position, along height and along width."""

    def fits_length(self, num_frames: int) -> bool:
        """Whether a clip may have this many frames."""
        return num_frames >= 1 and num_frames % self.temporal_factor == 1 % self.temporal_factor

    def fits_chunk(self, num_frames: int) -> bool:
        """Whether a chunk after the first of a clip may have this many frames."""
        return num_frames >= 1 and num_frames % self.temporal_factor == 0

    def nearest_lengths(self, num_frames: int) -> tuple[int, int]:
        """The valid clip lengths just below and just above `num_frames`, which is not valid itself."""
        below = max(0, (num_frames - 1) // self.temporal_factor) * self.temporal_factor + 1
        return below, below + self.temporal_factor

    def check_length(self, num_frames: int) -> None:
        """Refuse a length that no clip may have.

        Raises:
            ValueError: names the nearest valid lengths.
        """
        if not self.fits_length(num_frames):
            below, above = self.nearest_lengths(num_frames)
            raise ValueError(
                f"num_frames is {num_frames}, but a clip has {self.temporal_factor}k + 1 frames (the first alone, then "
                f"groups of {self.temporal_factor}): use {below} or {above}"
            )

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip, or of a chunk of one."""
        return -(-num_frames // self.temporal_factor)

    def num_frames(self, num_latent_frames: int) -> int:
        """Frames of a clip with this many latent frames."""
        return self.temporal_factor * (num_latent_frames - 1) + 1

    def latent_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Positions (t, h, w) of the latent of a clip of `height` x `width` pixels.

        Raises:
            ValueError: the number of frames, the height or the width does not fit.
        """
        if not self.fits_length(num_frames) or height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"a clip of {num_frames} frames of {height} x {width} pixels cannot be encoded: "
                f"it takes {self.temporal_factor}k + 1 frames and multiples of {self.spatial_factor} pixels"
            )
        return self.num_latent_frames(num_frames), height // self.spatial_factor, width // self.spatial_factor

    def chunk_lengths(self, num_frames: int, most: int) -> list[int]:
        """Frames of each chunk of a clip, at most `most`: `temporal_factor` * k + 1 in the first, multiples after it.

        Args:
            num_frames: length of the clip.
            most: a multiple of `temporal_factor`.

        Raises:
            ValueError: `num_frames` is not the length of a clip, or `most` is no such multiple.
        """
        if not self.fits_length(num_frames) or not self.fits_chunk(most):
            raise ValueError(
                f"{num_frames} frames cannot be cut into chunks of at most {most}: "
                f"it takes {self.temporal_factor}k + 1 frames and a multiple of {self.temporal_factor}"
            )
        first = min(num_frames, most - self.temporal_factor + 1)
        whole, rest = divmod(num_frames - first, most)
        return [first, *[most] * whole, *([rest] if rest else [])]


COMPRESSION = Compression(temporal_factor=4, spatial_factor=8)
"""Of the autoencoder (`AutoencoderConfig.compression`), and so of every clip that is prepared for it."""
