"""A checkpoint, loaded for sampling."""

from pathlib import Path

import torch

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.records import Frames
from models.autoencoder.shapes import latent_shape
from models.flow.solver import Counted
from models.flow.spec import FlowSpec
from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.text.pretrained import PretrainedTextEncoder
from pipeline.checkpoint.adapters import network_weights
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.encode.captions import byte_captions
from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import AUTOENCODER_NAME, load_autoencoder
from pipeline.encode.statistics import denormalize
from pipeline.run.fingerprints import output_json
from pipeline.run.precision import autocast
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import Wanted, sample_latents
from pipeline.sample.requests import PromptRequest


def trained_buckets(checkpoint: Checkpoint) -> list[Bucket]:
    """The shapes a checkpoint was trained on, that with most clips first.

    Raises:
        CheckpointError: it is not a DiT's, or was made by an older program.
    """
    if checkpoint.record.kind != "dit":
        raise CheckpointError(f"{checkpoint.folder} holds a {checkpoint.record.kind}; sampling takes a dit checkpoint")
    if "buckets" not in checkpoint.record.trained:
        raise CheckpointError(f"{checkpoint.folder} was made by an older reelflow, which kept one bucket; train again")
    return [Bucket(**fields) for fields in checkpoint.record.trained["buckets"]]


def text_encoder_of(checkpoint: Checkpoint) -> TextEncoderRecord | None:
    """The frozen encoder that a DiT was trained with; None: it reads captions itself."""
    fields = checkpoint.record.trained.get("text_encoder")
    return None if fields is None else TextEncoderRecord(**fields)


def folder_of(encoder: TextEncoderRecord, config: SampleConfig) -> Path:
    """Where that encoder is."""
    return Path(encoder.folder) if config.text_encoder is None else config.text_encoder.expanduser().resolve()


def settings_text(checkpoint: Checkpoint, config: SampleConfig) -> str:
    """What all clips of a job have in common, as text: a part of each clip's content address."""
    return f"{checkpoint.fingerprint} {output_json(config)}"


class ClipSampler:
    """A checkpoint, loaded: latents from noise, pixels from latents. Needs nothing but the checkpoint.

    A frozen text encoder is too large to travel with every checkpoint: it is read from its own folder.
    """

    def __init__(self, checkpoint: Checkpoint, config: SampleConfig, device: torch.device) -> None:
        trained = checkpoint.record.trained
        self.config, self.device = config, device
        self.buckets = {bucket.name: bucket for bucket in trained_buckets(checkpoint)}
        self.flow = FlowSpec(**trained["flow"])
        self.stats = LatentStats(**trained["latent_stats"])
        encoder = text_encoder_of(checkpoint)
        width = None if encoder is None else encoder.width
        self.network = DiT(DiTConfig(**trained["model"]), self.stats.num_channels, width)
        if encoder is None:
            self.read_captions = byte_captions(self.network.config.text.max_bytes)
        else:
            self.read_captions = PretrainedTextEncoder(folder_of(encoder, config), encoder.max_tokens, device)
        self.network.load_state_dict(dict(network_weights(checkpoint, config.weights)))
        self.network.to(device).eval().requires_grad_(False)
        self.autoencoder = load_autoencoder(checkpoint.folder / AUTOENCODER_NAME).to(device)

    @torch.inference_mode()
    def sample(self, requests: list[PromptRequest]) -> tuple[list[Frames], int]:
        """Clips for requests of one guidance scale and bucket, and the number of network calls."""
        bucket = self.buckets[requests[0].bucket]
        shape = latent_shape(self.autoencoder.config, bucket.num_frames, bucket.height, bucket.width)
        network = Counted(self.network)
        with autocast(self.config.precision, self.device):
            latents = sample_latents(
                network,
                self.flow,
                self.config,
                [Wanted(request.prompt, request.seed) for request in requests],
                guidance_scale=requests[0].guidance_scale,
                shape=shape,
                read_captions=self.read_captions,
                device=self.device,
            )
            clips = decode_clips(self.autoencoder, denormalize(latents, self.stats))
        return clips, network.calls
