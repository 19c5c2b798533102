"""Prompts files (text with one prompt per line, or tables with options), and the clips they request."""

import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, field_validator, model_serializer

from data.errors import shorten
from data.files.jsonl import JsonLineError, numbered_lines, parse_line
from data.files.tables import TableError, read_table
from data.records import Record, Text
from pipeline.run.fingerprints import stored
from pipeline.sample.given import (
    CLIPS,
    IMAGES,
    MAX_PROMPT_CHARACTERS,
    NOTHING,
    Given,
    GivenColumns,
    ImageFile,
    MediaReader,
    PromptError,
    files_of,
    given_of,
)

MAX_BYTES = 2**28  # a million prompts
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".parquet")
OTHER_SUFFIXES = (".yaml", ".yml", ".xml", ".html", ".toml", ".xlsx", ".ods", ".ndjson", ".gz", ".zip")
_SEPARATORS = re.compile("[\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")  # where Python, but no editor, ends a line


class Prompt(GivenColumns):
    """A line of a prompts file. Paths are in the file also relative to it, later absolute."""

    prompt: Text = Field(max_length=MAX_PROMPT_CHARACTERS)
    seed: int | None = None  # of the noise; None: derived from the seed of the run and the text of the prompt
    bucket: Text | None = None  # shape of the clip, such as 17x64x64@8; None: that of the configuration
    expect: dict[Text, Text] | None = None  # attribute -> value that the judge should find, where it is known

    @field_validator("seed", mode="before")
    @classmethod
    def _refuse_truth_values(cls, seed: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(seed, bool):
            raise ValueError("true and false are no seeds")
        return seed


class PromptRequest(Record):
    """One clip to sample, with all options decided."""

    id: str  # content address: 12 hexadecimal digits
    prompt: str
    seed: int
    guidance_scale: float
    bucket: str
    expect: dict[str, str] | None = None
    image: ImageFile | None = None  # that the clip starts from; left out where there is none
    given: Given | None = None  # what else is given; left out where there is nothing

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = serialize(self)
        return {name: value for name, value in fields.items() if name not in ("image", "given") or value is not None}

    @property
    def layout(self) -> tuple[object, ...]:
        """What requests of one shape have in common that can be computed together."""
        return (self.image is not None, *(self.given or NOTHING).layout)

    def prompt_at(self, seconds: float) -> str:
        """The prompt of the window whose first new frame is shown at that time."""
        later = (self.given or NOTHING).later_prompts or ()
        return [self.prompt, *(each.prompt for each in later if each.seconds <= seconds)][-1]

    @property
    def file_name(self) -> str:
        """Name of the MP4 file: words of the prompt, then the id."""
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in self.prompt.lower()).split())
        return f"{words[:48].strip('-') or 'clip'}-{self.id}.mp4"


def read_prompts(path: Path) -> tuple[list[Prompt], list[str]]:
    """The prompts of a file, and a warning of each kind for lines that are not read as they look.

    The suffix, in any case, decides the format: .jsonl; the tables .csv, .tsv, .json and .parquet with the columns of
    `Prompt`; any other is text. In text, runs of white space become one space, as in captions. Images and the
    beginnings of clips are decoded once, to see that they can be; their paths become absolute.

    Raises:
        PromptError: the file is missing, too large, cannot be read or holds no prompts, or an image or a clip that it
            names is missing or damaged; names the line or row.
    """
    if not path.is_file():
        raise PromptError(f"{path}: there is no such prompts file; write one with one prompt per line")
    if (num_bytes := path.stat().st_size) > MAX_BYTES:
        raise PromptError(f"{path} has {num_bytes} bytes, more than {MAX_BYTES}; split it into several prompts files")
    suffix = path.suffix.lower()
    if suffix in OTHER_SUFFIXES:
        raise PromptError(f"{path}: prompts files are text, .jsonl, {', '.join(TABLE_SUFFIXES)}, not {path.suffix}")
    content, warnings = path.read_bytes(), list[str]()
    if suffix in TABLE_SUFFIXES:
        placed = _table_prompts(path, content, warnings)
    elif suffix == ".jsonl":
        placed = _json_prompts(path, content, warnings)
    else:
        placed = _text_prompts(path, content, warnings)
    prompts = _with_files(path, placed)
    if not prompts:
        raise PromptError(f"{path} holds no prompt; write one per line")
    return prompts, warnings + _repeated(path, prompts)


