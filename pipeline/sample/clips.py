"""Frames of the videos that clips are made from, at the shape and frame rate of the clip."""

from functools import lru_cache
from pathlib import Path

from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.files.checksums import file_sha256
from data.records import Frames
from data.video.extract import CutConfig, measure_source, read_spans
from data.video.spans import Stretch
from pipeline.sample.given import ImageFile
from pipeline.sample.images import ImageError

MAX_REMEMBERED = 4096  # files whose length is remembered


def num_frames_in(path: Path, fps: float) -> int:
    """Frames of a video at that frame rate. A file is read once, however many rows name it.

    Raises:
        VideoError: it cannot be read.
        OSError: it is not there.
    """
    status = path.stat()
    seconds = _seconds_of(path, status.st_size, status.st_mtime_ns)
    return int(seconds * fps + 0.5) if seconds > 0 else 1


@lru_cache(maxsize=MAX_REMEMBERED)
def _seconds_of(path: Path, num_bytes: int, modified_ns: int) -> float:  # noqa: ARG001 - what the file was
    return measure_source(path).seconds


def read_frames(clip: ImageFile, bucket: Bucket, num_frames: int, *, at_end: bool) -> Frames:
    """The first or last frames of a video, resampled, resized and cropped as clips of a data set are.

    Args:
        num_frames: how many, 4k + 1.

    Raises:
        ImageError: it is missing, too short, damaged, or not what it was when the job was planned.
    """
    path = Path(clip.path)
    shape = bucket.model_copy(update={"num_frames": num_frames})
    try:
        if file_sha256(path) != clip.sha256:
            raise ImageError(f"clip {path} has changed since the job began; start it again")
        start = max(0.0, measure_source(path).seconds - num_frames / bucket.fps) if at_end else 0.0
        return read_spans(path, [shape], 1, CutConfig(stretch=Stretch(start)))[0].frames
    except (OSError, VideoError) as error:
        raise ImageError(f"clip {path} cannot be read any more: {error}") from error
