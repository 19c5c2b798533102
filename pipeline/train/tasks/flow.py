"""Train a velocity network by conditional flow matching on latents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data.dataset.buckets import Bucket
from data.dataset.index import IndexRow
from data.dataset.latents import NOISE_SEED_TENSOR, read_latents, read_tensors
from data.errors import DatasetError
from data.stream.loader import Sample
from models.flow.flow_map import drawn_jumps
from models.flow.given import drawn_frames
from models.flow.objective import matching_loss, optimal_coupling
from models.flow.path import path_of
from models.flow.spec import FlowMapSpec, FlowSpec
from models.meta import on_meta_device
from models.networks.build import build_network
from models.networks.config import NetworkConfig
from models.networks.protocol import Conditions, NoisyClips, VelocityNetwork
from models.text.caption import Caption, joined
from pipeline.checkpoint.adapters import base_weights
from pipeline.distributed.config import WorldSizeError
from pipeline.encode.captions import byte_captions
from pipeline.encode.codec import load_autoencoder
from pipeline.encode.statistics import normalize
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run import randomness
from pipeline.sample.latents import first_noise
from pipeline.train.lora import add_adapters
from pipeline.train.tasks.captioned import CaptionedTask
from pipeline.train.tasks.flow_batch import FlowBatch, FlowQuery, PackedFlowBatch
from pipeline.train.tasks.flow_map_loss import FlowMapLoss
from pipeline.train.tasks.flow_preview import FlowPreviewer
from pipeline.train.time_bins import NUM_TIME_BINS, binned


class FlowMatchingLoss(nn.Module):
    """Conditional flow matching (Lipman et al. 2022, eq. 23), or another path and prediction that `spec` names."""

    def __init__(self, network: VelocityNetwork, spec: FlowSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.path = path_of(spec)

    def forward(self, batch: FlowBatch | PackedFlowBatch | FlowQuery) -> dict[str, Tensor]:
        """The mean squared error of the prediction, also by time bin (see `binned`).

        For a `FlowQuery`: {"predicted": the prediction, (b c t h w)}.
        """
        if isinstance(batch, PackedFlowBatch):
            return self._packed(batch)
        if isinstance(batch, FlowQuery):
            return {"predicted": self.network.given(Conditions(batch.fps))(batch.x_t, batch.t, batch.caption)}
        network = self.network.given(Conditions(batch.fps, batch.known))
        loss = self._loss(batch, network(self._noisy(batch), batch.t, batch.caption))
        return {"total": loss.mean()} | binned(loss, batch.t)

    def _packed(self, batch: PackedFlowBatch) -> dict[str, Tensor]:
        """The mean over the tokens of all clips: as if buckets took turns, whose steps have equally many tokens."""
        parts = batch.parts
        clips = [NoisyClips(self._noisy(part), part.t, Conditions(part.fps, part.known)) for part in parts]
        predicted = self.network.packed(clips, joined(*(part.caption for part in parts)), batch.packing)
        loss = torch.cat([self._loss(part, of_part) for part, of_part in zip(parts, predicted, strict=True)])
        times = torch.cat([part.t.reshape(len(part.t), -1).mean(1) for part in parts])
        tokens = torch.cat([loss.new_full((len(part.x_1),), part.x_1[0, 0].numel()) for part in parts])
        weight = tokens / tokens.mean()
        return {"total": (loss * weight).mean()} | binned(loss, times, weight)

    def _noisy(self, batch: FlowBatch) -> Float[Tensor, "b c t h w"]:
        """x_t."""
        return self.path.at(batch.t, batch.x_1).point(batch.x_0, batch.x_1)

    def _loss(self, batch: FlowBatch, predicted: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
        """Of each clip."""
        return matching_loss(
            self.path,
            self.spec.prediction,
            predicted,
            batch.x_0,
            batch.x_1,
            batch.t,
            self.spec.loss_weight,
            batch.known,
        )


@dataclass(frozen=True)
class FlowTask(CaptionedTask):
    """Train a velocity network on a folder of latent shards."""

    def build(self, placement: Placement = WHOLE) -> nn.Module:
        """The network inside its loss, with the weights of `base_path` if it is given; of a flow map also a teacher.

        Raises:
            CheckpointError: the file at `base_path` is damaged, or of another network.
        """
        if self.flow.map is not None:
            if self.base_path is None:
                return FlowMapLoss(self._network(self.model), self.flow)
            teacher = self.teacher()
            return FlowMapLoss(self.student(teacher, placement), self.flow, teacher)
        if self.base_path is None:
            return FlowMatchingLoss(self._adapted(self._network(self.model)), self.flow)
        with on_meta_device():
            network = self._network(self.model)
        placement.place(network, base_weights(self.base_path, network))
        return FlowMatchingLoss(self._adapted(network), self.flow)

    def teacher(self) -> VelocityNetwork:
        """The network of `base_path`, whole and on the CPU.

        Raises:
            CheckpointError: as `build`.
        """
        assert self.base_path is not None
        with on_meta_device():
            teacher = self._network(self.base_model or self.model)
        WHOLE.place(teacher, base_weights(self.base_path, teacher))
        return teacher

    def student(self, teacher: VelocityNetwork, placement: Placement) -> VelocityNetwork:
        """A network of `model` with the weights of its teacher, and new ones where that has none."""
        new = {} if self.base_model is None else self._network(self.model).state_dict()
        with on_meta_device():
            network = self._network(self.model)
        values = new | teacher.state_dict()
        placement.place(network, ((name, values[name]) for name in network.state_dict()))
        return network

    def _network(self, model: NetworkConfig) -> VelocityNetwork:
        width = None if self.text_encoder is None else self.text_encoder.width
        return build_network(model, self.latent_stats.num_channels, width)

    def _adapted(self, network: VelocityNetwork) -> VelocityNetwork:
        if self.lora is not None:
            add_adapters(network, self.lora)
        return network

    def collate(self, samples: list[Sample]) -> FlowBatch:
        """A batch of latents of one shape. Noise, time and caption dropout are functions of each sample's position."""
        positions = [sample.position for sample in samples]
        payloads = [sample.payload for sample in samples]
        latents = read_latents(payloads).float()
        dropped = randomness.uniform(self.seed, "caption-drop", positions) < self.flow.caption_dropout
        known, t = self._known(positions, latents.shape[2]), self._times(positions, num_frames=latents.shape[2])
        x_1 = normalize(latents, self.latent_stats)
        x_0 = self._noise("noise", positions, payloads, latents.shape[1:])
        batch = FlowBatch(
            x_1=x_1,
            x_0=x_0 if self.flow.coupled_clips == 1 else x_0[self._coupling(x_0, x_1, samples, dropped, known)],
            t=t if known is None else torch.where(known, 1.0, t.reshape(len(t), 1, -1)),
            caption=self._captions([sample.caption for sample in samples], payloads, dropped),
            fps=torch.tensor([sample.fps for sample in samples], dtype=torch.float32),
            known=known,
        )
        return batch if self.flow.map is None else replace(batch, **self._jumps(self.flow.map, positions, batch))

    def _noise(
        self,
        purpose: str,
        addresses: Sequence[int | str],
        payloads: Sequence[bytes | memoryview],
        shape: tuple[int, ...],
    ) -> Float[Tensor, "b c t h w"]:
        """x_0: drawn at these addresses, or what the clips were sampled from.

        Raises:
            DatasetError: it is to be what they were sampled from, and a clip does not say so.
        """
        if self.flow.noise == "drawn":
            return randomness.normal(self.seed, purpose, addresses, shape)
        try:
            seeds = read_tensors(payloads, NOISE_SEED_TENSOR)
        except DatasetError as error:
            raise DatasetError(
                f"dit.flow.noise is 'paired', but {self.dataset_dir} holds clips that were not sampled from noise "
                "alone: use latents that `sample` wrote with sample.outputs webdataset, without given frames or fresh "
                "noise"
            ) from error
        return first_noise(seeds[:, 0].tolist(), shape)

    def _jumps(self, spec: FlowMapSpec, positions: list[int], batch: FlowBatch) -> dict[str, Any]:
        """What a batch of a flow map has beside: functions of the positions."""
        drawn = randomness.uniform(self.seed, "jumps", positions, (4,))
        jump = drawn_jumps(spec, batch.t, drawn[:, :3])
        guidance = (1 + (spec.max_guidance - 1) * drawn[:, 3]).float()
        return {"jump": jump, "guidance": guidance, "null": self._null_caption()}

    def _null_caption(self) -> Caption:
        if self.text_encoder is not None:
            return self._stored_captions().null()
        return byte_captions(self.model.caption_text)([self.flow.null_caption])

    def pack(self, batches: list[FlowBatch]) -> PackedFlowBatch:
        """Batches of several shapes, to be computed together."""
        return PackedFlowBatch.of(batches)

    def _coupling(
        self,
        x_0: Float[Tensor, "b c t h w"],
        x_1: Float[Tensor, "b c t h w"],
        samples: Sequence[Sample],
        dropped: Bool[Tensor, " b"],
        known: Bool[Tensor, "b 1 t"] | None,
    ) -> Int[Tensor, " b"]:
        """Which noise each clip gets, by `optimal_coupling` among `coupled_clips` in turn.

        Raises:
            WorldSizeError: a worker's batch is not a multiple of these, so that the noise would depend on the workers.
        """
        size = self.flow.coupled_clips
        if len(samples) % size:
            raise WorldSizeError(
                f"dit.flow.coupled_clips is {size}, but a worker computes {len(samples)} clips at once: choose a "
                "divisor of that, or fewer workers or gradient accumulation steps"
            )
        conditions: list[tuple[int | str | None, ...]] = [
            (position // size, None if drop else sample.caption, str(sample.fps))
            for position, sample, drop in zip(range(len(samples)), samples, dropped.tolist(), strict=True)
        ]
        if known is not None:  # what is given tells of the clip, and noise must not
            conditions = [
                (number,) if given else condition
                for number, (condition, given) in enumerate(
                    zip(conditions, known.any(2).flatten().tolist(), strict=True)
                )
            ]
        return optimal_coupling(x_0, x_1, conditions)

    def _known(self, positions: list[int], num_frames: int) -> Bool[Tensor, "b 1 t"] | None:
        """Which latent frames are given: a function of the positions."""
        if self.flow.given_share == 0 or num_frames == 1:
            return None
        kind = randomness.uniform(self.seed, "first-frame", positions)
        drawn = randomness.uniform(self.seed, "given-frames", positions, (2 + num_frames,))
        return drawn_frames(self.flow, kind, drawn[:, :2], drawn[:, 2:])

    def validation_batch(self, row: IndexRow, payload: bytes) -> FlowBatch:
        """One clip repeated for every time bin; noise and times are functions of its key."""
        addresses = [f"{row.key} {number}" for number in range(NUM_TIME_BINS)]
        payloads = [payload] * NUM_TIME_BINS
        latents = read_latents(payloads).float()
        time_shape = (1, latents.shape[2]) if self.flow.times_per == "frame" else ()
        start = torch.arange(NUM_TIME_BINS).reshape(-1, *(1 for _ in time_shape))
        return FlowBatch(
            x_1=normalize(latents, self.latent_stats),
            x_0=self._noise("validation-noise", addresses, payloads, latents.shape[1:]),
            t=(start + randomness.uniform(self.seed, "validation-time", addresses, time_shape)) / NUM_TIME_BINS,
            caption=self._captions(
                [row.caption] * NUM_TIME_BINS, payloads, torch.zeros(NUM_TIME_BINS, dtype=torch.bool)
            ),
            fps=torch.full((NUM_TIME_BINS,), row.fps),
        )

    def flops_probe(self, bucket: Bucket) -> Tensor:
        """A scalar whose forward and backward pass are those of training on one clip of the bucket."""
        latent = torch.empty(1, self.latent_stats.num_channels, *bucket.latent_grid(self.compression))
        has_times = self.flow.times_per == "frame" or self.flow.given_share > 0
        t = torch.zeros((1, 1, latent.shape[2]) if has_times else 1)
        return self._adapted(self._network(self.model)).flops_probe(latent, t, self.probe_caption().to(latent.device))

    def previewer(self, device: torch.device) -> FlowPreviewer:
        """As `CaptionedTask.preview_settings`."""
        config, bucket, read = self.preview_settings()
        autoencoder = load_autoencoder(self.autoencoder_path).to(device)
        return FlowPreviewer(config, self.flow, self.latent_stats, bucket, read, autoencoder, device)
