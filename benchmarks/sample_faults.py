"""Sample a file of prompts while actors, the raylet and the command are killed; compare with an undisturbed job.

    python -m benchmarks.sample_faults [--rows 1000] [--strikes 8]

The undisturbed job has one actor, another batch size and the rows in reverse; a third job samples every fiftieth row
alone. `testing.sample_faults` says what a strike is.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from data.files.publish import publish_text
from testing.paths import ROOT
from testing.sample_faults import (
    SampleJob,
    check_exactly_once,
    digests,
    random_strikes,
    rows_of,
    strike_at,
    write_model,
    write_rows,
)

RESULTS = ROOT / "benchmarks" / "results" / "sample_faults.json"
ACTORS, BATCH = "cluster.workers.num_workers", "sample.batch"


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--strikes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_of(asked.rows)
        model, prompts = write_model(folder), write_rows(folder / "rows.jsonl", rows)
        struck = SampleJob(model, prompts, folder / "struck", ("--set", f"{ACTORS}=2", "--set", f"{BATCH}=24"))
        strikes = random_strikes(asked.strikes, asked.rows, asked.seed)
        outcome = strike_at(struck, strikes)
        check_exactly_once(struck, asked.rows)
        print(outcome, flush=True)
        calm = SampleJob(
            model,
            write_rows(folder / "reversed.jsonl", rows[::-1]),
            folder / "calm",
            ("--set", f"{ACTORS}=1", "--set", f"{BATCH}=40"),
        )
        assert calm.run() == 0, calm.said
        few = SampleJob(model, write_rows(folder / "few.jsonl", rows[::50]), folder / "few", ("--set", f"{ACTORS}=1"))
        assert few.run() == 0, few.said
        expected, alone = digests(calm.output), digests(few.output)
        result = {
            "rows": asked.rows,
            "strikes": strikes,
            **asdict(outcome),
            "clips": len(digests(struck.output)),
            "identical_to_undisturbed": digests(struck.output) == expected,
            "of_a_subset_alone": len(alone),
            "identical_alone": alone.items() <= expected.items(),
        }
        print(json.dumps(result, indent=1))
        publish_text(RESULTS, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
