"""From prompts to requests: what a row asks for, with the settings of the job, for one model."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

from pydantic import ValidationError

from data.dataset.buckets import Bucket
from data.errors import ReelflowError, shorten
from data.records import expand_home
from pipeline.engine.config import SplitError, check_tokens
from pipeline.run.fingerprints import output_json
from pipeline.sample.checks import LARGEST_SCALES, SHARED, check_model, check_settings, contradiction_in, is_beyond_rule
from pipeline.sample.conditions import BIASED, check_given
from pipeline.sample.config import MP4_ALONE, OutputsConfig, SampleConfig
from pipeline.sample.given import NOTHING, Given, ImageFile, given_of
from pipeline.sample.images import check_image
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.prompts import SHAPE_FIELDS, PlacedPrompt, Prompt, PromptError, refusal
from pipeline.sample.requests import (
    PlacedModel,
    PromptRequest,
    address_of,
    derived_seed,
    id_of,
    image_file,
    start_of,
)

MAX_REMEMBERED = 4096  # combinations of settings whose checks are remembered


@dataclass
class BadRows:
    """The rows of a prompts file that cannot be sampled, by place."""

    are_set_aside: bool = False
    """False: the first one ends the job before it begins."""
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, error: PromptError) -> None:
        """Remember a row.

        Raises:
            PromptError: the error, unless rows are set aside.
        """
        if not self.are_set_aside:
            raise error
        self.reasons[place] = str(error)


@dataclass(frozen=True)
class RowModel:
    """The model that samples a row, and what is remembered of it."""

    model: SampledModel
    wanted: str | None
    """`sample.bucket`."""
    placed: PlacedModel | None = None
    """How requests name it; None: it is that of the job."""

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the shapes that it was trained on."""
        return frozenset(bucket.name for bucket in self.model.trained_buckets)

    @cached_property
    def default_bucket(self) -> Bucket | None:
        """As `SampledModel.default_bucket`."""
        return self.model.default_bucket(self.wanted)

    @cached_property
    def bucket(self) -> Callable[[str], Bucket]:
        """As `SampledModel.bucket`."""
        return lru_cache(maxsize=MAX_REMEMBERED)(self.model.bucket)


@dataclass(frozen=True)
class RowSettings:
    """The settings of a row, and what follows from them."""

    of: RowModel
    config: SampleConfig
    weaker: PlacedModel | None
    address: str
    """The model and the settings that decide the pixels, as text; a part of the content address of each clip."""


@dataclass
class PlanSummary:
    """What a plan holds."""

    num_rows: int = 0
    num_requests: int = 0
    weaker: set[str] = field(default_factory=set)
    """Fingerprints of the checkpoints that guidance moves away from."""
    models: dict[str, SampledModel] = field(default_factory=dict)
    """Of the checkpoints that rows name, by what the rows call them."""
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Rows:
    """How many rows have something in common, and which was the first."""

    count: int = 0
    first: str = ""

    def add(self, place: str) -> None:
        self.first = self.first or place
        self.count += 1


