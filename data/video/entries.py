"""Places in a file where decoding may begin, so that a late clip does not cost all that comes before it.

A key frame is one if no packet before it shows anything after it. That is read from the list of packets;
whether the bitstream keeps the promise as well is checked when the place is used, packet (`is_exact`) and
frame (flagged as key by the decoder itself), because containers flag key frames that are none.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Codecs whose key frames make decoders forget what came before.
ENTRY_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
SEEK_FRAMES = 16  # fewer frames than this are decoded sooner than another place is sought
H264_IDR, H264_SEI, SEI_RECOVERY_POINT = 5, 6, 6


class Packet(NamedTuple):
    """What the container says of one packet."""

    tick: int | None  # when it is shown
    decode_tick: int | None
    is_keyframe: bool
    is_discard: bool  # decoded, but not shown


@dataclass(frozen=True)
class Entry:
    """A key frame after which nothing is shown that was decoded before it."""

    tick: int  # when it is shown
    seek_tick: int  # what to ask the container for: when it is decoded, which is never later


@dataclass(frozen=True)
class Run:
    """Frames read one after the other."""

    entry: Entry | None  # where from; None: from where the decoder stands
    ticks: list[int]  # of the wanted frames, increasing


def entries_of(packets: Sequence[Packet]) -> tuple[Entry, ...]:
    """The entries of a stream, in order; none where a packet does not tell when it is shown."""
    if any(packet.tick is None for packet in packets):
        return ()
    latest, entries = -np.inf, []
    for packet in packets:
        assert packet.tick is not None
        if packet.is_keyframe and packet.tick > latest and not packet.is_discard:
            decoded = packet.tick if packet.decode_tick is None else min(packet.decode_tick, packet.tick)
            entries.append(Entry(packet.tick, decoded))
        latest = max(latest, packet.tick)
    return tuple(entries[1:])  # the first is the start of the file


def plan_runs(ticks: np.ndarray, indices: Sequence[int], entries: Sequence[Entry], at: int = 0) -> list[Run]:
    """Cut wanted frames into runs, where a seek skips at least `SEEK_FRAMES` frames.

    Args:
        ticks: when each frame of the file is shown, increasing.
        indices: the wanted frames, increasing.
        entries: in order.
        at: the frame that the decoder would give next.
    """
    runs: list[Run] = []
    places = [entry.tick for entry in entries]
    for index in indices:
        tick = int(ticks[index])
        found = bisect_right(places, tick) - 1
        skipped = int(np.searchsorted(ticks, places[found])) - at if found >= 0 else 0
        if skipped >= SEEK_FRAMES:
            runs.append(Run(entries[found], []))
        elif not runs:
            runs.append(Run(None, []))
        runs[-1].ticks.append(tick)
        at = index + 1
    return runs


def is_exact(codec: str, packet: bytes) -> bool:
    """Every frame shown from this key packet on decodes to the same pixels as from the start of the file.

    The other codecs' decoders flag as key only what is; H.264's also counts places from which the picture is
    merely refreshed bit by bit, or approximately right.
    """
    if codec != "h264":
        return True
    for unit in _nal_units(packet):
        kind = unit[0] & 31
        if kind == H264_IDR or (kind == H264_SEI and _is_exact_recovery_point(unit)):
            return True
    return False


def _nal_units(packet: bytes) -> list[bytes]:
    """NAL units of an H.264 packet, behind start codes or four bytes of length each."""
    if packet.startswith((b"\0\0\1", b"\0\0\0\1")):
        return [unit for unit in re.split(b"\0\0\1", packet) if unit.strip(b"\0")]
    units, at = [], 0
    while at + 4 < len(packet):
        size = int.from_bytes(packet[at : at + 4], "big")
        if size == 0 or at + 4 + size > len(packet):
            return []  # lengths of another width: nothing is known
        units.append(packet[at + 4 : at + 4 + size])
        at += 4 + size
    return units


def _is_exact_recovery_point(unit: bytes) -> bool:
    """Whether an SEI unit says: from this very frame on, exactly (recovery_frame_cnt 0, exact_match_flag 1)."""
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
