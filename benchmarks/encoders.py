"""What x264's preset and constant rate factor cost and keep, on real clips as ingestion stores them.

    python -m benchmarks.encoders [FOLDER] [--shapes 17x64x64@8 17x256x448@8] [--files N]

The clips are those of the files of `benchmarks.ingest_real`, at most one of a file, in two shapes. Each is encoded with
every setting in turn, in this process and on one thread, and decoded as a training decodes it. Quality compares the
decoded RGB with the frames that were given to the encoder: PSNR of all pixels of a clip, at most 60 dB, and SSIM with a
Gaussian window of 11 (Wang et al. 2004), the means over the clips. CPU times are the least of the rounds. Ratios are to
the default setting, which is a row of the table. Shapes that are not asked for keep their earlier figures.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import av
import decord
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.ingest_real import SHAPES, chosen, psnr
from data.files.publish import publish_text
from data.records import Frames
from data.video.codec import ClipEncoder, decode_clip
from data.video.config import DEFAULT_CRF, DEFAULT_PRESET, VideoConfig
from data.video.extract import CutConfig, cut_file
from models.autoencoder.quality import ssim
from testing.paths import CLIPS_DIR

PRESETS = ("ultrafast", "superfast", "veryfast", "faster")
FACTORS = (10, 12, 14, 16)
ROUNDS = 2
RESULT = Path(__file__).parent / "results" / "encoders.json"
T = TypeVar("T")


@dataclass
class Setting:
    """What was measured of a preset and a factor, over all clips of a shape."""

    preset: str
    crf: int
    encode_seconds: list[float] = field(default_factory=list)  # of each clip, CPU time
    decode_seconds: list[float] = field(default_factory=list)
    kib: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def encode(self, clip: Frames, fps: float) -> bytes:
        """The MP4 file of a clip."""
        encoder = ClipEncoder(fps, VideoConfig(preset=self.preset, crf=self.crf))
        encoder.add(clip)
        return encoder.finish()

    def measure(self, clip: Frames, fps: float) -> None:
        """Add a clip."""
        content, encoding = least_seconds(lambda: self.encode(clip, fps))
        stored, decoding = least_seconds(lambda: decode_clip(content))
        self.encode_seconds.append(encoding)
        self.decode_seconds.append(decoding)
        self.kib.append(len(content) / 1024)
        self.psnr.append(psnr(stored, clip))
        self.ssim.append(float(ssim(pixels(clip), pixels(stored)).mean()))

    def row(self, default: "Setting") -> dict[str, object]:
        """The table's."""
        return {
            "preset": self.preset,
            "crf": self.crf,
            "encode_ratio": round(sum(self.encode_seconds) / sum(default.encode_seconds), 3),
            "decode_ratio": round(sum(self.decode_seconds) / sum(default.decode_seconds), 3),
            "size_ratio": round(sum(self.kib) / sum(default.kib), 3),
            "encode_ms": round(1e3 * statistics.mean(self.encode_seconds), 2),
            "decode_ms": round(1e3 * statistics.mean(self.decode_seconds), 2),
            "kib": round(statistics.mean(self.kib), 1),
            "psnr": round(statistics.mean(self.psnr), 2),
            "ssim": round(statistics.mean(self.ssim), 5),
            # Clip by clip: how often, and by how much at worst, it falls short of the default.
            "psnr_below_default": sum(a < b for a, b in zip(self.psnr, default.psnr, strict=True)),
            "worst_psnr_difference": round(min(a - b for a, b in zip(self.psnr, default.psnr, strict=True)), 2),
        }


def pixels(clip: Frames) -> Tensor:
    """(1 3 t h w) in [-1, 1]."""
    return rearrange(torch.from_numpy(clip).float() / 127.5 - 1, "t h w c -> 1 c t h w")


def least_seconds(work: Callable[[], T]) -> tuple[T, float]:
    """The result, and the least CPU time of the rounds."""
    seconds: list[float] = []
    results: list[T] = []
    for _ in range(ROUNDS):
        started = time.process_time()
        results.append(work())
        seconds.append(time.process_time() - started)
    return results[0], min(seconds)


def table(clips: Sequence[Frames], fps: float) -> list[dict[str, object]]:
    """All settings, clip by clip."""
    settings = [Setting(preset, crf) for preset in PRESETS for crf in FACTORS]
    for clip in clips:
        for setting in settings:
            setting.measure(clip, fps)
    default = next(s for s in settings if (s.preset, s.crf) == (DEFAULT_PRESET["h264"], DEFAULT_CRF["h264"]))
    return [setting.row(default) for setting in settings]


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=CLIPS_DIR)
    parser.add_argument("--shapes", nargs="*", default=[bucket.name for bucket in SHAPES])
    parser.add_argument("--files", type=int, help="at most so many, evenly chosen")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(None)
    sources = chosen(arguments.folder)
    sources = sources[:: max(1, len(sources) // (arguments.files or len(sources)))]
    for bucket in SHAPES:
        if bucket.name not in arguments.shapes:
            continue
        clips = []
        for source in sources:
            cut = CutConfig(max_spans=1, placement="even", address=source.name)
            clips += [span.frames for spans in cut_file(Path(source.path), [bucket], list, cut) for span in spans]
        rows = table(clips, bucket.fps)
        for row in rows:
            sys.stdout.write(f"{bucket.name} {row}\n")
        figures = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        files = [str(Path(source.path).relative_to(arguments.folder)) for source in sources]
        figures[bucket.name] = {"clips": len(clips), "files": files, "av": version("av"), "settings": rows}
        publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
