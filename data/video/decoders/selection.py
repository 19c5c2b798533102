"""Which decoder reads a file: the fastest one that is known to read it correctly."""

from collections.abc import Iterator
from pathlib import Path

from data.video.decoders.decord_reader import decord_timeline
from data.video.decoders.pyav_reader import measured_timeline, packet_timeline
from data.video.decoders.timeline import Timeline
from data.video.decoders.torchcodec_reader import torchcodec_timeline
from data.video.probe import Probe
from data.video.resize import Size

TIMELINES = (  # in order of preference; each returns None for a file that it may read wrongly
    decord_timeline,  # fastest, for files that the probe shows to be free of what decord gets wrong
    torchcodec_timeline,  # in exact mode, if it is installed
    packet_timeline,  # PyAV, with the time stamps of the packets
    measured_timeline,  # PyAV, with the time stamps of the decoded frames: for every file
)


def timelines(path: Path, probe: Probe, size: Size | None = None) -> Iterator[Timeline]:
    """The ways to read a file that can be trusted, the best first; the last one is always offered.

    The caller takes the next one when reading raises `UnfitDecoderError`.

    Args:
        size: height and width that frames should be decoded to (`decoding_size`); None: those of the upright frames.
            torchcodec ignores it, and PyAV for transparent frames.

    Raises:
        VideoError: when the last one is asked for: the file cannot be decoded or its frames carry no time stamps.
    """
    for open_timeline in TIMELINES:
        timeline = open_timeline(path, probe, size or probe.upright_size)
        if timeline is not None:
            yield timeline
