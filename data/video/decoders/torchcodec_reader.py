"""torchcodec as the decoder of source videos, where it is installed: exact, also about edit lists."""

from collections.abc import Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

from data.video.decoders.timeline import Frame, Timeline, UnfitDecoderError
from data.video.probe import Probe
from data.video.resize import Size


@lru_cache(maxsize=1)
def has_torchcodec() -> bool:
    """Whether torchcodec is installed and finds FFmpeg's libraries."""
    if find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports] - optional
    except (ImportError, OSError, RuntimeError):  # FFmpeg's libraries are missing or of an unsupported version
        return False
    return True


def torchcodec_timeline(path: Path, probe: Probe) -> Timeline | None:
    """Frames read by torchcodec at their own size; None if it may read the file wrongly or is not installed."""
    if not (probe.suits_torchcodec and has_torchcodec()):
        return None
    return Timeline(probe.times_seconds, partial(_read, path, probe), "torchcodec")


def _read(path: Path, probe: Probe, indices: list[int], size: Size | None = None) -> Iterator[Frame]:  # noqa: ARG001 - of the interface
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports] - optional

    try:
        decoder = VideoDecoder(
            str(path.resolve()),
            stream_index=probe.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )
        for index in indices:
            # Each frame is asked for at the middle of the time it is shown, so that rounding does not matter.
            following = probe.ticks[index + 1] if index + 1 < len(probe.ticks) else probe.ticks[index] + 1
            middle = (probe.ticks[index] + following) / 2 * probe.seconds_per_tick
            frame = decoder.get_frame_played_at(middle)
            if round(frame.pts_seconds / probe.seconds_per_tick) != probe.ticks[index]:
                raise UnfitDecoderError(f"torchcodec shows the frame of {frame.pts_seconds} s at {middle} s")
            pixels = frame.data.numpy()
            if pixels.shape[:2] != probe.upright_size:
                raise UnfitDecoderError(f"torchcodec returns a frame of {pixels.shape[:2]}, not {probe.upright_size}")
            yield pixels
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnfitDecoderError(str(error)) from error
