"""A model that is loaded for sampling."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.manifest import TextEncoderRecord
from data.errors import ReelflowError, shorten
from data.records import Frames
from models.flow.solver import Counted
from models.image.pretrained import PretrainedImageEncoder
from models.layers import BlockStack
from models.networks.build import build_network
from models.text.pretrained import PretrainedTextEncoder, token_lengths
from pipeline.checkpoint.record import CheckpointError
from pipeline.encode.captions import byte_captions, check_same_encoder
from pipeline.encode.chunks import decode_clips
from pipeline.encode.statistics import denormalize
from pipeline.run.fingerprints import output_json
from pipeline.run.precision import autocast
from pipeline.sample.beginnings import ConditionReader
from pipeline.sample.conditions import Shape, shape_of
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import NOTHING
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.sample.model import SampledModel
from pipeline.sample.requests import Prompt, PromptRequest
from pipeline.sample.windows import WHOLE, Window, blended

TOKENS_TOGETHER = {"cpu": 512, "cuda": 16384}
"""Tokens that one call of the network computes, by kind of device: more of them are no faster for each."""
MAX_ROWS = 64


class NotFiniteError(ReelflowError, ArithmeticError):
    """A clip whose latents are not finite: it would be black."""


def text_encoder_folder(encoder: TextEncoderRecord, config: SampleConfig) -> Path:
    """The folder to load that encoder from."""
    return Path(encoder.folder) if config.text_encoder is None else config.text_encoder.resolve()


def check_can_sample(model: SampledModel, config: SampleConfig) -> None:
    """Refuse settings that the model cannot be sampled with, before Ray starts and earlier samples are archived.

    Raises:
        CheckpointError: it holds no such weights, or was not trained for the schedule.
        PublishedError: as above, of a published pipeline.
        TextEncoderError: its text encoder is missing or another one.
    """
    model.check_weights(config.weights)
    if model.text_encoder is not None:
        check_same_encoder(model.text_encoder, text_encoder_folder(model.text_encoder, config))
    if config.schedule != "full_sequence" and model.flow.times_per != "frame":
        raise CheckpointError(
            f"sample.schedule is {config.schedule!r}, but {model.folder} was trained with one time for all frames: use "
            "full_sequence, or train with dit.flow.times_per=frame"
        )


def truncation_warnings(model: SampledModel, config: SampleConfig, prompts: Sequence[str]) -> list[str]:
    """What the network does not read of the prompts, with counts: one line about them, one about the negative prompt.

    Raises:
        TextEncoderError: the tokenizer of its text encoder cannot be loaded.
    """
    encoder = model.text_encoder
    read: list[Any] = []  # what is left of each prompt
    if encoder is None:
        most, unit = model.network.caption_bytes, "bytes"
        read = [prompt.encode()[:most] for prompt in prompts]
        measure = lambda texts: [len(text.encode()) for text in texts]  # noqa: E731 - one of two measures
    else:
        most, unit = encoder.max_tokens, "tokens"
        measure = partial(token_lengths, text_encoder_folder(encoder, config))
    lengths, warnings = measure(prompts), []
    longer = [number for number, length in enumerate(lengths) if length > most]
    if longer:
        same = len(set(prompts)) - len(set(read)) if read else 0
        warnings.append(
            f"{len(longer)} of {len(prompts)} prompts have more than the {most} {unit} that the network reads and are "
            f"cut there; the longest has {max(lengths)}; the first is prompt {longer[0] + 1}, "
            f"{shorten(prompts[longer[0]], 60)!r}" + (f"; {same} of them become equal to another one" if same else "")
        )
    if config.negative_prompt is not None and measure([config.negative_prompt])[0] > most:
        warnings.append(
            f"sample.negative_prompt has more than the {most} {unit} that the network reads and is cut there"
        )
    return warnings


def prompt_warnings(model: SampledModel, config: SampleConfig, prompts: Sequence[Prompt]) -> list[str]:
    """As `truncation_warnings`, also of prompts that take over later."""
    later = [each.prompt for prompt in prompts for each in prompt.later_prompts or ()]
    warnings = truncation_warnings(model, config, [prompt.prompt for prompt in prompts])
    if later:
        positive = config.model_copy(update={"negative_prompt": None})
        warnings += [f"of all later_prompts, {text}" for text in truncation_warnings(model, positive, later)]
    return warnings


def settings_text(model: SampledModel, config: SampleConfig) -> str:
    """The model and the settings that decide the pixels, as text; a part of the content address of each clip."""
    return f"{model.fingerprint} {output_json(config)}"


class ClipSampler:
    """Makes clips from requests, with the network and the autoencoder of a model."""

    def __init__(self, model: SampledModel, config: SampleConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model, config, device
        self._rows: dict[str, int] = {}  # by the name of a bucket
        encoder, channels, width = model.text_encoder, model.stats.num_channels, model.embedding_width
        weights = model.weights(config.weights)  # what is wrong with them is found before memory is taken
        with torch.device("meta"):
            network = build_network(model.network, channels, width)
        self.network = network.to_empty(device=device).eval().requires_grad_(False)
        for name, weight in weights:
            self.network.get_parameter(name).copy_(weight)
        for stack in (part for part in self.network.modules() if isinstance(part, BlockStack)):
            stack.attention = config.attention
        if encoder is None:
            self.read_captions = byte_captions(model.network.caption_bytes)
        else:
            self.read_captions = PretrainedTextEncoder(text_encoder_folder(encoder, config), encoder.max_tokens, device)
        self.autoencoder = model.load_autoencoder().to(device)
        embed = None if model.image_encoder is None else PretrainedImageEncoder(model.image_encoder, device)
        self.conditions = ConditionReader(model, self.autoencoder, embed, config.tile, device)

    def sample(self, requests: Sequence[PromptRequest]) -> tuple[list[Frames], int]:
        """The clips of requests of one guidance scale, bucket and layout, and the number of network calls for each.

        A clip does not depend on the other requests: see `rows_of`.

        Raises:
            NotFiniteError: the latents of a clip are not finite.
            ImageError: an image is missing, or is not what it was when the job was planned.
        """
        clips, calls = [], 0
        for group in self.groups(requests):
            made, calls = self.sample_group(group)
            clips += made
        return clips, calls

    def groups(self, requests: Sequence[PromptRequest]) -> Iterator[Sequence[PromptRequest]]:
        """The requests as they are computed together; the last group may be smaller."""
        size = self.rows_of(self.model.bucket(requests[0].bucket))
        return (requests[at : at + size] for at in range(0, len(requests), size))

    def sample_group(self, group: Sequence[PromptRequest]) -> tuple[list[Frames], int]:
        """As `sample`, of one group of `groups`."""
        parts = list(self.stream_group(group))
        clips = [np.concatenate([frames[row] for frames, _ in parts]) for row in range(len(group))]
        return clips, sum(calls for _, calls in parts)

    def stream_group(self, group: Sequence[PromptRequest]) -> Iterator[tuple[list[Frames], int]]:
        """As `sample_group`, window by window: the frames that each adds to the clips, and its network calls.

        The group is filled up with copies of its last request. Memory does not grow with the length of the clips.
        """
        shape = self.shape(self.model.bucket(group[0].bucket))
        rows = [*group, *[group[-1]] * (self.rows_of(shape.bucket) - len(group))]
        windows = shape.windows(group[0].given or NOTHING)
        shared: list[Frames] = []  # with the window before
        for window, num_next in zip(windows, [*(each.num_shared for each in windows[1:]), 0], strict=True):
            latents, calls = self._latents(rows, self.config, window, shared)
            for request, latent in zip(group, latents, strict=False):
                if not latent.isfinite().all():
                    raise NotFiniteError(
                        f"the latents of {request.file_name} are not finite, so its picture would be black; lower "
                        "sample.guidance_scale, or set sample.precision to fp32"
                    )
            clips = self._decoded(latents)
            if shared:
                clips = [blended(before, after) for before, after in zip(shared, clips, strict=True)]
            end = shape.bucket.num_frames - (shape.compression.num_frames(num_next) if num_next else 0)
            shared = [clip[end:] for clip in clips] if num_next else []
            yield [clip[:end] for clip in clips[: len(group)]], calls

    def shape(self, bucket: Bucket) -> Shape:
        """How clips of a bucket are put together of windows."""
        return shape_of(self.model, self.config, bucket, self.autoencoder.config.compression)

    def rows_of(self, bucket: Bucket) -> int:
        """How many clips of a shape are computed together. It follows from the shape alone, never from the requests.

        The rounding of a row depends on the number of rows, because kernels are chosen by it: that number is the same
        for all requests. Where it also depends on the place of the row among them, as it does on some processors, clips
        are computed one by one. That is tried out once for each shape.
        """
        if bucket.name not in self._rows:
            shape = self.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
            size = max(1, min(MAX_ROWS, TOKENS_TOGETHER[self.device.type] // self.model.network.num_tokens(shape[1:])))
            self._rows[bucket.name] = size if size == 1 or self._places_are_equal(bucket, size) else 1
        return self._rows[bucket.name]

    def _places_are_equal(self, bucket: Bucket, size: int) -> bool:
        """Whether clips of a group have equal bits in whatever order they are; False where each needs an image."""
        if self.model.network.needs_image:
            return False
        requests = [
            PromptRequest(id="0" * 12, prompt=f"{seed}", seed=seed, guidance_scale=2.0, bucket=bucket.name)
            for seed in range(size)
        ]
        config = self.config.model_copy(update={"steps": min(2, self.config.steps)})
        latents, _ = self._latents(requests, config)
        rotated, _ = self._latents([*requests[1:], requests[0]], config)
        if not torch.equal(latents.roll(-1, 0), rotated):
            return False
        clips, turned = self._decoded(latents), self._decoded(rotated)
        return all(np.array_equal(one, other) for one, other in zip([*clips[1:], clips[0]], turned, strict=True))

    @torch.inference_mode()
    def _latents(
        self,
        requests: Sequence[PromptRequest],
        config: SampleConfig,
        window: Window = WHOLE,
        shared: Sequence[Frames] = (),
    ) -> tuple[Float[Tensor, "b c t h w"], int]:
        """The normalised latents of a window of all requests, computed together, and the number of network calls.

        Args:
            shared: the frames of each that the window shares with the one before.
        """
        shape = self.shape(self.model.bucket(requests[0].bucket))
        bucket = shape.bucket
        seconds = window.first_new_seconds(shape.compression, bucket.fps)
        with autocast(config.precision, self.device):
            conditions, beginning = self.conditions.read(requests, shape, window, shared)
            network = Counted(self.network.given(conditions))
            latents = sample_latents(
                network,
                self.model.flow,
                config,
                [PromptSeed(request.prompt_at(seconds), request.seed) for request in requests],
                guidance_scale=requests[0].guidance_scale,
                shape=self.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width),
                read_captions=self.read_captions,
                device=self.device,
                beginning=beginning,
                window=window.number,
            )
        return latents, network.calls

    @torch.inference_mode()
    def _decoded(self, latents: Float[Tensor, "b c t h w"]) -> list[Frames]:
        with autocast(self.config.precision, self.device):
            return decode_clips(self.autoencoder, denormalize(latents, self.model.stats), tile=self.config.tile)
