"""The latents of a finished demo, with captions of its clips and what they show.

Captions are the plain ones, of `data.synthetic`'s seven templates, whatever those of the demo are: small networks that
are trained for minutes are to differ by their objective, not by how many wordings they have met.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from data.dataset.index import IndexRow, read_index
from data.dataset.manifest import LatentStats, read_manifest
from data.dataset.reader import PayloadReader
from data.synthetic import Combination, Scene, random_scene, training_combinations
from data.synthetic_captions import varied_caption
from pipeline.encode.codec import load_autoencoder
from pipeline.encode.statistics import normalize

COMPONENTS = 32
"""Principal components in which Fréchet distances are measured."""


@dataclass(frozen=True)
class Latents:
    """Normalised latents with their captions and what they show."""

    x: Float[Tensor, "n c t h w"]
    captions: list[str]
    wanted: list[Combination]


@dataclass(frozen=True)
class Demo:
    """What the comparison needs of a run."""

    training: Latents
    held_out: Latents
    stats: LatentStats
    autoencoder: nn.Module

    @cached_property
    def components(self) -> Float[Tensor, "d k"]:
        """The directions in which the training latents vary most."""
        x = self.training.x.flatten(1)
        return torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:COMPONENTS].T


def read_demo(run_dir: Path) -> Demo:
    """Both splits of the latents of a finished demo, and its autoencoder."""
    folder = run_dir / "latents"
    stats = read_manifest(folder).latent_stats
    assert stats is not None
    seed = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))["seed"]
    return Demo(
        _read(folder, "train", stats, seed),
        _read(folder, "validation", stats, seed),
        stats,
        load_autoencoder(folder / "autoencoder.safetensors"),
    )


def _read(folder: Path, split: str, stats: LatentStats, seed: int) -> Latents:
    rows = [row for row in read_index(folder) if row.split == split]
    reader = PayloadReader(folder)
    x = torch.stack([load(reader.read(row))["mean"] for row in rows]).float()
    reader.close()
    scenes = [_scene(row, seed) for row in rows]
    return Latents(normalize(x, stats), [scene.caption for scene in scenes], [scene.combination for scene in scenes])


def _scene(row: IndexRow, seed: int) -> Scene:
    """What a clip shows; it follows from its number, as it was drawn."""
    number = int(Path(row.source).stem.removeprefix("shapes-"))
    scene = random_scene(seed, number, training_combinations())
    captions = (scene.caption, varied_caption(scene, np.random.default_rng([seed, number, 1])))
    assert row.caption in captions, f"{row.source} is not the clip of its number"
    return scene
