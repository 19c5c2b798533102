"""The closed forms are what torch counts, for every combination of options."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.networks.config import DiTConfig
from models.networks.counts import ClipSize, Cost, dit_cost
from models.networks.dit import DiT
from models.text.config import TextConfig, WordsConfig
from models.text.embeddings import CaptionEmbeddings
from models.text.encoder import read
from testing.networks import combinations, small_dit

CONFIGS = combinations() | {
    "large patches": small_dit(patch_size=4, mlp_ratio=3),
    "frame rate": small_dit(clip_conditions=("fps",)),
    "flow map": small_dit(flow_map=True),
    "frame rate and size": small_dit(clip_conditions=("size", "fps")),
    "captions as words": small_dit(text=TextConfig(width=16, depth=1, heads=2, words=WordsConfig(buckets=64))),
    "channels of known frames": small_dit(known_frames="channels"),
}
GRID, WORDS, EMBEDDING = (3, 4, 8), 5, 24


def torch_counts(config: DiTConfig, clip: ClipSize, embedding_width: int | None) -> Cost:
    """What torch counts on tensors without values."""
    with torch.device("meta"):
        network = DiT(config, 4, embedding_width)
        caption = read(config.text, [""])
        if embedding_width is not None:
            mask = torch.ones(1, WORDS, dtype=torch.bool)
            caption = CaptionEmbeddings(torch.zeros(1, WORDS, embedding_width), mask)
        t = torch.zeros(1) if clip.num_times == 1 else torch.zeros(1, 1, clip.num_times)
        with FlopCounterMode(display=False) as forward:
            loss = network.flops_probe(torch.empty(1, 4, *GRID), t, caption.to("meta"))
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_operations_are_those_that_torch_counts(name):
    clip = ClipSize(GRID)
    assert dit_cost(CONFIGS[name], 4, clip) == torch_counts(CONFIGS[name], clip, None)


@pytest.mark.parametrize("name", ["full, joint, then cross, shared", "factorised, cross, low rank"])
def test_embeddings_and_times_per_frame_are_counted(name):
    clip = ClipSize(GRID, caption_tokens=WORDS, num_times=GRID[0])
    assert dit_cost(CONFIGS[name], 4, clip, EMBEDDING) == torch_counts(CONFIGS[name], clip, EMBEDDING)


def test_costs_add_up():
    assert Cost(1, 2, 3) + Cost(4, 5, 6) * 2 == Cost(9, 12, 15)
    assert Cost(1, 2, 3).training_flops == 5
