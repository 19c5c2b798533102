"""How much of the prompts a network reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType

from data.errors import shorten
from models.text.config import TextConfig
from models.text.pretrained import token_lengths
from pipeline.sample.checks import text_encoder_folder
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel
from pipeline.sample.prompts import PlacedPrompt

Units = bytes | list[str]
CHUNK = 1024  # prompts that a tokenizer takes at once


@dataclass
class _Texts:
    """Texts that were measured: their number, those that are too long, and which become equal where they are cut."""

    count: int = 0
    num_long: int = 0
    longest: int = 0
    first: tuple[str, str] = ("", "")
    whole: set[bytes] = field(default_factory=set)
    read: set[bytes] = field(default_factory=set)


def truncation_warnings(
    model: SampledModel,
    config: SampleConfig,
    prompts: Iterable[PlacedPrompt],
    others: Mapping[str, SampledModel] = MappingProxyType({}),
) -> list[str]:
    """What the networks do not read of the prompts, with counts, one line of each kind.

    Args:
        prompts: read several times, a chunk at a time.
        others: the checkpoints that rows name, by what they call them.

    Raises:
        TextEncoderError: the tokenizer of a text encoder cannot be loaded.
    """
    own = config.model_copy(update={"negative_prompt": None})  # that of the job is told of once
    return _of_one(model, config, _Rows(prompts, None)) + [
        f"{name}: {warning}" for name, other in others.items() for warning in _of_one(other, own, _Rows(prompts, name))
    ]


@dataclass(frozen=True)
class _Rows:
    """The prompts that name a checkpoint, or none."""

    prompts: Iterable[PlacedPrompt]
    checkpoint: str | None

    def __iter__(self) -> Iterator[PlacedPrompt]:
        return (placed for placed in self.prompts if placed.prompt.checkpoint == self.checkpoint)


def _of_one(model: SampledModel, config: SampleConfig, prompts: Iterable[PlacedPrompt]) -> list[str]:
    encoder = model.text_encoder
    measure: Callable[[Sequence[str]], Sequence[int]]
    units: Callable[[str], Units] | None = None
    if encoder is None:
        text = model.network.caption_text
        most, unit = text.most, text.unit
        measure, units = partial(_lengths, text), text.units
    else:
        most, unit = encoder.max_tokens, "tokens"
        measure = partial(token_lengths, text_encoder_folder(model, config))
    warnings = []
    own = ((placed.place, placed.prompt.settings.get("negative_prompt")) for placed in prompts)
    for what, texts in (
        ("prompts", ((placed.place, placed.prompt.prompt) for placed in prompts)),
        (
            "later prompts",
            ((placed.place, each.prompt) for placed in prompts for each in placed.prompt.later_prompts or ()),
        ),
        ("negative prompts of rows", ((place, text) for place, text in own if isinstance(text, str))),
    ):
        found = _measured(texts, most, measure, units)
        if found.num_long:
            place, text = found.first
            same = len(found.whole) - len(found.read)
            warnings.append(
                f"{found.num_long} of {found.count} {what} have more than the {most} {unit} that the network reads and "
                f"are cut there; the longest has {found.longest}; the first is in {place}, {shorten(text, 60)!r}"
                + (f"; {same} of them become equal to another one" if same else "")
            )
    if config.negative_prompt is not None and measure([config.negative_prompt])[0] > most:
        warnings.append(
            f"sample.negative_prompt has more than the {most} {unit} that the network reads and is cut there"
        )
    return warnings


def _measured(
    texts: Iterable[tuple[str, str]],
    most: int,
    measure: Callable[[Sequence[str]], Sequence[int]],
    units: Callable[[str], Units] | None,
) -> _Texts:
    found, rest = _Texts(), iter(texts)
    while chunk := list(islice(rest, CHUNK)):
        lengths = measure([text for _, text in chunk])
        for (place, text), length in zip(chunk, lengths, strict=True):
            found.count += 1
            if length > most:
                found.first = found.first if found.num_long else (place, text)
                found.num_long += 1
            found.longest = max(found.longest, length)
            if units is not None:
                content = units(text)
                found.whole.add(_digest(content))
                found.read.add(_digest(content[:most]))
    return found


def _lengths(config: TextConfig, texts: Sequence[str]) -> list[int]:
    return [len(config.units(text)) for text in texts]


def _digest(content: Units) -> bytes:
    return blake2b(content if isinstance(content, bytes) else " ".join(content).encode(), digest_size=8).digest()
