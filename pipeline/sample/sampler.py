"""A model that is loaded for sampling."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import ReelflowError
from data.records import Frames
from models.flow.solver import Counted
from models.image.pretrained import PretrainedImageEncoder
from models.layers import BlockStack
from models.meta import on_meta_device
from models.networks.protocol import Conditions, JumpEnd, VelocityNetwork
from models.networks.token_network import TokenNetwork
from models.text.caption import Caption, CaptionReader
from models.text.pretrained import PretrainedTextEncoder
from pipeline.checkpoint.record import CheckpointError
from pipeline.encode.captions import byte_captions
from pipeline.encode.chunks import decode_clips
from pipeline.encode.statistics import denormalize
from pipeline.run.precision import autocast
from pipeline.run.weight_names import WeightsName
from pipeline.sample.beginnings import ConditionReader
from pipeline.sample.captions import RememberedCaptions
from pipeline.sample.checks import open_weaker, text_encoder_folder
from pipeline.sample.conditions import Shape, shape_of
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import NOTHING
from pipeline.sample.latents import OnStep, PromptSeed, Weaker, sample_latents
from pipeline.sample.model import SampledModel
from pipeline.sample.requests import PlacedModel, PromptRequest
from pipeline.sample.tokens import sample_token_latents
from pipeline.sample.windows import WHOLE, Window, blended

TOKENS_TOGETHER = {"cpu": 512, "cuda": 16384}
"""Tokens that one call of the network computes, by kind of device: more of them are no faster for each."""
MAX_ROWS = 64
MAX_NETWORKS = 2  # in memory at once: the model's, and the weaker one that guidance moves away from


class NotFiniteError(ReelflowError, ArithmeticError):
    """A clip whose latents are not finite: it would be black."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network on a device, and how it reads captions."""

    network: VelocityNetwork | TokenNetwork
    read_captions: CaptionReader


class Part(NamedTuple):
    """What a window adds to the clips of a group."""

    frames: list[Frames]
    """Of each clip."""
    calls: int
    """Of the network."""
    latents: list[Float[Tensor, "c t h w"]]
    """Of the whole window of each clip, before normalisation, on the CPU."""


class Progress(NamedTuple):
    """How far the clips of a group are."""

    step: int
    """Finished steps of the window that is being made."""
    num_steps: int
    window: int
    """From 0."""
    num_windows: int

    @property
    def share(self) -> float:
        """Of the steps of all windows, between 0 and 1."""
        return (self.window + self.step / self.num_steps) / self.num_windows


OnProgress = Callable[[Progress], None]


