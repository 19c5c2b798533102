"""How soon each trained caption encoder reads wordings that it never saw: captions as bytes and as words.

python -m benchmarks.caption_encoders

The encoder alone, with three linear classifiers on the maximum over a caption's tokens, is trained to tell colour,
shape and direction of drawn scenes from their varied captions, and judged on the development wordings of
`testing/phrasings.py`: what an encoder can learn from clear labels, which a video network's loss is not.
"""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.synthetic import COLOURS, DIRECTIONS, SHAPES, Combination, random_scene, training_combinations
from data.synthetic_captions import varied_caption
from models.text.caption import strongest
from models.text.config import TextConfig, WordsConfig
from models.text.encoder import build_encoder, read
from testing.phrasings import DEVELOPMENT, Wording, wordings

RESULT = Path(__file__).parent / "results" / "caption_encoders.json"
NAMES = (tuple(COLOURS), SHAPES, tuple(DIRECTIONS))
NUM_CAPTIONS, BATCH, LEARNING_RATE, WARMUP, SEED = 1440, 32, 3e-3, 50, 0
JUDGED_AFTER = (50, 100)
ENCODERS = {
    "bytes": TextConfig(width=128, depth=1, heads=2, max_bytes=128, normalization="nfkc_casefold"),
    "words": TextConfig(width=128, depth=1, heads=2, words=WordsConfig(max_words=32), normalization="nfkc_casefold"),
}


class Reader(nn.Module):
    """An encoder and what it tells of a scene."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, build_encoder(config, None)
        self.heads = nn.ModuleList(nn.Linear(config.width, len(names)) for names in NAMES)

    def forward(self, captions: Sequence[str]) -> list[Float[Tensor, "b k"]]:
        """Scores of the colours, the shapes and the directions."""
        caption = read(self.config, captions)
        pooled = strongest(self.encoder(caption), caption.mask)
        return [head(pooled) for head in self.heads]


def numbers(shown: Combination) -> list[int]:
    """Of its colour, shape and direction."""
    return [names.index(name) for names, name in zip(NAMES, (shown.colour, shown.shape, shown.direction), strict=True)]


@torch.no_grad()
def judged(reader: Reader, prompts: Sequence[Wording]) -> dict[str, dict[str, float]]:
    """The shares of prompts whose colour and direction are told, and whose shape too, by group of wordings."""
    told = torch.stack([scores.argmax(1) for scores in reader([wording.prompt for wording in prompts])], dim=1)
    right = told == torch.tensor([numbers(wording.combination) for wording in prompts])  # prompts 3
    groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for wording, (colour, shape, direction) in zip(prompts, right.tolist(), strict=True):
        groups[wording.group].append((colour and direction, colour and shape and direction))
    return {
        group: dict(zip(("colour and direction", "all"), np.mean(rows, axis=0).round(3).tolist(), strict=True))
        for group, rows in groups.items()
    }


def trained(config: TextConfig) -> dict[str, object]:
    """Train a reader and judge it on the way."""
    torch.manual_seed(SEED)
    reader, random = Reader(config), np.random.default_rng(SEED)
    scenes = [random_scene(SEED, number, training_combinations()) for number in range(NUM_CAPTIONS)]
    captions = [varied_caption(scene, np.random.default_rng([SEED, number, 1])) for number, scene in enumerate(scenes)]
    labels = torch.tensor([numbers(scene.combination) for scene in scenes])
    prompts = [each for each in wordings(seed=1, forms=DEVELOPMENT) if "unseen" not in each.group]
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    found: dict[str, object] = {}
    seconds = 0.0
    for step in range(1, max(JUDGED_AFTER) + 1):
        start = time.process_time()
        batch = torch.from_numpy(random.integers(NUM_CAPTIONS, size=BATCH))
        scores = reader([captions[number] for number in batch.tolist()])
        loss = torch.stack([cross_entropy(each, labels[batch, part]) for part, each in enumerate(scores)]).sum()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, step / WARMUP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - start
        if step in JUDGED_AFTER:
            found[f"after {step} steps"] = judged(reader.eval(), prompts)
            reader.train()
    return {"cpu_ms_per_step": round(1000 * seconds / max(JUDGED_AFTER), 1), **found}


def main() -> None:
    """Train each encoder in turn, print and write the shares."""
    torch.set_num_threads(1)
    results = {name: trained(config) for name, config in ENCODERS.items()}
    print(json.dumps(results, indent=1), flush=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
