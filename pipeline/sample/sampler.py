"""A network that is loaded from a checkpoint for sampling."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.errors import ReelflowError, shorten
from data.records import Frames
from models.flow.solver import Counted
from models.flow.spec import FlowSpec
from models.networks.build import build_network
from models.networks.config import NetworkConfig, read_network_config
from models.text.pretrained import PretrainedTextEncoder, token_lengths
from pipeline.checkpoint.adapters import check_network, network_weights
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.encode.captions import byte_captions, check_same_encoder
from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import AUTOENCODER_NAME, load_autoencoder
from pipeline.encode.statistics import denormalize
from pipeline.run.fingerprints import output_json
from pipeline.run.precision import autocast
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.sample.requests import PromptRequest

_BUCKETS = TypeAdapter(Annotated[list[Bucket], Field(min_length=1)])
_FIELDS = TypeAdapter(dict[str, Any])


def _read_model(value: Any) -> NetworkConfig:  # noqa: ANN401 - whatever a checkpoint may hold
    return read_network_config(_FIELDS.validate_python(value))


class NotFiniteError(ReelflowError, ArithmeticError):
    """A clip whose latents are not finite: it would be black."""


def trained_buckets(checkpoint: Checkpoint) -> list[Bucket]:
    """The shapes that a checkpoint was trained on, that with most clips first.

    Raises:
        CheckpointError: the checkpoint is of an autoencoder, was made by a version that did not store the shapes, or
            is damaged.
    """
    if checkpoint.record.kind != "dit":
        raise CheckpointError(f"{checkpoint.folder} holds a {checkpoint.record.kind}; sampling takes a dit checkpoint")
    if "buckets" not in checkpoint.record.trained:
        raise CheckpointError(f"{checkpoint.folder} was made by an older reelflow, which kept one bucket; train again")
    return checkpoint.trained("buckets", _BUCKETS.validate_python)


def text_encoder_of(checkpoint: Checkpoint) -> TextEncoderRecord | None:
    """The pretrained text encoder that a network was trained with; None if it reads captions as bytes."""
    if checkpoint.record.trained.get("text_encoder") is None:
        return None
    return checkpoint.trained("text_encoder", TextEncoderRecord.model_validate)


def text_encoder_folder(encoder: TextEncoderRecord, config: SampleConfig) -> Path:
    """The folder to load that encoder from."""
    return Path(encoder.folder) if config.text_encoder is None else config.text_encoder.resolve()


def check_can_sample(checkpoint: Checkpoint, config: SampleConfig) -> None:
    """Refuse settings that the checkpoint cannot be sampled with, before Ray starts and earlier samples are archived.

    Raises:
        CheckpointError: it holds no such weights, or was not trained for the schedule.
        TextEncoderError: its text encoder is missing or another one.
    """
    checkpoint.kind_of(config.weights)
    encoder = text_encoder_of(checkpoint)
    if encoder is not None:
        check_same_encoder(encoder, text_encoder_folder(encoder, config))
    if config.schedule != "full_sequence" and checkpoint.trained("flow", FlowSpec.model_validate).times_per != "frame":
        raise CheckpointError(
            f"sample.schedule is {config.schedule!r}, but {checkpoint.folder} was trained with one time for all "
            "frames: use full_sequence, or train with dit.flow.times_per=frame"
        )


def truncation_warnings(checkpoint: Checkpoint, config: SampleConfig, prompts: Sequence[str]) -> list[str]:
    """What the network does not read of the prompts, with counts: one line about them, one about the negative prompt.

    Raises:
        CheckpointError: the checkpoint does not say which network was trained.
        TextEncoderError: the tokenizer of its text encoder cannot be loaded.
    """
    encoder = text_encoder_of(checkpoint)
    read: list[Any] = []  # what is left of each prompt
    if encoder is None:
        most, unit = checkpoint.trained("model", _read_model).caption_bytes, "bytes"
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


def settings_text(checkpoint: Checkpoint, config: SampleConfig) -> str:
    """The checkpoint and the settings that decide the pixels, as text; a part of the content address of each clip."""
    return f"{checkpoint.fingerprint} {output_json(config)}"


class ClipSampler:
    """Makes clips from requests, with the network and the autoencoder of one checkpoint.

    A pretrained text encoder is not part of the checkpoint, because of its size: it is loaded from its own folder.
    """

    def __init__(self, checkpoint: Checkpoint, config: SampleConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.buckets = {bucket.name: bucket for bucket in trained_buckets(checkpoint)}
        self.flow = checkpoint.trained("flow", FlowSpec.model_validate)
        self.stats = checkpoint.trained("latent_stats", LatentStats.model_validate)
        encoder = text_encoder_of(checkpoint)
        width = None if encoder is None else encoder.width
        model = checkpoint.trained("model", _read_model)
        check_network(checkpoint, partial(build_network, model, self.stats.num_channels, width))
        self.network = build_network(model, self.stats.num_channels, width)
        if encoder is None:
            self.read_captions = byte_captions(self.network.config.caption_bytes)
        else:
            self.read_captions = PretrainedTextEncoder(text_encoder_folder(encoder, config), encoder.max_tokens, device)
        self.network.load_state_dict(dict(network_weights(checkpoint, config.weights)))
        self.network.to(device).eval().requires_grad_(False)
        self.autoencoder = load_autoencoder(checkpoint.folder / AUTOENCODER_NAME).to(device)

    @torch.inference_mode()
    def sample(self, requests: list[PromptRequest]) -> tuple[list[Frames], int]:
        """The clips of requests of one guidance scale and bucket, and the number of network calls.

        Raises:
            NotFiniteError: the latents of a clip are not finite.
        """
        bucket = self.buckets[requests[0].bucket]
        shape = self.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
        network = Counted(self.network)
        with autocast(self.config.precision, self.device):
            latents = sample_latents(
                network,
                self.flow,
                self.config,
                [PromptSeed(request.prompt, request.seed) for request in requests],
                guidance_scale=requests[0].guidance_scale,
                shape=shape,
                read_captions=self.read_captions,
                device=self.device,
            )
            for request, latent in zip(requests, latents, strict=True):
                if not latent.isfinite().all():
                    raise NotFiniteError(
                        f"the latents of {request.file_name} are not finite, so its picture would be black; lower "
                        "sample.guidance_scale, or set sample.precision to fp32"
                    )
            clips = decode_clips(self.autoencoder, denormalize(latents, self.stats))
        return clips, network.calls