def _with_files(path: Path, placed: Iterable[tuple[str, Prompt]]) -> list[Prompt]:
    """The prompts, with absolute paths of images and clips that can be decoded.

    Args:
        placed: each prompt after its line or row.
    """
    media = MediaReader(path)
    return [prompt.model_copy(update=media.resolved(place, prompt)) for place, prompt in placed]


def prompt_settings(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """What a stage's output depends on of its prompts: of images and clips what they hold, wherever they are."""
    files = files_of(prompts)
    held = [
        {name: files[path].sha256 for name in (*IMAGES, *CLIPS) if (path := getattr(prompt, name)) is not None}
        for prompt in prompts
    ]
    return [stored(prompt) | hashes for prompt, hashes in zip(prompts, held, strict=True)]


def _repeated(path: Path, prompts: list[Prompt]) -> list[str]:
    """A warning about prompts that give no clip of their own, because an earlier one asks for the same.

    Without a seed there are none: each of two equal prompts gets its own.
    """
    seen, repeated = set(), []
    for number, prompt in enumerate(prompts, 1):
        if prompt.seed is None:
            continue
        key = prompt.model_dump_json(exclude={"expect"})
        if key in seen:
            repeated.append(number)
        seen.add(key)
    if not repeated:
        return []
    return [
        f"{path}: {len(repeated)} of {len(prompts)} prompts have text, seed and bucket of an earlier one and give no "
        f"clip of their own; the first is prompt {repeated[0]}; give them other seeds, or none"
    ]


def _table_prompts(path: Path, content: bytes, warnings: list[str]) -> Iterator[tuple[str, Prompt]]:
    try:
        rows = read_table(str(path), content)
    except TableError as error:
        raise PromptError(str(error)) from error
    if rows and path.suffix.lower() in (".csv", ".tsv"):
        _warn_of_empty_rows(path, content, [number for number, _ in rows], warnings)
    for number, row in rows:
        try:
            yield f"row {number}", Prompt.model_validate({str(column): value for column, value in row.items()})
        except ValidationError as error:
            raise _refusal(path, f"row {number}", error) from error


def _warn_of_empty_rows(path: Path, content: bytes, filled: list[int], warnings: list[str]) -> None:
    """Add a warning about the rows of a CSV or TSV file that are left out before the last one that is filled."""
    lines = content.removeprefix(BOM_UTF8).splitlines()
    header = next(number for number, line in enumerate(lines, 1) if line)
    empty = sorted({*range(1, filled[-1])} - {header, *filled})
    if len(empty) == 1:
        warnings.append(f"{path}: row {empty[0]} is empty and was skipped")
    elif empty:
        warnings.append(f"{path}: {len(empty)} rows are empty and were skipped; the first is row {empty[0]}")


def _json_prompts(path: Path, content: bytes, warnings: list[str]) -> Iterator[tuple[str, Prompt]]:
    for number, line in _filled(path, list(numbered_lines(BytesIO(content))), warnings):
        try:
            yield f"line {number}", parse_line(path, number, line, Prompt)
        except JsonLineError as error:
            raise _refusal(path, f"line {number}", error.reason) from error


def _text_prompts(path: Path, content: bytes, warnings: list[str]) -> Iterator[tuple[str, Prompt]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    separated = [number for number, line in enumerate(lines, 1) if _SEPARATORS.search(line.strip())]
    if separated:
        warnings.append(
            f"{path}: {len(separated)} lines hold line separators other than a line feed, each of which is read as a "
            f"space; the first is line {separated[0]}"
        )
    for number, line in _filled(path, list(enumerate(lines, 1)), warnings):
        try:
            yield f"line {number}", Prompt(prompt=" ".join(line.split()))
        except ValidationError as error:
            raise _refusal(path, f"line {number}", error) from error


def _filled(path: Path, lines: list[tuple[int, Any]], warnings: list[str]) -> list[tuple[int, Any]]:
    """The lines that are not empty; adds a warning about the others."""
    empty = [number for number, line in lines if not line.strip()]
    if len(empty) == 1:
        warnings.append(f"{path}: line {empty[0]} is empty and was skipped")
    elif empty:
        warnings.append(f"{path}: {len(empty)} lines are empty and were skipped; the first is line {empty[0]}")
    return [(number, line) for number, line in lines if line.strip()]


def _refusal(path: Path, place: str, reason: str | ValidationError) -> PromptError:
    if isinstance(reason, ValidationError):
        first = reason.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return PromptError(
        f"{path}: {place} is not a prompt: {shorten(reason, 300)}; a prompt has the fields "
        f'{{"prompt": "a red circle moves left", "seed": 1}} and, if need be, bucket, expect, image, and others'
    )


def order_buckets(trained: Sequence[str], wanted: str | None, prompts: Sequence[Prompt]) -> list[str]:
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
            text = shorten(prompt.prompt)
            raise PromptError(f"bucket {shorten(prompt.bucket)} of prompt {text!r} was not trained; use {known}")
    return sorted(trained, key=lambda name: name != wanted)


def format_prompts(prompts: list[Prompt]) -> str:
    """Prompts as the text of a JSONL file."""
    return "".join(prompt.model_dump_json(exclude_none=True) + "\n" for prompt in prompts)


def _digits(scale: float) -> str:
    """A guidance scale in six digits where these are exact, and else in all of its digits."""
    short = f"{scale:g}"
    return short if float(short) == scale else repr(scale)


def plan_requests(
    prompts: list[Prompt], guidance_scales: list[float], run_seed: int, settings: str, buckets: Sequence[str]
) -> list[PromptRequest]:
    """One request per prompt and guidance scale; equal requests are planned once.

    The noise of a prompt is the same at every scale. Ids are content addresses: adding, removing or reordering prompts
    changes no clip of another prompt. Of an image or a clip, the address has what the file
    holds, not where it is.

    Args:
        settings: identifies all else that the pixels depend on, such as checkpoint, solver and steps.
        buckets: names of the shapes that the network was trained on; a prompt that names none gets the first.
    """
    repeats: Counter[tuple[str, str]] = Counter()
    requests, files = [], files_of(prompts)
    for prompt in prompts:
        bucket = prompt.bucket or buckets[0]
        image, given = None if prompt.image is None else files[prompt.image], given_of(prompt, files)
        start = ("" if image is None else f"\0image {image.sha256}") + ("" if given is None else given.address)
        seed = prompt.seed
        if seed is None:  # of two equal lines, the second gets another seed
            address = f"{run_seed}\0{prompt.prompt}\0{repeats[prompt.prompt, start]}{start}"
            repeats[prompt.prompt, start] += 1
            seed = int.from_bytes(blake2b(address.encode(), digest_size=4).digest(), "big")
        for scale in guidance_scales:
            address = f"{prompt.prompt}\0{seed}\0{_digits(scale)}\0{bucket}\0{settings}{start}"
            requests.append(
                PromptRequest(
                    id=blake2b(address.encode(), digest_size=6).hexdigest(),
                    prompt=prompt.prompt,
                    seed=seed,
                    guidance_scale=scale,
                    bucket=bucket,
                    expect=prompt.expect,
                    image=image,
                    given=given,
                )
            )
    return list({request.id: request for request in requests}.values())