@dataclass(frozen=True)
class Plan:
    """The requests of prompts. Each iteration plans them anew, row by row: memory holds an address of each, no more.

    Equal requests are planned once. The noise of a prompt is the same at every scale. Ids are content addresses:
    adding, removing or reordering prompts changes no clip of another prompt.

    Raises:
        PromptError: on iteration: a row cannot be sampled; names it and the field.
    """

    model: SampledModel
    config: SampleConfig
    """That has passed `check_can_sample`."""
    prompts: Iterable[PlacedPrompt]
    run_seed: int
    compare_unguided: bool = False
    """Plan every clip a second time without guidance."""
    bad_rows: BadRows = field(default_factory=BadRows)
    outputs: OutputsConfig = MP4_ALONE
    """The files to make of each clip: clips that cannot be written so are refused."""

    def __iter__(self) -> Iterator[PromptRequest]:
        """The requests, in the order of the prompts."""
        return (request for _, request, is_first in self._walk() if is_first)

    def check(self) -> PlanSummary:
        """Plan everything once, so that what cannot be sampled is refused before anything starts."""
        summary, repeated, untrained, masked, beyond = PlanSummary(), _Rows(), _Rows(), _Rows(), _Rows()
        trained = frozenset[str]()  # of the model of the first such row
        place, shapes, rules = "", set[str](), set[str]()
        for placed, request, is_first in self._walk():
            is_new_row, place = placed.place != place, placed.place
            summary.num_rows += is_new_row
            summary.num_requests += is_first
            if not is_first:
                repeated.add(place)
            if is_new_row and placed.prompt.mask is not None:
                masked.add(place)
            config = request.settings or self.config
            if is_new_row and request.weaker is None and is_beyond_rule(config):
                beyond.add(place)
                rules.add(config.guidance)
            if request.weaker is not None:
                summary.weaker.add(request.weaker.fingerprint)
            of = self._model_of(placed.prompt)
            if placed.prompt.checkpoint is not None:
                summary.models[placed.prompt.checkpoint] = of.model
            if is_new_row and of.trained and request.bucket not in of.trained:
                trained = trained or of.trained
                untrained.add(place)
                if len(shapes) < 3:
                    shapes.add(request.bucket)
        if repeated.count:
            summary.warnings.append(
                f"{repeated.count} clips are those of earlier rows, with equal text, seed and settings, and are made "
                f"once; the first is asked for again in {repeated.first}; give other seeds, or none"
            )
        if untrained.count:
            summary.warnings.append(
                f"{untrained.count} of {summary.num_rows} rows ask for shapes that the network was not trained on, "
                f"such as {', '.join(sorted(shapes))}, the first in {untrained.first}; it was trained on "
                f"{', '.join(sorted(trained))}, and others may look worse"
            )
        if beyond.count:
            limits = ", ".join(f"{rule} {LARGEST_SCALES[rule]:g}" for rule in sorted(rules))
            summary.warnings.append(
                f"{beyond.count} of {summary.num_rows} rows have a guidance scale beyond what pictures bear with its "
                f"rule ({limits}), the first in {beyond.first}: stripes and wrong colours are likely; lower it"
            )
        if masked.count:
            summary.warnings.append(f"{masked.count} rows have a mask, the first in {masked.first}: {BIASED}")
        if self.bad_rows.reasons:
            summary.warnings.append(
                f"{len(self.bad_rows.reasons)} rows cannot be sampled and are set aside; the first: "
                f"{shorten(next(iter(self.bad_rows.reasons.values())), 300)}"
            )
        return summary

    def _walk(self) -> Iterator[tuple[PlacedPrompt, PromptRequest, bool]]:
        """Every clip that is asked for, and whether it is the first of its address."""
        seen: dict[bytes, bytes] = {}
        repeats: Counter[bytes] = Counter()
        for placed in self.prompts:
            try:
                for address, request in self._requests(placed, repeats):
                    key, check = bytes.fromhex(request.id), _digest(address, 10)
                    known = seen.setdefault(key, check)
                    if known is not check and known != check:  # once in a million jobs of 24,000 clips
                        raise PromptError(
                            f"{placed.place}: its clip has the name of another row's by chance ({request.id}); give it "
                            "another seed"
                        )
                    yield placed, request, known is check
            except PromptError as error:
                self.bad_rows.add(placed.place, error)

    def _requests(self, placed: PlacedPrompt, repeats: Counter[bytes]) -> Iterator[tuple[str, PromptRequest]]:
        place, prompt = placed.place, placed.prompt
        row = self._row_settings(place, prompt)
        bucket, model = self._bucket(place, prompt, row.of), row.of.model
        try:
            check_image(model, prompt, bucket, row.config.solver)
            check_given(model, prompt, bucket, row.config)
            image = None if prompt.image is None else self._image(prompt.image)
            given = given_of(prompt, self._image)
            self._check_outputs(bucket, given)
            self._check_shared(model, bucket)
        except PromptError as error:
            raise PromptError(f"{place}: {error}") from error
        scale, start = row.config.guidance_scale, start_of(image, given)
        scales = sorted({scale, 1.0}, reverse=True) if self.compare_unguided else [scale]
        for number in range(prompt.num_seeds):
            if prompt.seed is None:  # of two equal lines, the second gets another seed
                key = _digest(f"{prompt.prompt}\0{start}", 12)
                seed = derived_seed(self.run_seed, prompt.prompt, start, repeats[key])
                repeats[key] += 1
            else:
                seed = prompt.seed + number
            for each in scales:
                address = address_of(prompt.prompt, seed, each, bucket.name, row.address, start)
                yield (
                    address,
                    PromptRequest(
                        id=id_of(address),
                        prompt=prompt.prompt,
                        seed=seed,
                        guidance_scale=each,
                        bucket=bucket.name,
                        expect=prompt.expect,
                        image=image,
                        given=given,
                        checkpoint=row.of.placed,
                        weaker=row.weaker,
                        settings=row.config,
                        metadata=prompt.metadata,
                    ),
                )

    def _check_shared(self, model: SampledModel, bucket: Bucket) -> None:
        if (size := self.config.sequence_parallel) == 1:
            return
        grid = model.compression.latent_grid(bucket.num_frames, bucket.height, bucket.width)
        try:
            check_tokens(bucket.name, model.network.num_tokens(grid) // model.network.token_grid(grid)[0], size, SHARED)
        except SplitError as error:
            raise PromptError(str(error)) from error

    def _check_outputs(self, bucket: Bucket, given: Given | None) -> None:
        if (refusal := self.outputs.video.size_refusal(bucket.height, bucket.width)) is not None:
            raise PromptError(f"sample.video: {refusal}")
        total = (given or NOTHING).total_frames or bucket.num_frames
        if "webdataset" in self.outputs.outputs and total > bucket.num_frames:
            raise PromptError(
                f"total_frames {total}: a clip of several windows has no latent, which webdataset in sample.outputs "
                "stores; leave one of them out"
            )

    def _bucket(self, place: str, prompt: Prompt, of: RowModel) -> Bucket:
        given = {name: value for name in SHAPE_FIELDS if (value := getattr(prompt, name)) is not None}
        if given and prompt.bucket is not None:
            raise PromptError(f"{place}: it has bucket and {', '.join(given)}, which say the same: give one of them")
        base = of.default_bucket
        if prompt.bucket is None and base is None and len(given) < len(SHAPE_FIELDS):
            raise PromptError(
                f"{place}: {of.model.folder} samples clips of any shape: name one in sample.bucket or in the column "
                "bucket, frames x height x width @ frames per second, such as 81x480x832@16"
            )
        if given:
            fields = {**(base.model_dump() if base else {}), **given}
            name = "{num_frames}x{height}x{width}@{fps:g}".format(**fields)
        else:
            name = prompt.bucket
        if name is None:
            assert base is not None
            return base
        try:
            return of.bucket(name)
        except PromptError as error:
            raise PromptError(f"{place}: {error}") from error

    def _row_settings(self, place: str, prompt: Prompt) -> RowSettings:
        if not prompt.settings and prompt.checkpoint is None:
            return self._job_settings
        try:
            return self._settings_of(json.dumps(prompt.settings, sort_keys=True), prompt.checkpoint)
        except ValidationError as error:
            raise refusal(place, error) from error
        except ReelflowError as error:
            raise PromptError(f"{place}: {error}") from error

    def _model_of(self, prompt: Prompt) -> RowModel:
        return self._own if prompt.checkpoint is None else self._model_at(prompt.checkpoint)

    @cached_property
    def _own(self) -> RowModel:
        return RowModel(self.model, self.config.bucket)

    @cached_property
    def _model_at(self) -> Callable[[str], RowModel]:
        known: dict[str, RowModel] = {}

        def model_at(folder: str) -> RowModel:
            if folder not in known:
                model = open_model(Path(expand_home(folder)))
                check_model(model, self.config)
                placed = PlacedModel(folder=str(model.folder.resolve()), fingerprint=model.fingerprint)
                is_own = model.fingerprint == self.model.fingerprint
                known[folder] = self._own if is_own else RowModel(model, self.config.bucket, placed)
            return known[folder]

        return model_at

    @cached_property
    def _job_settings(self) -> RowSettings:
        return self._checked(self._own, self.config)

    @cached_property
    def _settings_of(self):  # noqa: ANN202 - a function that remembers
        fields = self.config.model_dump()

        @lru_cache(maxsize=MAX_REMEMBERED)
        def settings_of(text: str, checkpoint: str | None) -> RowSettings:
            given, of = json.loads(text), self._own
            if checkpoint is not None:
                try:
                    of = self._model_at(checkpoint)
                except (ReelflowError, OSError, ValueError) as error:
                    raise PromptError(f"checkpoint {shorten(checkpoint)}: {error}") from error
            config = SampleConfig.model_validate(fields | given)
            if (found := contradiction_in(config, given)) is not None:
                raise PromptError(str(found))
            return self._checked(of, config)

        return settings_of

    def _checked(self, of: RowModel, config: SampleConfig) -> RowSettings:
        weaker = check_settings(of.model, config)
        address = f"{of.model.fingerprint} {output_json(config)}"
        return RowSettings(of, config, weaker, address if weaker is None else f"{address} {weaker.fingerprint}")

    @cached_property
    def _image(self):  # noqa: ANN202 - a function that remembers
        known: dict[str, ImageFile] = {}

        def image(path: str) -> ImageFile:
            if path not in known:
                known[path] = image_file(path)
            return known[path]

        return image


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode(), digest_size=size).digest()
