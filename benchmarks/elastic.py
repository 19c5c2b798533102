"""Save in every layout, resume in every other: compare state, losses and batches.

    python -m benchmarks.elastic

A layout is a number of workers, 1 to 4, and a ZeRO stage, 1 to 3: 144 pairs, worker processes over gloo.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from data.files.publish import publish_text
from testing.elastic import ALL_STEPS, GLOBAL_BATCH, LAYOUTS, SAVED_STEPS, Pair, run_pairs
from testing.paths import ROOT


class Matrix(BaseModel):
    """The content of the JSON file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: Literal["elastic"] = "elastic"
    saved_after_steps: int
    gone_on_for_steps: int
    global_batch: int
    pairs: list[Pair]


def main() -> None:
    """Run every pair and write the JSON."""
    pairs: list[Pair] = []
    for number, sources in itertools.groupby(LAYOUTS, key=lambda layout: layout.world_size):
        with tempfile.TemporaryDirectory(prefix="reelflow-elastic-") as temporary:
            pairs += run_pairs(list(itertools.product(sources, LAYOUTS)), Path(temporary))
        worst = max(pair.largest_relative_difference for pair in pairs)
        print(f"saved by {number}: {len(pairs)} pairs so far, losses within {worst:.2g}", flush=True)
    matrix = Matrix(
        saved_after_steps=SAVED_STEPS,
        gone_on_for_steps=ALL_STEPS - SAVED_STEPS,
        global_batch=GLOBAL_BATCH,
        pairs=pairs,
    )
    publish_text(ROOT / "benchmarks" / "results" / "elastic.json", matrix.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
