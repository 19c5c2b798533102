"""Checks of `benchmarks.gpu` on networks: training steps of our DiT, Wan beside diffusers, autoencoders, our engine."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_timing import DATASHEET_FLOPS, Row, Setting, relative_error
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.protocol import VideoAutoencoder
from models.layers import BlockStack, Recompute
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.networks.counts import ClipSize, dit_cost
from models.networks.protocol import VelocityNetwork
from models.text.embeddings import CaptionEmbeddings
from pipeline.engine.compilation import compile_network

TEXT_WIDTH, TEXT_TOKENS = 4096, 512  # of a T5 encoder's embeddings


# A training step of our DiT


@dataclass(frozen=True)
class Step:
    """What is trained."""

    preset: str
    num_clips: int
    latent: tuple[int, int, int]
    compiles: bool = False
    recompute: Recompute = False


SHORT, LONG = (5, 32, 32), (21, 60, 104)  # latents of 17 x 256 x 256 and of 81 x 480 x 832
STEPS = (
    Step("XL", 16, SHORT),
    Step("B", 64, SHORT),
    Step("XL", 16, SHORT, compiles=True),
    Step("L", 32, SHORT),
    Step("S", 64, SHORT),
    Step("XL", 16, SHORT, recompute=True),
    Step("XL", 16, SHORT, recompute="selective"),
    Step("XL", 1, LONG, recompute="selective"),
    Step("B", 64, SHORT, compiles=True),
    Step("XL", 1, LONG, recompute=True),
    Step("L", 32, SHORT, compiles=True),
    Step("S", 64, SHORT, compiles=True),
    Step("XL", 16, SHORT, compiles=True, recompute=True),
    Step("L", 32, SHORT, recompute=True),
    Step("L", 32, SHORT, recompute="selective"),
)
TINY_STEPS = (
    Step("tiny", 1, (2, 4, 4)),
    Step("tiny", 1, (2, 4, 4), recompute=True),
    Step("tiny", 1, (2, 4, 4), recompute="selective"),
)


def captions(at: Setting, num_clips: int, width: int = TEXT_WIDTH, tokens: int = TEXT_TOKENS) -> CaptionEmbeddings:
    """Embeddings of which the last quarter is padding, as in most batches."""
    tokens, width = (8, 16) if at.is_tiny else (tokens, width)
    mask = (torch.arange(tokens, device=at.device) < 3 * tokens // 4).expand(num_clips, -1)
    return CaptionEmbeddings(torch.randn(num_clips, tokens, width, device=at.device), mask)


def training(at: Setting) -> Iterator[Row]:
    """Forward, backward and AdamW in bfloat16 with float32 weights: MFU, share of the matrix product, peak memory."""
    ceiling = at.matrix_flops()
    for step in TINY_STEPS if at.is_tiny else STEPS:
        if not at.has(45 if step.compiles else 30 if step.latent == LONG else 12):
            yield {"preset": step.preset, "ended": "not reached", "compiles": step.compiles}
            continue
        yield _train(at, step, ceiling)
        gc.collect()


def _train(at: Setting, step: Step, ceiling: float) -> Row:
    torch.manual_seed(0)
    torch.compiler.reset()
    config, caption = DiTConfig.model_validate({"preset": step.preset}), captions(at, step.num_clips)
    cost = dit_cost(config, 16, ClipSize(step.latent, caption.values.shape[1]), caption.values.shape[2])
    row: Row = {"preset": step.preset, "parameters": cost.parameters, "num_clips": step.num_clips}
    row |= {"tokens": config.num_tokens(step.latent), "compiles": step.compiles, "recompute": step.recompute}
    with at.guarded(row), at.peak(row):
        with at.device:
            network = build_network(config, 16, caption.values.shape[2])
        for stack in (part for part in network.modules() if isinstance(part, BlockStack)):
            stack.recompute = step.recompute
        if step.compiles:
            compile_network(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=at.is_cuda)
        x_1, x_0 = (torch.randn(step.num_clips, 16, *step.latent, device=at.device) for _ in range(2))
        t = torch.rand(step.num_clips, device=at.device)

        def update() -> None:
            with at.autocast():
                predicted = network(
                    (1 - t)[:, None, None, None, None] * x_0 + t[:, None, None, None, None] * x_1, t, caption
                )
            (predicted.float() - (x_1 - x_0)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        begin = time.perf_counter()
        update()
        at.synchronize()
        row["first_step_seconds"] = time.perf_counter() - begin
        row |= at.timed(update, repeats=8, warm_up=2)
        rate = 1e3 * cost.training_flops * step.num_clips / row["ms"]
        row |= {"tflops": rate / 1e12, "mfu": rate / DATASHEET_FLOPS, "of_ceiling": rate / ceiling}
        row["tokens_per_second"] = 1e3 * step.num_clips * row["tokens"] / row["ms"]
    return row


# Wan beside diffusers

WAN: dict[str, Any] = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
TINY_WAN: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 56, "num_layers": 2}


Clips = tuple[Tensor, Tensor, Tensor]
"""x_t, times, and embeddings of captions."""


@dataclass(frozen=True)
class Pair:
    """Diffusers' transformer of Wan, and ours with the same weights."""

    at: Setting
    peer: Any
    ours: VelocityNetwork

    def clips(self, number: int, grid: tuple[int, int, int]) -> Clips:
        """Random clips of such a latent grid."""
        device, width = self.at.device, self.peer.config.text_dim
        return (
            torch.randn(number, 16, *grid, device=device),
            torch.full((number,), 0.3, device=device),
            torch.randn(number, TEXT_TOKENS, width, device=device),
        )

    def by_ours(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The velocity by our network."""
        return self.ours(
            x, t, CaptionEmbeddings(text, torch.ones(text.shape[:2], dtype=torch.bool, device=text.device))
        )

    def by_peer(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The velocity by that of diffusers."""
        return -self.peer(x, 1000 * (1 - t), text, return_dict=False)[0]

    def difference(self, grid: tuple[int, int, int]) -> Row:
        """From diffusers in float32, of both in bfloat16 and of ours in float32."""
        clips = self.clips(1, grid)
        with torch.no_grad():
            exact = self.by_peer(*clips)
            single = relative_error(self.by_ours(*clips), exact)
            with self.at.autocast():
                half, peer_half = (relative_error(call(*clips), exact) for call in (self.by_ours, self.by_peer))
        return {
            "what": "difference from diffusers in float32",
            "ours_fp32": single,
            "ours_bf16": half,
            "peer_bf16": peer_half,
        }

    def compare(self, what: str, number: int, grid: tuple[int, int, int], *, trains: bool) -> Row:
        """A forward pass, or a training step, of each in turn."""
        clips = self.clips(number, grid)
        found: Row = {"what": what, "tokens": grid[0] * grid[1] * grid[2] // 4, "num_clips": number}
        calls = {"ours": (self.by_ours, self.ours), "diffusers": (self.by_peer, self.peer)}
        for name, (call, module) in calls.items():
            row: Row = {}
            with self.at.guarded(row), self.at.peak(row), torch.set_grad_enabled(trains):
                run = partial(self._train, call, module, clips) if trains else partial(self._predict, call, clips)
                row |= self.at.timed(run, repeats=4, warm_up=1)
            found[name] = row
        if all("ms" in found[name] for name in calls):
            found["ratio"] = found["diffusers"]["ms"] / found["ours"]["ms"]
        return found

    def _predict(self, call: Callable[..., Tensor], clips: Clips) -> Tensor:
        with self.at.autocast():
            return call(*clips)

    def _train(self, call: Callable[..., Tensor], module: nn.Module, clips: Clips) -> None:
        self._predict(call, clips).float().square().mean().backward()
        module.zero_grad()


def wan(at: Setting) -> Iterator[Row]:
    """The transformer of Wan 2.1, 1.3B, with equal random weights: a step of sampling and one of training, in turn."""
    if find_spec("diffusers") is None:
        yield {"error": "diffusers is not installed"}
        return
    from diffusers import WanTransformer3DModel

    from testing.wan import copy_transformer

    torch.manual_seed(0)
    sizes: dict[str, Any] = TINY_WAN | {"text_dim": 16} if at.is_tiny else WAN
    with at.device:
        peer: Any = WanTransformer3DModel(**sizes)
    nn.init.normal_(peer.proj_out.weight, std=0.02)
    ours, _ = copy_transformer(peer)
    pair = Pair(at, peer, ours)
    yield {"parameters": sum(parameter.numel() for parameter in ours.parameters())}
    short, long = ((2, 4, 4), (3, 4, 4)) if at.is_tiny else ((5, 60, 104), (21, 60, 104))
    yield pair.difference(short)
    yield pair.compare("guided step of sampling", 2, long, trains=False)
    if at.has(20):
        yield pair.compare("training step", 1, short, trains=True)
    if at.has(45):
        ours.blocks.recompute = True
        peer.enable_gradient_checkpointing()
        yield pair.compare("training step, recomputed", 1, long, trains=True)
        ours.blocks.recompute = False
        peer.disable_gradient_checkpointing()
    if at.has(25) and at.is_cuda:
        compile_network(ours)
        peer.compile_repeated_blocks(fullgraph=True)
        yield pair.compare("training step, compiled", 1, short, trains=True)
    if at.has(30) and at.is_cuda:
        yield pair.compare("guided step of sampling, compiled", 2, long, trains=False)


# Autoencoders


def _frame_by_frame(network: VideoAutoencoder, latents: Tensor) -> None:
    for _ in network.decode_latents(latents.split(1, dim=2)):
        pass


def autoencoder(at: Setting) -> Iterator[Row]:
    """Frames per second in bfloat16: ours, and Wan 2.1's beside diffusers' with equal weights, whole and in chunks."""
    torch.manual_seed(0)
    frames, side = (5, 16) if at.is_tiny else (33, 256)
    size = AutoencoderConfig(width=8, deep_width=16) if at.is_tiny else AutoencoderConfig()
    networks: dict[str, Any] = {"ours": build_autoencoder(size).to(at.device).eval()}
    if find_spec("diffusers") is not None:
        from testing.wan import make_pair

        channels = {"z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
        pair: Any = make_pair(channels | {"base_dim": 8 if at.is_tiny else 96})
        peer, ours = pair
        networks |= {"Wan": ours.to(at.device), "Wan of diffusers": peer.to(at.device)}
    for name, network in networks.items():
        pixels = torch.rand(1, 3, frames, side, side, device=at.device) * 2 - 1
        is_peer = name == "Wan of diffusers"
        with torch.no_grad(), at.autocast():
            latents = network.encode(pixels).latent_dist.mean if is_peer else network.encode(pixels).mean

        calls: dict[str, Callable[[], object]] = {
            "encode": partial(network.encode, pixels),
            "decode": partial(network.decode, latents),
        }
        if not is_peer:
            calls["decode frame by frame"] = partial(_frame_by_frame, network, latents)
        for what, call in calls.items():
            if not at.has(8):
                return
            row: Row = {"network": name, "what": what, "frames": frames, "side": side}
            with at.guarded(row), at.peak(row), torch.no_grad(), at.autocast():
                row |= at.timed(call, repeats=5, warm_up=2)
                row["frames_per_second"] = 1e3 * frames / row["ms"]
            yield row


# The product's engine


def engine(at: Setting) -> Iterator[Row]:
    """A step of our engine, DeepSpeed ZeRO with all of its stages on one device, with the loss of flow matching."""
    if find_spec("deepspeed") is None:
        yield {"error": "deepspeed is not installed"}
        return
    from models.flow.spec import FlowSpec
    from pipeline.distributed.torchrun import local_worker
    from pipeline.engine.parameter_groups import ParameterGroup
    from pipeline.train.config import TrainConfig
    from pipeline.train.task import single_group
    from pipeline.train.tasks.flow import FlowMatchingLoss
    from pipeline.train.tasks.flow_batch import FlowBatch

    preset, num_clips, latent = ("tiny", 2, (2, 4, 4)) if at.is_tiny else ("L", 32, SHORT)
    config, caption = DiTConfig.model_validate({"preset": preset}), captions(at, num_clips)

    class Task:
        seed = 0

        def build(self, _: object) -> nn.Module:
            return FlowMatchingLoss(build_network(config, 16, caption.values.shape[2]), FlowSpec())

        def parameter_groups(self, train: TrainConfig) -> list[ParameterGroup]:
            return single_group(train)

    cost = dit_cost(config, 16, ClipSize(latent, caption.values.shape[1]), caption.values.shape[2])
    with local_worker(torch.get_num_threads()) as worker:
        x_1, x_0 = (torch.randn(num_clips, 16, *latent, device=worker.device) for _ in range(2))
        t, fps = torch.rand(num_clips, device=worker.device), torch.full((num_clips,), 16.0, device=worker.device)
        batch = FlowBatch(x_1, x_0, t, caption.to(worker.device), fps)
        settings: tuple[dict[str, Any], ...] = (
            {"zero_stage": 2, "weight_precision": "bf16"},
            {"zero_stage": 2, "weight_precision": "fp32"},
            {"zero_stage": 3, "weight_precision": "bf16"},
            {"zero_stage": 3, "weight_precision": "fp32"},
            {"zero_stage": 1, "weight_precision": "bf16"},
            {"zero_stage": 0, "weight_precision": "fp32"},
        )
        for chosen in settings:
            if not at.has(12):
                return
            row: Row = {"preset": preset, "num_clips": num_clips, **chosen}
            config_of_stage = TrainConfig(global_batch=num_clips, precision="bf16", **chosen)
            with at.guarded(row), at.peak(row):
                row |= _engine_step(at, Task(), config_of_stage, worker, batch)
                rate = 1e3 * cost.training_flops * num_clips / row["ms"]
                row |= {"tflops": rate / 1e12, "mfu": rate / DATASHEET_FLOPS}
            yield row
            gc.collect()


def _engine_step(at: Setting, task: Any, config: Any, worker: Any, batch: Any) -> Row:  # noqa: ANN401 - imported late
    from pipeline.train.build import build

    trainer, _ = build(task, config, worker)
    return at.timed(lambda: trainer.step([batch], 1e-4), repeats=6, warm_up=3)