class ClipSampler:
    """Makes clips from requests, with the network and the autoencoder of a model.

    With `sample.sequence_parallel` above 1, the processes of the present process group do so together.

    Args:
        rank: of this process among them.
    """

    def __init__(self, model: SampledModel, config: SampleConfig, device: torch.device, rank: int = 0) -> None:
        self.model, self.config, self.device, self._rank = model, config, device, rank
        self._rows: dict[tuple[str, str, str | None], int] = {}
        self._loaded: dict[tuple[str, str], LoadedNetwork] = {}
        self._weaker_models: dict[str, SampledModel] = {}
        encoder = model.text_encoder
        if encoder is None:
            self.read_captions: CaptionReader = byte_captions(model.network.caption_text)
        else:
            folder = text_encoder_folder(model, config)
            self.read_captions = RememberedCaptions(PretrainedTextEncoder(folder, encoder.max_tokens, device))
        self._network(model, config.weights)
        self.autoencoder = model.load_autoencoder().to(device)
        tokenizer = model.load_tokenizer()
        self.tokenizer = None if tokenizer is None else tokenizer.to(device)
        embed = None if model.image_encoder is None else PretrainedImageEncoder(model.image_encoder, device)
        self.conditions = ConditionReader(model, self.autoencoder, embed, config.tile, device)

    @property
    def network(self) -> VelocityNetwork | TokenNetwork:
        """The network with the weights of the configuration."""
        return self._network(self.model, self.config.weights).network

    def _network(self, model: SampledModel, which: WeightsName) -> LoadedNetwork:
        """A network with its weights; the `MAX_NETWORKS` that were asked for last are kept."""
        key = (str(model.folder), which)
        if (loaded := self._loaded.pop(key, None)) is None:
            weights = model.weights(which)  # what is wrong with them is found before memory is taken
            while len(self._loaded) >= MAX_NETWORKS:
                del self._loaded[next(iter(self._loaded))]
            with on_meta_device():
                network = model.new_network()
            network = network.to_empty(device=self.device).eval().requires_grad_(False)
            for name, weight in weights:
                network.get_parameter(name).copy_(weight)
            if (size := self.config.sequence_parallel) > 1:
                from pipeline.engine.sequence_parallel import parallelize_sequence

                parallelize_sequence(network, self._rank, size, size)
            for stack in (part for part in network.modules() if isinstance(part, BlockStack)):
                stack.attention = self.config.attention
            is_own = model is self.model or model.text_encoder is not None  # which is the same for both
            read = self.read_captions if is_own else byte_captions(model.network.caption_text)
            loaded = LoadedNetwork(network, read)
        self._loaded[key] = loaded
        return loaded

    def _settings(self, request: PromptRequest) -> SampleConfig:
        return self.config if request.settings is None else request.settings

    def sample(self, requests: Sequence[PromptRequest]) -> tuple[list[Frames], int]:
        """The clips of requests that differ in prompt, seed and files alone, and the number of network calls for each.

        A clip does not depend on the other requests: see `rows_of`.

        Raises:
            NotFiniteError: the latents of a clip are not finite.
            ImageError: an image is missing, or is not what it was when the job was planned.
            CheckpointError: the weaker checkpoint is not what it was when the job was planned.
        """
        clips, calls = [], 0
        for group in self.groups(requests):
            made, calls = self.sample_group(group)
            clips += made
        return clips, calls

    def groups(self, requests: Sequence[PromptRequest]) -> Iterator[Sequence[PromptRequest]]:
        """The requests as they are computed together; the last group may be smaller."""
        size = self.rows_of(requests[0])
        return (requests[at : at + size] for at in range(0, len(requests), size))

    def sample_group(self, group: Sequence[PromptRequest]) -> tuple[list[Frames], int]:
        """As `sample`, of one group of `groups`."""
        parts = list(self.stream_group(group))
        clips = [np.concatenate([part.frames[row] for part in parts]) for row in range(len(group))]
        return clips, sum(part.calls for part in parts)

    def stream_group(self, group: Sequence[PromptRequest], on_progress: OnProgress | None = None) -> Iterator[Part]:
        """As `sample_group`, window by window.

        The group is filled up with copies of its last request. Memory does not grow with the length of the clips.

        Args:
            on_progress: called after every step of the solver; what it raises ends the sampling.
        """
        shape = self.shape(group[0])
        rows = [*group, *[group[-1]] * (self.rows_of(group[0]) - len(group))]
        windows = shape.windows(group[0].given or NOTHING)
        shared: list[Frames] = []  # with the window before
        for window, num_next in zip(windows, [*(each.num_shared for each in windows[1:]), 0], strict=True):
            on_step = None if on_progress is None else partial(_tell, on_progress, window.number, len(windows))
            latents, calls = self._latents(rows, window, shared, on_step)
            for request, latent in zip(group, latents, strict=False):
                if not latent.isfinite().all():
                    raise NotFiniteError(
                        f"the latents of {request.file_name} are not finite, so its picture would be black; lower "
                        "sample.guidance_scale, or set sample.precision to fp32"
                    )
            stored = denormalize(latents[: len(group)], self.model.stats).float().cpu()
            clips = self._decoded(latents)
            if shared:
                clips = [blended(before, after) for before, after in zip(shared, clips, strict=True)]
            end = shape.bucket.num_frames - (shape.compression.num_frames(num_next) if num_next else 0)
            shared = [clip[end:] for clip in clips] if num_next else []
            yield Part([clip[:end] for clip in clips[: len(group)]], calls, list(stored))

    def shape(self, request: PromptRequest) -> Shape:
        """How clips like this one are put together of windows."""
        bucket = self.model.bucket(request.bucket)
        return shape_of(self.model, self._settings(request), bucket, self.autoencoder.config.compression)

    def rows_of(self, request: PromptRequest) -> int:
        """How many clips like this one are computed together. It follows from the shape and the networks alone.

        The rounding of a row depends on the number of rows, because kernels are chosen by it: that number is the same
        for all requests. Where it also depends on the place of the row among them, as it does on some processors, clips
        are computed one by one. That is tried out once for each shape and network. An adaptive solver chooses its steps
        by the error of all rows together, so its clips are computed one by one too, as are those that several processes
        share.
        """
        settings = self._settings(request)
        if self.config.sequence_parallel > 1 or settings.is_adaptive:
            return 1
        key = (
            request.bucket,
            settings.weights,
            request.weaker and request.weaker.fingerprint + settings.guidance_weights,
        )
        if key not in self._rows:
            bucket = self.model.bucket(request.bucket)
            shape = self.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
            size = max(1, min(MAX_ROWS, TOKENS_TOGETHER[self.device.type] // self.model.network.num_tokens(shape[1:])))
            self._rows[key] = size if size == 1 or self._places_are_equal(request, size) else 1
        return self._rows[key]

    def _places_are_equal(self, like: PromptRequest, size: int) -> bool:
        """Whether clips of a group have equal bits in whatever order they are; False where each needs an image.

        Tried with guidance and without it, which computes half as many rows.
        """
        if self.model.network.needs_image:
            return False
        solver = "euler" if self.tokenizer is None else "jumps"
        trial = {"steps": min(2, self.config.steps), "solver": solver, "schedule": "full_sequence"}
        settings = SampleConfig(
            weights=self._settings(like).weights, guidance_weights=self._settings(like).guidance_weights
        )
        settings = settings.model_copy(update=trial)
        for scale in (1.0, 2.0):
            requests = [
                PromptRequest(
                    id="0" * 12,
                    prompt=f"{seed}",
                    seed=seed,
                    guidance_scale=scale,
                    bucket=like.bucket,
                    weaker=like.weaker,
                    settings=settings,
                )
                for seed in range(size)
            ]
            latents, _ = self._latents(requests)
            rotated, _ = self._latents([*requests[1:], requests[0]])
            if not torch.equal(latents.roll(-1, 0), rotated):
                return False
        clips, turned = self._decoded(latents), self._decoded(rotated)
        return all(np.array_equal(one, other) for one, other in zip([*clips[1:], clips[0]], turned, strict=True))

    @torch.inference_mode()
    def _latents(
        self,
        requests: Sequence[PromptRequest],
        window: Window = WHOLE,
        shared: Sequence[Frames] = (),
        on_step: OnStep | None = None,
    ) -> tuple[Float[Tensor, "b c t h w"], int]:
        """The normalised latents of a window of all requests, computed together, and the number of network calls.

        Args:
            shared: the frames of each that the window shares with the one before.
        """
        one, settings = requests[0], self._settings(requests[0])
        shape = self.shape(one)
        bucket, seconds = shape.bucket, window.first_new_seconds(shape.compression, shape.bucket.fps)
        loaded = self._network(self.model, settings.weights)
        with autocast(self.config.precision, self.device):
            conditions, beginning = self.conditions.read(requests, shape, window, shared)

            def predict(x_t: Tensor, t: Tensor, caption: Caption, jump: JumpEnd | None = None) -> Tensor:
                return loaded.network.given(replace(conditions, jump=jump))(x_t, t, caption)

            network = Counted(loaded.network.given(conditions) if self.model.flow.few_steps is None else predict)
            clips = [PromptSeed(request.prompt_at(seconds), request.seed) for request in requests]
            latent_shape = self.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
            if self.tokenizer is not None:
                latents = sample_token_latents(
                    network,
                    self.model.flow,
                    self.tokenizer,
                    settings,
                    clips,
                    guidance_scale=one.guidance_scale,
                    grid=latent_shape[1:],
                    read_captions=loaded.read_captions,
                    device=self.device,
                    on_step=on_step,
                )
                return latents, network.calls
            latents = sample_latents(
                network,
                self.model.flow,
                settings,
                clips,
                guidance_scale=one.guidance_scale,
                shape=latent_shape,
                read_captions=loaded.read_captions,
                device=self.device,
                beginning=beginning,
                window=window.number,
                weaker=None if one.weaker is None else self._weaker(one.weaker, settings, conditions),
                on_step=on_step,
            )
        return latents, network.calls

    def _weaker(self, which: PlacedModel, settings: SampleConfig, conditions: Conditions) -> Weaker:
        """The network that guidance moves away from."""
        if which.folder not in self._weaker_models:
            self._weaker_models[which.folder] = open_weaker(self.model, Path(which.folder), verify=True)
        model = self._weaker_models[which.folder]
        if model.fingerprint != which.fingerprint:
            raise CheckpointError(f"{which.folder} has changed since the job began; start it again")
        loaded = self._network(model, settings.guidance_weights)
        return Weaker(loaded.network.given(conditions), loaded.read_captions)

    @torch.inference_mode()
    def _decoded(self, latents: Float[Tensor, "b c t h w"]) -> list[Frames]:
        with autocast(self.config.precision, self.device):
            return decode_clips(self.autoencoder, denormalize(latents, self.model.stats), tile=self.config.tile)


def _tell(on_progress: OnProgress, window: int, num_windows: int, step: int, num_steps: int) -> None:
    on_progress(Progress(step, num_steps, window, num_windows))
