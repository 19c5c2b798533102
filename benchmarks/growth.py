"""Time and memory by the number of tokens and of frames: our DiT, and decoding by the autoencoder in chunks.

    python -m benchmarks.growth --minutes 10

A forward pass of the DiT on one clip, with full and with factorised attention (space and time in turn), for 256 to
32,768 tokens; and the decoding of 17 to 257 frames, whole and one latent frame at a time. Each point is measured in a
process of its own on one thread, in float32: CPU time of the fastest call in `POINT_SECONDS`, after a call with the
fewest tokens or frames, and the most memory above what the process had before. The file and the figure are written
after each point; the run ends after the point in which its minutes are over, and says which are missing.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from data.files.publish import publish_text
from models.autoencoder.config import AutoencoderConfig
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.networks.dit_options import AttentionSpan
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from testing.clips import make_network
from testing.peaks import above_base, output_of_new_process

RESULT = Path(__file__).parent / "results" / "growth.json"
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "growth.png"
GRIDS = {
    256: (4, 16, 16),
    512: (8, 16, 16),
    1024: (16, 16, 16),
    2048: (8, 32, 32),
    4096: (16, 32, 32),
    8192: (32, 32, 32),
    16384: (16, 64, 64),
    32768: (32, 64, 64),
}
"""Number of tokens -> latent frames, height and width, for patches of 2 x 2."""
PATTERNS: dict[str, tuple[AttentionSpan, ...]] = {"full attention": ("full",), "space, then time": ("space", "time")}
FRAMES, SIDE = (17, 33, 65, 129, 257), 128
DECODINGS = ("frame by frame", "whole")
POINT_SECONDS = 3.0


@dataclass(frozen=True)
class Point:
    """One size."""

    what: str
    """A key of `PATTERNS`, or one of `DECODINGS`."""
    size: int
    """Tokens, or frames."""
    seconds: float
    peak_bytes: int


def forward(what: str, num_tokens: int) -> Callable[[], object]:
    """A forward pass of the DiT."""
    text = TextConfig(width=256, depth=1, heads=4)
    config = DiTConfig(width=384, depth=4, heads=6, text=text, attention_pattern=PATTERNS[what])
    network, caption = build_network(config, 16), CaptionTokens.encode(["a red circle"], text.max_bytes)
    x, t = torch.randn(1, 16, *GRIDS[num_tokens]), torch.tensor([0.5])
    return lambda: network(x, t, caption)


def decoding(what: str, num_frames: int) -> Callable[[], object]:
    """Latents of a clip to pixels, of which no more is kept than a chunk has."""
    network = make_network(AutoencoderConfig())
    latents = torch.randn(1, *network.config.latent_shape(num_frames, SIDE, SIDE))
    chunks = latents.split(1, dim=2) if what == "frame by frame" else [latents]

    def run() -> None:
        for _ in network.decode_latents(chunks):
            pass

    return run


def measure(what: str, size: int) -> Point:
    """One point, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, least = (forward, min(GRIDS)) if what in PATTERNS else (decoding, min(FRAMES))
    with torch.inference_mode():
        make(what, least)()
        call = make(what, size)
        found: list[float] = []

        def timed() -> None:
            begin = time.process_time()
            call()
            found.append(time.process_time() - begin)

        peak = above_base(timed)
        while sum(found) < POINT_SECONDS:
            timed()
    return Point(what, size, min(found), peak)


def points() -> Iterator[tuple[str, int]]:
    """What is measured, the small sizes first; the largest numbers of tokens, which take minutes, come last."""
    yield from ((what, num_frames) for num_frames in FRAMES for what in DECODINGS)
    yield from ((what, num_tokens) for num_tokens in GRIDS for what in PATTERNS)


def draw(found: list[Point], path: Path) -> None:
    """Time and memory over the size, for both networks."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for row, kinds, label in ((0, tuple(PATTERNS), "tokens"), (1, DECODINGS, "frames")):
        for column, (unit, scale) in enumerate((("seconds", 1.0), ("MiB above the network", 2.0**20))):
            plot = axes[row, column]
            for what in kinds:
                of_kind = [point for point in found if point.what == what]
                values = [(point.seconds if column == 0 else point.peak_bytes) / scale for point in of_kind]
                plot.loglog([point.size for point in of_kind], values, marker="o", label=what)
            plot.set(xlabel=label, ylabel=unit)
            plot.grid(alpha=0.3)
            plot.legend()
    axes[0, 0].set_title("DiT, width 384, depth 4: a forward pass")
    axes[1, 0].set_title(f"autoencoder: decoding, {SIDE} x {SIDE} pixels")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Measure each point in a new process; print, write and draw after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument("--point", nargs=2, metavar=("WHAT", "SIZE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.point is not None:
        what, size = chosen.point
        print(json.dumps(asdict(measure(what, int(size)))))
        return
    deadline, found, missing = time.monotonic() + 60 * chosen.minutes, [], []
    for what, size in points():
        if time.monotonic() > deadline:
            missing.append([what, size])
            continue
        point = Point(**json.loads(output_of_new_process("benchmarks.growth", "--point", what, str(size))))
        found.append(point)
        print(f"{what:18} {size:6}  {point.seconds:8.3f} s  {point.peak_bytes / 2**20:8.0f} MiB", flush=True)
        figures = {"torch": torch.__version__, "load_average": os.getloadavg()[0], "points": [asdict(p) for p in found]}
        publish_text(chosen.output, json.dumps(figures, indent=1) + "\n")
        draw(found, chosen.image)
    if missing:
        print(f"not reached: {missing}")


if __name__ == "__main__":
    main()
