"""Reading from the middle of a file gives, bit for bit, what reading from its start gives."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from data.video.decoders.pyav_reader import pyav_timeline
from data.video.decoders.pyav_stream import decode_frames
from data.video.entries import SEEK_FRAMES, Entry, Packet, Run, entries_of, is_exact, plan_runs
from data.video.probe import Probe, probe_video

FPS, GROUP = 25, 50


def write_long(path: Path, seconds: int, x264: str, codec: str = "libx264") -> None:
    """A drifting texture with a moving square, with B-frames."""
    random = np.random.default_rng(0)
    texture = np.kron(random.integers(0, 255, (20, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": str(GROUP), "bf": "3", "preset": "veryfast", "x264-params": x264}
        stream = container.add_stream(codec, rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(seconds * FPS):
            picture = texture[number % 40 : number % 40 + 96, number % 90 : number % 90 + 128].copy()
            picture[number % 70 : number % 70 + 20, 30:60] = number % 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def decoded_from_the_start(path: Path, probe: Probe, wanted: list[int]) -> list[np.ndarray]:
    ticks = set(probe.ticks[wanted].tolist())
    frames = (frame for frame, tick in decode_frames(path, probe, "pts") if tick in ticks)
    space = Colorspace.ITU709 if probe.is_untagged_hd else None
    return [probe.matrix.apply(frame.to_ndarray(format="rgb24", src_colorspace=space)) for frame in frames]


def count_decoded(path: Path, probe: Probe, runs: list[Run]) -> int:
    """Frames that come out of the decoder until each run has its last."""
    number = 0
    for run in runs:
        for _, tick in decode_frames(path, probe, "pts", run.entry):
            number += 1
            if tick == run.ticks[-1]:
                break
    return number


@pytest.mark.parametrize(
    ("x264", "suffix", "is_closed"),
    [
        ("scenecut=0", "mp4", True),
        ("scenecut=0:open-gop=1:b-adapt=0", "mp4", False),
        ("scenecut=0:open-gop=1:b-adapt=0", "mkv", False),
        ("scenecut=0:open-gop=1:b-adapt=0", "ts", False),
    ],
)
def test_a_late_clip_of_a_long_file_is_not_decoded_from_its_start(tmp_path, x264, suffix, is_closed):
    path = tmp_path / f"long.{suffix}"
    write_long(path, 60, x264)
    probe = probe_video(path)
    assert probe.has_closed_groups == is_closed
    assert len(probe.ticks) == 60 * FPS
    assert len(probe.entries) == 60 * FPS // GROUP - 1
    for wanted in ([1400, 1403, 1406, 1409], [3, 4, 600, 1201, 1202, 1499], list(range(745, 760))):
        read = list(pyav_timeline(path, probe, probe.ticks, "pts").read(wanted))
        np.testing.assert_array_equal(read, decoded_from_the_start(path, probe, wanted))
        runs = plan_runs(probe.ticks, wanted, probe.entries)
        assert [tick for run in runs for tick in run.ticks] == probe.ticks[wanted].tolist()
        assert count_decoded(path, probe, runs) <= len(runs) * (GROUP + 4) + wanted[-1] - wanted[0]
    assert count_decoded(path, probe, plan_runs(probe.ticks, [1400], probe.entries)) <= 4


@pytest.mark.parametrize(
    "name",
    [
        "fixtures/cockatoo.mp4",  # 4:4:4 of an old x264: without the first packet's word on that, all colours differ
        "robust_torchcodec/h265_video.mp4",
        "robust_androidx/iibbibb_editlist_videoonly.mp4",
        "robust_androidx/bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4",
        "fixtures/sync_test.mkv",
        "fixtures/Big_Buck_Bunny_180_10s.webm",
        "robust_androidx/sample_sef_super_slow_motion.mp4",
    ],
)
def test_real_files_read_from_an_entry_as_from_the_start(clips_dir, name):
    path = clips_dir / name
    probe = probe_video(path)
    assert probe.entries
    for entry in probe.entries[:: max(1, len(probe.entries) // 3)]:
        first = int(np.searchsorted(probe.ticks, entry.tick))
        wanted = sorted({first, min(first + 2, len(probe.ticks) - 1), len(probe.ticks) - 1})
        read = list(pyav_timeline(path, probe, probe.ticks, "pts").read(wanted))
        np.testing.assert_array_equal(read, decoded_from_the_start(path, probe, wanted))


def test_a_file_that_is_refreshed_bit_by_bit_is_read_from_its_start(tmp_path):
    """Its key packets are flagged as such, but their frames are made of what came before."""
    path = tmp_path / "refreshed.mkv"
    write_long(path, 8, "intra-refresh=1:scenecut=0:bframes=0")
    flagged = Entry(*probe_video(path).ticks[[100, 100]].tolist())
    probe = replace(probe_video(path), entries=(flagged,))
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.pts == flagged.tick]
    assert not is_exact("h264", packets[0])
    wanted = [110, 112, 190]
    read = list(pyav_timeline(path, probe, probe.ticks, "pts").read(wanted))
    np.testing.assert_array_equal(read, decoded_from_the_start(path, probe, wanted))


def test_what_no_frame_needs_and_nobody_asked_for_is_not_decoded(tmp_path):
    path = tmp_path / "long.mp4"
    write_long(path, 4, f"scenecut=0:keyint={4 * FPS}:b-adapt=0:b-pyramid=0")
    probe = probe_video(path)
    wanted = probe.ticks[::3].tolist()
    decoded = [tick for _, tick in decode_frames(path, probe, "pts", is_needed=frozenset(wanted).__contains__)]
    every = [tick for _, tick in decode_frames(path, probe, "pts")]
    assert every == probe.ticks.tolist()
    # Of four frames three are B-frames, to which no other refers; every third frame is asked for.
    assert len(every) / 2 - 2 <= len(decoded) <= len(every) / 2 + 2
    assert set(wanted) <= set(decoded)


def test_an_entry_has_everything_before_it_shown_before_it():
    def packets(*ticks: int, keys: tuple[int, ...]) -> list[Packet]:
        return [Packet(tick, at, tick in keys, False) for at, tick in enumerate(ticks)]

    assert entries_of(packets(0, 3, 1, 2, 4, 7, 5, 6, keys=(0, 4))) == (Entry(4, 4),)  # closed
    assert entries_of(packets(0, 2, 1, 6, 3, 4, 5, 7, keys=(0, 6))) == (Entry(6, 3),)  # open
    assert entries_of(packets(0, 5, 4, 1, 2, 3, keys=(0, 4))) == ()  # 5 is decoded before it and shown after it
    assert entries_of([*packets(0, 1, 2, keys=(0, 1)), Packet(None, 3, False, False)]) == ()


def test_clips_read_one_after_the_other_are_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "long.mp4"
    write_long(path, 8, f"scenecut=0:keyint={8 * FPS}")
    probe = probe_video(path)
    opened = []

    def counted(*args, **options):
        opened.append(args)
        return decode_frames(*args, **options)

    monkeypatch.setattr("data.video.decoders.pyav_reader.decode_frames", counted)
    timeline = pyav_timeline(path, probe, probe.ticks, "pts")
    clips = [list(range(0, 40, 3)), [39, 42, 45], [45, 46, 120], [121, 199], [5, 6]]
    for wanted, number_opened in zip(clips, (1, 1, 1, 1, 2), strict=True):
        read = list(timeline.read(wanted))
        assert len(opened) == number_opened
        np.testing.assert_array_equal(read, decoded_from_the_start(path, probe, wanted))


def test_a_seek_is_worth_it_only_past_enough_frames():
    ticks = np.arange(200) * 10
    entries = [Entry(tick, tick) for tick in range(250, 2000, 250)]
    assert plan_runs(ticks, [0, 60, 61, 199], entries) == [
        Run(None, [0]),
        Run(entries[1], [600, 610]),
        Run(entries[6], [1990]),
    ]
    near = 25 - SEEK_FRAMES
    assert plan_runs(ticks, [near, 26], entries) == [Run(None, [near * 10, 260])]
    assert plan_runs(ticks, [near - 1, 26], entries) == [Run(None, [(near - 1) * 10]), Run(entries[0], [260])]
    assert plan_runs(ticks, [30], entries, at=20) == [Run(None, [300])]
    assert plan_runs(ticks, [150, 199], []) == [Run(None, [1500, 1990])]
