"""The terms of the autoencoder's loss side by side: the same clips, order, seed and number of steps.

    for seed in 101 202 303; do python -m launch shard demo --set seed=$seed --set name=demo$seed; done
    python -m benchmarks.autoencoder_loss runs/demo101 --kind relativistic --weight 0.005
    python -m benchmarks.autoencoder_loss runs/demo202 runs/demo303 --kind relativistic --weight 0.005

Choose a weight on one draw of the clips, and judge it on others. With `hinge` the weight is adaptive, with
`relativistic` it is the factor of the term. Sharpness is measured twice: by the energy of high frequencies, and by the
distance of the distributions of slopes.

Each variant is trained by the product's own loop with the demo's settings, and measured on held-out clips with the
averaged weights. No weights of a published perceptual network are used: the features are those of three convolutions
with random weights, as a TorchScript file that this program writes. Finished variants are kept in the work folder.
"""

import argparse
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from data.files.publish import publish_text
from launch.config import load_config
from models.autoencoder.config import AdversarialConfig, AutoencoderLossConfig, PerceptualConfig
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.encode.codec import AUTOENCODER_NAME, export_autoencoder
from pipeline.evaluate.reconstruction import measure_reconstruction
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.autoencoder import AutoencoderTask

NUM_CLIPS = 64
FEATURES_NAME = "features.pt"
WIDTHS = (3, 32, 64, 128)
Kind = Literal["hinge", "relativistic"]


class RandomFeatures(nn.Module):
    """Convolutions with random weights: even these are sensitive to structure rather than to single pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.get_parameter("weight"), generator=generator)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n 3 h w) to maps at half, a quarter and an eighth of its sides."""
        maps = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            maps.append(x)
        return maps


def variants(folder: Path, kl: float, steps: int, kind: Kind, weight: float) -> dict[str, AutoencoderLossConfig]:
    """The losses that are compared, by name."""
    plain = AutoencoderLossConfig(kl=kl)
    perceptual = PerceptualConfig(weight=0.1, network=folder / FEATURES_NAME)
    adversarial = AdversarialConfig(weight=weight, start_step=steps // 2, width=16)
    if kind == "relativistic":
        changed = {"kind": kind, "adaptive": False, "learning_rate_scale": 0.3}
        adversarial = adversarial.model_copy(update=changed)
    both = plain.model_copy(update={"perceptual": perceptual, "adversarial": adversarial})
    return {
        "squared and absolute error": plain,
        f"with perceptual and {kind}, weight {weight:g}": both,
        "with perceptual": plain.model_copy(update={"perceptual": perceptual}),
    }


def write_features(path: Path) -> None:
    """Write the perceptual network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(RandomFeatures().eval()), path)


def measure(run_dir: Path, folder: Path, loss: AutoencoderLossConfig, steps: int) -> dict[str, Any]:
    """Train one variant in `folder`, and measure it on held-out clips."""
    config = load_config(Path("demo"))
    settings = config.autoencoder.train.model_copy(update={"steps": steps, "checkpoint_every_steps": steps})
    clips_dir = (run_dir / "clips").resolve()
    task = AutoencoderTask(config.autoencoder.model, clips_dir, config.seed, loss=loss)
    train_here(partial(train, task, settings, folder), torch.get_num_threads())
    export_autoencoder(open_checkpoint(folder), folder / AUTOENCODER_NAME)
    measured, shown = measure_reconstruction(clips_dir, folder / AUTOENCODER_NAME, NUM_CLIPS, NUM_CLIPS)
    distance = float(np.mean([slope_distance(clip.original, clip.reconstruction) for clip in shown]))
    last = {name: value for name, value in read_metrics(folder)[-1].items() if name in LOGGED}
    return {"loss": loss.model_dump(mode="json", exclude={"perceptual": {"network"}}), "last_step": last} | (
        measured.model_dump() | {"slope_distance": distance}
    )


def slope_distance(frames: np.ndarray, reconstruction: np.ndarray) -> float:
    """Wasserstein-1 distance of the lengths of the slopes of a clip and of its reconstruction, in levels of 8 bits.

    Args:
        frames, reconstruction: (t h w 3) of 8 bits.
    """
    lengths = []
    for clip in (frames, reconstruction):
        pixels = clip.astype(np.float32)
        down, right = (np.diff(pixels, axis=axis)[:, : clip.shape[1] - 1, : clip.shape[2] - 1] for axis in (1, 2))
        lengths.append(np.sort(np.sqrt((down**2 + right**2).sum(-1)).ravel()))
    return float(np.abs(lengths[0] - lengths[1]).mean())


LOGGED = {"total", "squared_error", "absolute_error", "kl", "perceptual", "discriminator", "adversarial_weight"}


def main() -> None:
    """Measure every variant on every draw, write the figures after each, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", type=Path, nargs="+", help="folders of runs of the demo whose clips are made")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--kind", choices=get_args(Kind), default="hinge")
    parser.add_argument("--weight", type=float, default=0.5, help="of the adversarial term")
    parser.add_argument("--work", type=Path, default=Path("runs/autoencoder-loss"), help="folder of the trainings")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/autoencoder_loss.json"))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_features(work / FEATURES_NAME)
    kl = load_config(Path("demo")).autoencoder.loss.kl
    losses = variants(work, kl, arguments.steps, arguments.kind, arguments.weight)
    results: dict[str, dict[str, Any]] = {run_dir.name: {} for run_dir in arguments.run_dirs}
    for run_dir in arguments.run_dirs:
        for name, loss in losses.items():
            folder = work / f"{run_dir.name}-{arguments.steps}" / name.replace(" ", "-")
            kept = folder / "measured.json"
            if not kept.is_file():
                publish_text(kept, json.dumps(measure(run_dir, folder, loss, arguments.steps)))
            found = results[run_dir.name][name] = json.loads(kept.read_text(encoding="utf-8"))
            quality = found["quality"]
            print(
                f"{run_dir.name} {name:48} {found['psnr_db']:.2f} dB, SSIM {quality['ssim']:.4f}, high frequencies "
                f"{quality['high_frequency_share']:.3f}, slopes {found['slope_distance']:.2f}, flicker "
                f"{quality['flicker_levels']:.2f}",
                flush=True,
            )
            publish_text(arguments.output, json.dumps({"steps": arguments.steps, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
