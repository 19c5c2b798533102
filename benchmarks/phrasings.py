"""How well a network that was trained on the drawn clips reads prompts in wordings that it never saw.

python -m benchmarks.phrasings runs/demo

A clip for each prompt of `testing/phrasings.py`, with the settings of the run, judged for colour, shape and direction.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from data.files.jsonl import read_jsonl
from data.synthetic import Combination
from pipeline.evaluate.adherence import judge_file
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from testing.phrasings import Wording, wordings

RESULT = Path(__file__).parent / "results" / "phrasings.json"
SETTINGS = ("sample.solver=heun", "sample.steps=12", "sample.shift=3", "sample.guidance_scale=3")  # of the demo


def sample(checkpoint: Path, prompts: list[Wording], folder: Path) -> list[SampledClip]:
    """Sample every prompt once, by the command line; the clips lie in `folder`."""
    table = folder / "prompts.jsonl"
    lines = [
        json.dumps({"prompt": wording.prompt, "seed": number, "expect": vars(wording.combination)})
        for number, wording in enumerate(prompts)
    ]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "launch", "sample", str(checkpoint), "--prompts", str(table)]
    command += ["--output", str(folder / "clips")]
    subprocess.run([*command, *(part for setting in SETTINGS for part in ("--set", setting))], check=True)
    return read_jsonl(folder / "clips" / SAMPLES_NAME, SampledClip)


def shares(verdicts: list[dict[str, bool]]) -> dict[str, float | int]:
    """Share of the clips that are right, by attribute, in colour and direction together, and in all three."""
    right = {name: sum(verdict[name] for verdict in verdicts) for name in verdicts[0]}
    both = sum(verdict["colour"] and verdict["direction"] for verdict in verdicts)
    counted = {**right, "colour and direction": both}
    return {"clips": len(verdicts)} | {name: round(number / len(verdicts), 3) for name, number in counted.items()}


def main(run_dir: Path) -> None:
    """Sample, judge, print and write the shares by group of wordings."""
    prompts = wordings()
    by_seed = dict(enumerate(prompts))
    groups: dict[str, list[dict[str, bool]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        for clip in sample(run_dir / "dit", prompts, Path(temporary)):
            wording = by_seed[clip.request.seed]
            expected = Combination(**vars(wording.combination))
            groups[wording.group].append(judge_file(Path(temporary) / "clips" / clip.file, expected))
    result = {group: shares(verdicts) for group, verdicts in groups.items()}
    known = [verdict for group, verdicts in groups.items() if "unseen" not in group for verdict in verdicts]
    result["all but unseen words"] = shares(known)
    for group, row in result.items():
        print(f"{group:42} {row}", flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
