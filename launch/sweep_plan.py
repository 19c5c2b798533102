"""The combinations of a sweep: read from the command line, checked before anything starts, and planned."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain

from pydantic import JsonValue, ValidationError

from data.errors import ReelflowError, shorten
from data.video.codec import check_encoder
from launch.overrides import ConfigError, explain
from launch.plain_yaml import YamlError, read_plain_yaml
from launch.sample_settings import SamplingConfig
from pipeline.evaluate.comparison import MIN_CLIPS
from pipeline.evaluate.sweep import combinations_of, name_of
from pipeline.sample.checks import check_can_sample, contradiction_in
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel
from pipeline.sample.plan import BadRows, Plan
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import SETTINGS, PromptError
from pipeline.sample.requests import PromptRequest
from pipeline.sample.truncation import truncation_warnings

MAX_COMBINATIONS = 1024
MAX_REFUSED = 20  # combinations that a message lists


@dataclass(frozen=True)
class Combination:
    """A combination and its requests."""

    settings: Mapping[str, JsonValue]
    plan: Plan
    num_requests: int

    @property
    def name(self) -> str:
        """For people."""
        return name_of(self.settings)


@dataclass(frozen=True)
class Requests:
    """The requests of all combinations: for each the same prompts and seeds."""

    plans: Sequence[Plan]

    def __iter__(self) -> Iterator[PromptRequest]:
        """One combination after the other; each iteration plans them anew."""
        return chain.from_iterable(self.plans)


def read_varied(options: Sequence[str]) -> dict[str, list[JsonValue]]:
    """The values of each setting, of options SETTING=VALUE,VALUE,...; values are YAML.

    Raises:
        ConfigError: an option is not of that form, a setting is unknown or given twice, or there are too many.
    """
    varied: dict[str, list[JsonValue]] = {}
    for text in options:
        told = f"--vary {shorten(text)}"
        name, separator, values = text.partition("=")
        name = name.strip().removeprefix("sample.")
        if not separator or not values.strip():
            raise ConfigError(f"{told}: write SETTING=VALUE,VALUE, for example --vary steps=4,8")
        if name not in SETTINGS:
            close = get_close_matches(name, SETTINGS, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(SETTINGS)}"
            raise ConfigError(f"{told}: there is no setting {shorten(name)} that can be varied; {hint}")
        if name in varied:
            raise ConfigError(f"{told}: {name} is varied twice; give all its values in one option")
        try:
            read = read_plain_yaml(f"[{values}]", whole=True)
        except YamlError as error:
            raise ConfigError(f"{told}: {error}; quote text that has commas, brackets or colons") from error
        if any(value in read[:number] for number, value in enumerate(read)):
            raise ConfigError(f"{told}: a value is there twice; give each once")
        varied[name] = read
    if not varied:
        raise ConfigError("nothing is varied; give at least one --vary SETTING=VALUE,VALUE")
    number = len(combinations_of(varied))
    if number > MAX_COMBINATIONS:
        raise ConfigError(f"these values have {number} combinations, more than {MAX_COMBINATIONS}; vary fewer at once")
    return varied


def plan_sweep(
    model: SampledModel, config: SamplingConfig, varied: Mapping[str, Sequence[JsonValue]]
) -> tuple[list[Combination], list[str]]:
    """Every combination, checked, and warnings.

    Raises:
        ConfigError: a combination cannot be sampled, or has too few clips.
        PromptError: the prompts file cannot be used.
        EncoderError: the encoder of sample.video is missing.
    """
    section = config.sample
    if section.prompts is None:
        raise ConfigError("sample.prompts is not set; give a prompts file")
    if "webdataset" in section.outputs:
        raise ConfigError(
            "sample.outputs: webdataset has no place in a sweep, whose clips differ in their settings; use sample"
        )
    check_encoder(section.video)
    if section.compare_unguided:
        raise ConfigError(
            "sample.compare_unguided has no place in a sweep: vary guidance_scale, with 1 among its values"
        )
    bad_rows = BadRows(section.bad_rows == "set_aside")
    prompts, base = PromptsFile(section.prompts, bad_rows.add), section.sampler()
    for placed in prompts:
        if both := [name for name in varied if name in placed.prompt.settings]:
            raise PromptError(f"{placed.place}: {', '.join(both)} is varied by the sweep; leave the column out")
    found, refused, warnings, models = list[Combination](), list[str](), list[str](), dict[str, SampledModel]()
    for settings in combinations_of(varied):
        try:
            swept = _config_of(base, settings)
            check_can_sample(model, swept)
            plan = Plan(model, swept, prompts, config.seed, bad_rows=bad_rows, outputs=section.files())
            summary = plan.check()
        except ReelflowError as error:
            refused.append(f"{name_of(settings)}: {error}")
            continue
        found.append(Combination(settings, plan, summary.num_requests))
        models |= summary.models
        warnings += [warning for warning in summary.warnings if warning not in warnings]
    if refused:
        more = f"\n  and {len(refused) - MAX_REFUSED} more" if len(refused) > MAX_REFUSED else ""
        raise ConfigError(
            f"{len(refused)} of {len(refused) + len(found)} combinations cannot be sampled; sweep the others in "
            "several commands:" + "".join(f"\n  {each}" for each in refused[:MAX_REFUSED]) + more
        )
    if (fewest := min(each.num_requests for each in found)) < MIN_CLIPS:
        raise ConfigError(f"{section.prompts} asks for {fewest} clips, and a combination needs at least {MIN_CLIPS}")
    return found, prompts.notes + warnings + truncation_warnings(model, base, prompts, models)


def _config_of(base: SampleConfig, settings: Mapping[str, JsonValue]) -> SampleConfig:
    """The settings of a combination, each of which has to have an effect.

    Raises:
        ConfigError: a value is wrong, or has no effect beside the others.
    """
    try:
        config = SampleConfig.model_validate({**base.model_dump(), **settings})
    except ValidationError as error:
        raise ConfigError(" ".join(explain(error, "it", SampleConfig).split())) from error
    if (found := contradiction_in(config, settings)) is not None:
        raise ConfigError(str(found))
    return config
