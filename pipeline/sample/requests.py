"""Prompts files: plain text with one prompt a line, or JSONL with options."""

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from pydantic import Field, ValidationError

from data.errors import ReelflowError
from data.records import Record

MAX_PROMPT_CHARACTERS = 4096


class PromptError(ReelflowError, ValueError):
    """A prompts file that cannot be used; the message names the file and the line."""


class Prompt(Record):
    """One clip to make."""

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS)
    seed: int | None = None  # None: derived from the run's seed and the prompt's text
    bucket: str | None = None  # the clip's shape, such as 17x64x64@8; None: the run's
    expect: dict[str, str] | None = None  # what the judge should see, where that is known


class PromptRequest(Record):
    """A prompt with everything decided, and the name its clip will have."""

    id: str
    prompt: str
    seed: int
    guidance_scale: float
    bucket: str
    expect: dict[str, str] | None = None

    @property
    def file_name(self) -> str:
        """Readable words of the prompt, then the id."""
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in self.prompt.lower()).split())
        return f"{words[:48].strip('-') or 'clip'}-{self.id}.mp4"


def read_prompts(path: Path) -> tuple[list[Prompt], list[str]]:
    """The prompts of a file and a warning for every line that was passed over.

    Raises:
        PromptError: the file is missing, holds no prompt, or a line of a JSONL file is malformed.
    """
    if not path.is_file():
        raise PromptError(f"{path}: there is no such prompts file; write one prompt a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    prompts, warnings = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            warnings.append(f"{path}: line {number} is empty and was passed over")
            continue
        try:
            if path.suffix == ".jsonl":
                prompts.append(Prompt.model_validate(json.loads(line)))
            else:
                prompts.append(Prompt(prompt=" ".join(line.split())))
        except (json.JSONDecodeError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.msg
            raise PromptError(
                f"{path}: line {number} is not a prompt: {reason}; "
                f'a line is {{"prompt": "a red circle moves left", "seed": 1}}'
            ) from error
    if not prompts:
        raise PromptError(f"{path} holds no prompt; write one a line")
    return prompts, warnings


def order_buckets(trained: Sequence[str], wanted: str | None, prompts: list[Prompt]) -> list[str]:
    """The names of the shapes a network was trained on, the wanted one first.

    Raises:
        PromptError: it, or that of a prompt, is none of them.
    """
    known = ", ".join(trained)
    if wanted is not None and wanted not in trained:
        raise PromptError(f"sample.bucket is {wanted!r}, but the training was on {known}; choose one of them")
    for prompt in prompts:
        if prompt.bucket is not None and prompt.bucket not in trained:
            raise PromptError(f"bucket {prompt.bucket} of prompt {prompt.prompt!r} was not trained; use {known}")
    return sorted(trained, key=lambda name: name != wanted)


def format_prompts(prompts: list[Prompt]) -> str:
    """JSONL text of prompts."""
    return "".join(prompt.model_dump_json(exclude_none=True) + "\n" for prompt in prompts)


def plan_requests(
    prompts: list[Prompt], guidance_scales: list[float], run_seed: int, settings: str, buckets: Sequence[str]
) -> list[PromptRequest]:
    """One request per prompt and guidance scale. A prompt's noise is the same at every scale.

    Ids are content addresses: adding, removing or reordering lines changes no other line's clip.

    Args:
        settings: names everything else the pixels depend on (checkpoint, solver, steps).
        buckets: names of the shapes that can be made; a prompt that names none gets the first.
    """
    repeats: Counter[str] = Counter()
    requests = []
    for prompt in prompts:
        bucket = prompt.bucket or buckets[0]
        seed = prompt.seed
        if seed is None:  # the second of two equal lines is another clip
            address = f"{run_seed}\0{prompt.prompt}\0{repeats[prompt.prompt]}"
            repeats[prompt.prompt] += 1
            seed = int.from_bytes(blake2b(address.encode(), digest_size=4).digest(), "big")
        for scale in guidance_scales:
            address = f"{prompt.prompt}\0{seed}\0{scale:g}\0{bucket}\0{settings}"
            requests.append(
                PromptRequest(
                    id=blake2b(address.encode(), digest_size=6).hexdigest(),
                    prompt=prompt.prompt,
                    seed=seed,
                    guidance_scale=scale,
                    bucket=bucket,
                    expect=prompt.expect,
                )
            )
    return list({request.id: request for request in requests}.values())
