"""Which decoder reads a file: the fastest one that is known to read it correctly."""

from collections.abc import Iterator
from pathlib import Path

from data.video.decoders.decord_reader import decord_timeline
from data.video.decoders.pyav_reader import measured_timeline, packet_timeline
from data.video.decoders.timeline import Timeline
from data.video.probe import Probe

TIMELINES = (  # in order of preference; each returns None for a file that it may read wrongly
    packet_timeline,  # PyAV, with the time stamps of the packets: fastest, as it scales frames while it converts them
    decord_timeline,  # where PyAV lacks a frame, for files that the probe shows to be free of what decord gets wrong
    measured_timeline,  # PyAV, with the time stamps of the decoded frames: for every file
)


def timelines(path: Path, probe: Probe) -> Iterator[Timeline]:
    """The ways to read a file that can be trusted, the best first; the last one is always offered.

    The caller takes the next one when reading raises `UnfitDecoderError`.

    Raises:
        VideoError: when the last one is asked for: the file cannot be decoded or its frames carry no time stamps.
    """
    for open_timeline in TIMELINES:
        timeline = open_timeline(path, probe)
        if timeline is not None:
            yield timeline
