"""Tokens beside a flow of latents, on the demo: what the tokeniser loses, and adherence of a masked-token network.

    python -m launch run demo             the flow
    python -m launch run demo-tokens      the tokens; a `train dit` of it that was stopped serves too
    python -m benchmarks.tokens runs/demo-tokens/dit --data runs/demo-tokens --flow runs/demo

Settings are compared on seeds of their own (`--first-seed 100`), and the chosen ones measured on those of the demo,
from 0 on: held-out combinations, of which no training clip shows one. Clips are compressed and judged as by `evaluate`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.dataset.index import read_index
from data.dataset.latents import read_latents
from data.dataset.reader import PayloadReader
from data.records import Frames
from data.synthetic import held_out_combinations
from data.video.codec import decode_clip, encode_clip
from models.autoencoder.model import psnr_db, squared_error
from pipeline.encode.codec import to_pixels
from pipeline.encode.statistics import denormalize, normalize
from pipeline.evaluate.judge import judge_clip
from pipeline.report.contact_sheet import SheetClip, SheetLayout, contact_sheet, evenly
from pipeline.report.figures import ATTRIBUTES, count
from pipeline.run.precision import prepare_to_compute
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import TrainedModel, open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler

RESULT = Path(__file__).parent / "results" / "tokens.json"
VALIDATION_CLIPS = 32


@dataclass(frozen=True)
class TokenizerRow:
    """What tokens keep of validation clips."""

    levels: Sequence[int]
    codes: int
    tokens_per_clip: int
    autoencoder_psnr_db: float
    psnr_db: float
    lost_variance: float
    """Mean squared error of normalised latents."""
    used: int
    """Tokens of the vocabulary that occur."""
    perplexity: float


@dataclass(frozen=True)
class SampleRow:
    """Adherence of clips at some settings."""

    steps: int
    calls: int
    guidance_scale: float
    temperature: float
    corrector: float
    first_seed: int
    num_clips: int
    adherence: dict[str, float]
    cpu_seconds_per_clip: float


@torch.no_grad()
def tokenizer_row(model: TrainedModel, data: Path) -> TokenizerRow:
    """Reconstruction by the autoencoder alone, and through tokens."""
    pixels = torch.stack([to_pixels(decode_clip(payload)) for payload in payloads(data / "clips")])
    latents = normalize(read_latents(payloads(data / "latents")).float(), model.stats)
    autoencoder, tokenizer = model.load_autoencoder(), model.load_tokenizer()
    assert tokenizer is not None

    def psnr(normalised: Float[Tensor, "b c t h w"]) -> float:
        return psnr_db(squared_error(pixels, autoencoder.decode(denormalize(normalised, model.stats)))).mean().item()

    tokens = tokenizer.encode(latents)
    rebuilt, config = tokenizer.decode(tokens), tokenizer.config
    shares = tokens.flatten().bincount(minlength=config.num_tokens).double() / tokens.numel()
    return TokenizerRow(
        levels=config.levels,
        codes=config.codes,
        tokens_per_clip=tokens[0].numel(),
        autoencoder_psnr_db=psnr(latents),
        psnr_db=psnr(rebuilt),
        lost_variance=(rebuilt - latents).square().mean().item(),
        used=int((shares > 0).sum()),
        perplexity=(-torch.special.xlogy(shares, shares).sum()).exp().item(),
    )


def payloads(folder: Path) -> list[bytes]:
    """Those of the first validation clips of a dataset."""
    reader = PayloadReader(folder)
    rows = [row for row in read_index(folder) if row.split == "validation"][:VALIDATION_CLIPS]
    found = [bytes(reader.read(row)) for row in rows]
    reader.close()
    return found


def sampled(
    model: TrainedModel, config: SampleConfig, first_seed: int, clips_per_prompt: int
) -> tuple[SampleRow, list[SheetClip]]:
    """Clips of each held-out combination, and what they show."""
    sampler = ClipSampler(model, config, torch.device("cpu"))
    bucket, verdicts, shown, calls = model.trained_buckets[0], [], [], 0
    wanted = [(each, first_seed + seed) for each in held_out_combinations() for seed in range(clips_per_prompt)]
    requests = [
        PromptRequest(
            id=f"{number:012x}",
            prompt=f"a {each.colour} {each.shape} moves {each.direction}",
            seed=seed,
            guidance_scale=config.guidance_scale,
            bucket=bucket.name,
        )
        for number, (each, seed) in enumerate(wanted)
    ]
    begin, frames = time.process_time(), list[Frames]()
    for group in sampler.groups(requests):
        made, calls = sampler.sample_group(group)
        frames += made
    seconds = time.process_time() - begin
    for (each, _), request, clip in zip(wanted, requests, frames, strict=True):
        seen = decode_clip(encode_clip(clip, bucket.fps))
        verdicts.append(judge_clip(seen).agrees(each))
        shown.append(SheetClip(seen, request.prompt))
    share = count(verdicts)
    row = SampleRow(
        steps=config.steps,
        calls=calls,
        guidance_scale=config.guidance_scale,
        temperature=config.temperature,
        corrector=config.corrector,
        first_seed=first_seed,
        num_clips=len(frames),
        adherence={name: round(share.share(name), 4) for name in ATTRIBUTES},
        cpu_seconds_per_clip=round(seconds / len(frames), 3),
    )
    return row, shown


def main() -> None:
    """Measure, print, and add to the rows beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a training on tokens, or a checkpoint of it")
    parser.add_argument("--data", type=Path, required=True, help="a run with the clips and latents that it learned")
    parser.add_argument("--flow", type=Path, help="a finished run of the demo, whose report has the flow's adherence")
    parser.add_argument("--steps", type=int, nargs="+", default=[32])
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 1.0])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--corrector", type=float, nargs="+", default=[0.0])
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--clips-per-prompt", type=int, default=6)
    parser.add_argument("--sheet", type=Path, help="PNG file for a contact sheet of the first settings")
    arguments = parser.parse_args()
    prepare_to_compute(torch.device("cpu"))
    model = open_model(arguments.model)
    assert isinstance(model, TrainedModel)
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"samples": []}
    result["training"] = {
        "network": model.network.model_dump(mode="json", exclude_defaults=True),
        "steps": model.checkpoint.record.step,
        "clips": model.checkpoint.record.cursor,
    }
    result["tokenizer"] = asdict(tokenizer_row(model, arguments.data))
    if arguments.flow is not None:
        found = json.loads((arguments.flow / "report.json").read_text(encoding="utf-8"))
        result["flow"] = {
            "adherence": {name: round(found["adherence"][name], 4) for name in ATTRIBUTES},
            "num_clips": found["adherence"]["num_clips"],
        }
    print(json.dumps({name: part for name, part in result.items() if name != "samples"}, indent=1))
    for steps in arguments.steps:
        for scale in arguments.guidance:
            for temperature in arguments.temperature:
                for corrector in arguments.corrector:
                    config = SampleConfig(
                        solver="jumps",
                        steps=steps,
                        guidance_scale=scale,
                        temperature=temperature,
                        corrector=corrector,
                    )
                    row, shown = sampled(model, config, arguments.first_seed, arguments.clips_per_prompt)
                    print(json.dumps(asdict(row)), flush=True)
                    result["samples"].append(asdict(row))
                    if arguments.sheet is not None:
                        sheet = contact_sheet(evenly(shown, 24), SheetLayout())
                        arguments.sheet.write_bytes(sheet)
                        arguments.sheet = None
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
