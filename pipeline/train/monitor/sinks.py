"""Where the numbers and clips of a training go: JSON lines, TensorBoard."""

import json
import time
from pathlib import Path
from typing import Any, Protocol

from data.files.jsonl import publish_jsonl, read_jsonl


class Sink(Protocol):
    """A destination of scalars and short videos; used by rank 0 only."""

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Record named values as they are after `step` updates."""
        ...

    def add_video(self, step: int, name: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """Record a video.

        Args:
            gif: the file's content.
            shape: of the frames, (t h w c).
        """
        ...

    def close(self) -> None:
        """Flush and release everything."""
        ...


class JsonLinesSink:
    """One JSON object per call of `add_scalars`: the step, the time in seconds since 1970, and the values. No videos.

    Lines of steps after `first_step` are removed at the start, because these steps run again.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        kept = [row for row in read_jsonl(path, dict[str, Any], skip_damaged=True) if row["step"] <= first_step]
        publish_jsonl(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line; readers see it at once."""
        self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        self._file.flush()

    def add_video(self, step: int, name: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """Nothing: a text file holds no videos."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard; what they hold of steps after `first_step` is no longer displayed."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """A point on each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_video(self, step: int, name: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """An animated image. `SummaryWriter.add_video` does the same, but needs the package moviepy."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        _, height, width, channels = shape
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        writer = self._writer.file_writer
        assert writer is not None
        writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()
