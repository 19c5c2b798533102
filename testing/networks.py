"""Small DiTs with every combination of options."""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.config import DiTConfig
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig

MODULATIONS: dict[str, dict[str, Any]] = {
    "per block": {},
    "shared": {"modulation": "shared"},
    "low rank": {"modulation": "low_rank", "modulation_rank": 4},
}
PATTERNS = {"full": ("full",), "factorised": ("space", "time")}
JOINT = {"cross": 0, "joint, then cross": 1, "joint": 3}


def small_dit(**options: Any) -> DiTConfig:  # noqa: ANN401 - of any option
    """A DiT of three blocks."""
    text = TextConfig(width=16, depth=1, heads=2, max_bytes=8, ngram_buckets=64)
    return DiTConfig(**{"width": 32, "depth": 3, "heads": 2, "text": text, **options})


def combinations() -> dict[str, DiTConfig]:
    """Each possible combination of attention pattern, joint blocks and modulation, by name."""
    return {
        f"{pattern}, {joint}, {modulation}": small_dit(
            attention_pattern=PATTERNS[pattern], joint_blocks=JOINT[joint], **MODULATIONS[modulation]
        )
        for pattern, joint, modulation in product(PATTERNS, JOINT, MODULATIONS)
        if not (pattern == "factorised" and joint == "joint")  # joint blocks have no pattern
    }


def with_open_gates(network: nn.Module) -> nn.Module:
    """The network with no weight at zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def noisy_batch(config: DiTConfig, frames: int = 3) -> tuple[Tensor, Tensor, CaptionTokens]:
    """Two latents of 4 channels, a time for each of their frames, and their captions, of which one is empty."""
    side = 2 * config.patch_size
    caption = CaptionTokens.encode(["a dot", ""], config.text.max_bytes)
    return torch.randn(2, 4, frames, side, side), torch.rand(2, 1, frames), caption
