"""Prompts files (text with one prompt per line, or JSONL with options), and the clips they request."""

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
    """A prompt or a prompts file that cannot be used; the message names the file and the line."""


class Prompt(Record):
    """A line of a prompts file."""

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS)
    seed: int | None = None  # of the noise; None: derived from the seed of the run and the text of the prompt
    bucket: str | None = None  # shape of the clip, such as 17x64x64@8; None: that of the configuration
    expect: dict[str, str] | None = None  # attribute -> value that the judge should find, where it is known


class PromptRequest(Record):
    """One clip to sample, with all options decided."""

    id: str  # content address: 12 hexadecimal digits
    prompt: str
    seed: int
    guidance_scale: float
    bucket: str
    expect: dict[str, str] | None = None

    @property
    def file_name(self) -> str:
        """Name of the MP4 file: words of the prompt, then the id."""
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in self.prompt.lower()).split())
        return f"{words[:48].strip('-') or 'clip'}-{self.id}.mp4"


def read_prompts(path: Path) -> tuple[list[Prompt], list[str]]:
    """The prompts of a file, and a warning for each empty line, which is skipped.

    Raises:
        PromptError: the file is missing, not UTF-8 or without prompts, or a line of a JSONL file is malformed.
    """
    if not path.is_file():
        raise PromptError(f"{path}: there is no such prompts file; write one with one prompt per line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    # In JSON, other line separators than a line feed may be part of a string.
    lines = text.removesuffix("\n").split("\n") if path.suffix == ".jsonl" else text.splitlines()
    prompts, warnings = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            warnings.append(f"{path}: line {number} is empty and was skipped")
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
        raise PromptError(f"{path} holds no prompt; write one per line")
    return prompts, warnings


def order_buckets(trained: Sequence[str], wanted: str | None, prompts: list[Prompt]) -> list[str]:
    """The names of the shapes that a network was trained on, with the one of the configuration first.

    Args:
        trained: the names, that with most training clips first.
        wanted: `sample.bucket`; None keeps the order.

    Raises:
        PromptError: the configuration or a prompt names a shape that the network was not trained on.
    """
    known = ", ".join(trained)
    if wanted is not None and wanted not in trained:
        raise PromptError(f"sample.bucket is {wanted!r}, but the training was on {known}; choose one of them")
    for prompt in prompts:
        if prompt.bucket is not None and prompt.bucket not in trained:
            raise PromptError(f"bucket {prompt.bucket} of prompt {prompt.prompt!r} was not trained; use {known}")
    return sorted(trained, key=lambda name: name != wanted)


def format_prompts(prompts: list[Prompt]) -> str:
    """Prompts as the text of a JSONL file."""
    return "".join(prompt.model_dump_json(exclude_none=True) + "\n" for prompt in prompts)


def plan_requests(
    prompts: list[Prompt], guidance_scales: list[float], run_seed: int, settings: str, buckets: Sequence[str]
) -> list[PromptRequest]:
    """One request per prompt and guidance scale; equal requests are planned once.

    The noise of a prompt is the same at every scale. Ids are content addresses: adding, removing or reordering prompts
    changes no clip of another prompt.

    Args:
        settings: identifies all else that the pixels depend on, such as checkpoint, solver and steps.
        buckets: names of the shapes that the network was trained on; a prompt that names none gets the first.
    """
    repeats: Counter[str] = Counter()
    requests = []
    for prompt in prompts:
        bucket = prompt.bucket or buckets[0]
        seed = prompt.seed
        if seed is None:  # of two equal lines, the second gets another seed
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
