"""What memory and time decoding a clip takes in tiles, with our autoencoder and with one of the size of Wan 2.1's.

    python -m benchmarks.tiles causal
    python -m benchmarks.tiles wan --height 256 --width 448

Each figure is the peak of a process of its own, the libraries, the weights and the finished clip included. All weights
are random: neither memory nor time depends on them. Beside the clip itself, memory is that of one tile, however many
there are: two of them, side by side, tell what a whole frame needs.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from data.files.publish import publish_text
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig, VideoAutoencoderConfig, WanAutoencoderConfig
from pipeline.encode.chunks import decode_clips

RESULT = Path(__file__).parent / "results" / "tiles.json"
NUM_FRAMES = 17
CONFIGS: dict[str, VideoAutoencoderConfig] = {
    "causal": AutoencoderConfig(),
    "wan": WanAutoencoderConfig(latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16),
}


def measure(name: str, tile: int | None, height: int, width: int) -> dict[str, float]:
    """Decode one clip in this process, in float32."""
    torch.manual_seed(0)
    network = build_autoencoder(CONFIGS[name]).eval().requires_grad_(False)
    latents = torch.randn(1, *network.config.latent_shape(NUM_FRAMES, height, width))
    started = time.process_time()
    (clip,) = decode_clips(network, latents, tile=tile)
    assert clip.shape == (NUM_FRAMES, height, width, 3)
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "cpu_seconds": round(time.process_time() - started, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Measure in a new process, print and write; figures of other measurements are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CONFIGS))
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--tile", type=int, default=256, help="side of a tile in pixels; 0: whole frames")
    parser.add_argument("--here", action="store_true", help="measure this process, and print its figures only")
    arguments = parser.parse_args()
    name, tile, height, width = arguments.name, arguments.tile, arguments.height, arguments.width
    if arguments.here:
        print(json.dumps(measure(name, tile or None, height, width)))
        return
    command = [sys.executable, "-m", "benchmarks.tiles", name, "--here"]
    command += [f"--tile={tile}", f"--height={height}", f"--width={width}"]
    figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    results[f"{name}, {NUM_FRAMES}x{height}x{width}, tile {tile}"] = figures | {"torch": torch.__version__}
    print(figures)
    publish_text(RESULT, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
