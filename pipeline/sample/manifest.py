"""The manifest of a samples folder while a job runs: lines are added as clips are made, and found again by their clip.

Memory holds the place of each line, not the line, so that a million clips need some 200 MB.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from data.files.jsonl import format_line, parse_line
from data.files.publish import published
from pipeline.sample.outputs import SampledClip, SamplesError, refused_lines, segments
from pipeline.sample.requests import PromptRequest
from pipeline.sample.shards import Shard, manifest_name

OFFSET_BITS = 48


class Manifest:
    """The lines of a samples folder, of which this job writes one file: the manifest, or the segment of its shard.

    Raises:
        SamplesError: a line is damaged.
    """

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        self.folder, self.path, self._is_whole = folder, folder / manifest_name(shard), shard is None
        self._others = [path for path in segments(folder) if path != self.path and path.is_file()]
        self._places: dict[bytes, int] = {}
        self._files: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()
        # Of a clip with several lines the last one read counts: that of a shard is newer than that of the manifest.
        for path in [self.path, *self._others] if self._is_whole else [*self._others, self.path]:
            self._read(path)

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, clip_id: str) -> bool:
        """Whether there is a line of that clip."""
        return _key(clip_id) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def line(self, clip_id: str) -> SampledClip | None:
        """The line of a clip; None: there is none."""
        place = self._places.get(_key(clip_id))
        return None if place is None else self._at(place)

    def forget(self, clip_id: str) -> None:
        """Take a clip for one without a line: it is made anew, and gets another line."""
        self._places.pop(_key(clip_id), None)

    @property
    def is_whole(self) -> bool:
        """Whether this job's file is that of the folder, not that of a shard."""
        return self._is_whole

    def own_lines(self) -> Iterator[SampledClip]:
        """The lines of this job's file; where it is that of the folder, also those that shards left, which join it."""
        first = 0 if self._is_whole else self._place(self.path, 0)
        return (self._at(place) for place in sorted(self._places.values()) if place >= first)

    def append(self, clips: Iterable[SampledClip]) -> None:
        """Add lines, which reach the operating system at once: a stop leaves at most the last one unfinished."""
        with self.path.open("ab") as file:
            offset = file.tell()
            for clip in clips:
                self._places[_key(clip.request.id)] = self._place(self.path, offset)
                offset += file.write(_line(clip))

    def reorder(self, requests: Iterable[PromptRequest]) -> None:
        """Put the lines of requests first, in their order."""

        def lines() -> Iterator[SampledClip]:
            wanted = set[bytes]()
            for request in requests:
                wanted.add(_key(request.id))
                if (line := self.line(request.id)) is not None:
                    yield line
            yield from (clip for clip in self.own_lines() if _key(clip.request.id) not in wanted)

        self.rewrite(lines())

    def rewrite(self, clips: Iterable[SampledClip]) -> None:
        """Replace the `own_lines`, atomically; the clips may come from the lines as they were."""
        places: dict[bytes, int] = {}
        with published(self.path) as temporary, temporary.open("wb") as file:
            offset = 0
            for clip in clips:
                places[_key(clip.request.id)] = self._place(self.path, offset)
                offset += file.write(_line(clip))
        self._stack.close()  # the file that was open is another one now
        self._files.clear()
        if self._is_whole:
            self._places = places
            for path in self._others:
                path.unlink(missing_ok=True)
        else:
            first = self._place(self.path, 0)
            self._places = {key: place for key, place in self._places.items() if place < first} | places

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    is_cut = not line.endswith(b"\n")
                    try:
                        with refused_lines():
                            clip = parse_line(path, number, line.removesuffix(b"\n"), SampledClip)
                    except SamplesError:
                        if is_cut:
                            return
                        raise
                    self._places[_key(clip.request.id)] = self._place(path, offset)
                offset += len(line)

    def _place(self, path: Path, offset: int) -> int:
        number = len(self._others) if path == self.path else self._others.index(path)
        return number << OFFSET_BITS | offset

    def _at(self, place: int) -> SampledClip:
        number, offset = place >> OFFSET_BITS, place & ((1 << OFFSET_BITS) - 1)
        path = self.path if number == len(self._others) else self._others[number]
        if path not in self._files:
            self._files[path] = self._stack.enter_context(path.open("rb"))
        file = self._files[path]
        file.seek(offset)
        with refused_lines():
            return parse_line(path, offset, file.readline().removesuffix(b"\n"), SampledClip)


def _line(clip: SampledClip) -> bytes:
    return format_line(clip).encode() + b"\n"


def _key(clip_id: str) -> bytes:
    return clip_id.encode()
