"""How much of the network's work one clip takes, counted with a network that costs nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flow.spec import FlowSpec
from models.text.caption import Caption
from models.text.config import TextConfig
from pipeline.encode.captions import byte_captions
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed, Weaker, sample_latents
from pipeline.sample.outputs import SampledClip


@dataclass(frozen=True)
class NetworkCalls:
    """What one clip takes; of clips with several settings a mean."""

    calls: float
    """As manifest.jsonl counts them; a call for both branches of guidance is one."""
    evaluations: float
    """Of one clip under one condition: a call for both branches is two, which takes twice the time."""


def mean_calls(flow: FlowSpec, clips: Iterable[SampledClip], num_latent_frames: Callable[[str], int]) -> NetworkCalls:
    """The mean over sampled clips, all of whose lines have settings.

    The calls are those that were counted while sampling; of how many conditions each was, is counted here.

    Args:
        num_latent_frames: of a bucket, by its name.
    """
    known: dict[tuple[SampleConfig, float, str], NetworkCalls] = {}
    found = []
    for clip in clips:
        request = clip.request
        assert request.settings is not None
        key = request.settings, request.guidance_scale, request.bucket
        if key not in known:
            known[key] = count_calls(flow, *key[:2], num_latent_frames(request.bucket))
        one = known[key]
        calls = one.calls if clip.num_network_calls is None else clip.num_network_calls
        found.append((calls, calls * one.evaluations / one.calls))
    calls, evaluations = (sum(column) / len(found) for column in zip(*found, strict=True))
    return NetworkCalls(calls, evaluations)


def count_calls(flow: FlowSpec, config: SampleConfig, guidance_scale: float, num_latent_frames: int) -> NetworkCalls:
    """Count the calls that a clip of one window takes.

    The solver dopri5 chooses its steps by what the network says, so of it only the ratio of both counts is right.
    """
    calls, evaluations = 0, 0

    def network(x_t: Tensor, t: Tensor, caption: Caption) -> Tensor:  # noqa: ARG001 - of the interface
        nonlocal calls, evaluations
        calls, evaluations = calls + 1, evaluations + len(x_t)
        return torch.zeros_like(x_t)

    def weaker(x_t: Tensor, t: Tensor, caption: Caption) -> Tensor:  # noqa: ARG001 - of the interface
        nonlocal evaluations
        evaluations += len(x_t)
        return torch.zeros_like(x_t)

    captions = byte_captions(TextConfig())
    with torch.inference_mode():
        sample_latents(
            network,
            flow,
            config,
            [PromptSeed("", 0)],
            guidance_scale=guidance_scale,
            shape=(1, num_latent_frames, 1, 2),  # two values: some rules divide by a deviation
            read_captions=captions,
            device=torch.device("cpu"),
            weaker=None if config.guidance_checkpoint is None else Weaker(weaker, captions),
        )
    return NetworkCalls(calls, evaluations)
