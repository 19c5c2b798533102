"""Entries: key frames at which decoding may begin, so that a late clip does not require decoding all frames before it.

A key frame is an entry if no earlier packet is shown after it, according to the list of packets. Containers also flag
frames that are not key frames, so the bitstream is checked when an entry is used: its packet (`is_exact`) and its
frame (which the decoder must flag as key).
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Codecs whose key frames reset the decoder.
ENTRY_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
SEEK_FRAMES = 16  # decoding fewer frames than this is faster than a seek
H264_IDR, H264_SEI, SEI_RECOVERY_POINT = 5, 6, 6


class Packet(NamedTuple):
    """What the container says about a packet."""

    tick: int | None  # presentation time
    decode_tick: int | None  # decoding time
    is_keyframe: bool
    is_discard: bool  # decoded but not shown


@dataclass(frozen=True)
class Entry:
    """A key frame after which no frame is shown that was decoded before it."""

    tick: int  # presentation time
    seek_tick: int  # time to seek to in the container: its decoding time, never later than `tick`


@dataclass(frozen=True)
class Run:
    """Wanted frames that are read without a seek between them."""

    entry: Entry | None  # where decoding begins; None: it continues
    ticks: list[int]  # presentation times of the wanted frames, increasing


def entries_of(packets: Sequence[Packet]) -> tuple[Entry, ...]:
    """The entries of a stream after its start, in order; none if a packet has no presentation time."""
    if any(packet.tick is None for packet in packets):
        return ()
    latest, entries = -np.inf, []
    for packet in packets:
        assert packet.tick is not None
        if packet.is_keyframe and packet.tick > latest and not packet.is_discard:
            decoded = packet.tick if packet.decode_tick is None else min(packet.decode_tick, packet.tick)
            entries.append(Entry(packet.tick, decoded))
        latest = max(latest, packet.tick)
    return tuple(entries[1:])  # without the first one, the start of the file


def plan_runs(ticks: np.ndarray, indices: Sequence[int], entries: Sequence[Entry], at: int = 0) -> list[Run]:
    """Divide wanted frames into runs; a seek between them skips at least `SEEK_FRAMES` frames.

    Args:
        ticks: presentation time of each frame of the file, increasing.
        indices: the wanted frames, increasing.
        entries: in order.
        at: index of the frame that the decoder returns next.
    """
    runs: list[Run] = []
    entry_ticks = [entry.tick for entry in entries]
    for index in indices:
        tick = int(ticks[index])
        found = bisect_right(entry_ticks, tick) - 1
        skipped = int(np.searchsorted(ticks, entry_ticks[found])) - at if found >= 0 else 0
        if skipped >= SEEK_FRAMES:
            runs.append(Run(entries[found], []))
        elif not runs:
            runs.append(Run(None, []))
        runs[-1].ticks.append(tick)
        at = index + 1
    return runs


def is_exact(codec: str, packet: bytes) -> bool:
    """Whether decoding from this key packet on gives the same pixels as decoding from the start of the file.

    Decoders of other codecs than H.264 flag only true key frames. H.264's also flags recovery points from which the
    picture is refreshed gradually, or correct only approximately.
    """
    if codec != "h264":
        return True
    for unit in _nal_units(packet):
        kind = unit[0] & 31
        if kind == H264_IDR or (kind == H264_SEI and _is_exact_recovery_point(unit)):
            return True
    return False


def _nal_units(packet: bytes) -> list[bytes]:
    """The NAL units of an H.264 packet, delimited by start codes or preceded by four bytes of length each."""
    if packet.startswith((b"\0\0\1", b"\0\0\0\1")):
        return [unit for unit in re.split(b"\0\0\1", packet) if unit.strip(b"\0")]
    units, at = [], 0
    while at + 4 < len(packet):
        size = int.from_bytes(packet[at : at + 4], "big")
        if size == 0 or at + 4 + size > len(packet):
            return []  # the length fields have another width: unknown
        units.append(packet[at + 4 : at + 4 + size])
        at += 4 + size
    return units


def _is_exact_recovery_point(unit: bytes) -> bool:
    """Whether an SEI unit has a recovery point with recovery_frame_cnt 0 and exact_match_flag 1."""
    message, at = unit.replace(b"\0\0\3", b"\0\0"), 1
    while at + 2 < len(message):
        values = []
        for _ in ("kind", "size"):
            value = 0
            while at < len(message) and message[at] == 0xFF:
                value, at = value + 0xFF, at + 1
            if at == len(message):
                return False
            values.append(value + message[at])
            at += 1
        kind, size = values
        if kind == SEI_RECOVERY_POINT:
            return at < len(message) and message[at] & 0xC0 == 0xC0
        at += size
    return False
