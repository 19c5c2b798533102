"""What a checkpoint is asked before it is sampled: how much of the prompts its network reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset.buckets import Bucket
from data.dataset.manifest import TextEncoderRecord
from models.attention.backends import AttentionBackendError
from models.attention.config import AttentionBackend
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.flow.spec import FlowSpec
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.text.config import TextConfig
from pipeline.checkpoint.record import Checkpoint, CheckpointError, CheckpointRecord, FileRecord
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import TrainedModel, trained_model
from pipeline.sample.requests import PromptRequest, read_prompts
from pipeline.sample.sampler import ClipSampler, truncation_warnings
from testing.networks import with_open_gates
from testing.paths import CASES_DIR

NETWORK = DiTConfig(width=32, depth=1, heads=2, text=TextConfig(width=16, depth=1, heads=2, max_bytes=8))
TRAINED: dict[str, Any] = {
    "model": NETWORK.model_dump(),
    "flow": FlowSpec().model_dump(),
    "latent_stats": {"mean": [0.0], "std": [1.0]},
    "buckets": [Bucket().model_dump()],
}


def model_of(**trained: Any) -> TrainedModel:
    """The model of a checkpoint that says so; what is None, it does not say."""
    said = {name: value for name, value in (TRAINED | trained).items() if value is not None}
    file = FileRecord(num_bytes=1, sha256="0" * 64)
    record = CheckpointRecord.model_construct(kind="dit", step=1, trained=said, files={"rank_00000.safetensors": file})
    return trained_model(Checkpoint(Path("checkpoint"), record))


BYTES = model_of()


def test_prompts_longer_than_what_the_network_reads_are_counted():
    prompts = ["a red circle", "short", "a red square", "a reed", "é" * 5]
    (warning,) = truncation_warnings(BYTES, SampleConfig(), prompts)
    assert warning == (
        "3 of 5 prompts have more than the 8 bytes that the network reads and are cut there; the longest has 12; the "
        "first is prompt 1, 'a red circle'"
    )
    assert truncation_warnings(BYTES, SampleConfig(), ["12345678", "é" * 4, ""]) == []


def test_prompts_that_become_equal_are_counted():
    (warning,) = truncation_warnings(BYTES, SampleConfig(), ["a red circle", "a red cinema", "a red cinema"])
    assert warning.endswith("; 1 of them become equal to another one")
    (warning,) = truncation_warnings(BYTES, SampleConfig(), ["a red ci", "a red circle", "b"])
    assert warning.endswith("; 1 of them become equal to another one")


@pytest.mark.parametrize("value", [None, 5, {"width": "x"}])
@pytest.mark.parametrize("name", ["model", "flow", "latent_stats"])
def test_a_checkpoint_that_does_not_say_what_was_trained_is_refused(name, value):
    with pytest.raises(CheckpointError, match=rf"checkpoint\.json is damaged: .*{name}"):
        model_of(**{name: value})


@pytest.mark.parametrize("buckets", [[], "x", [{"num_frames": 2}]])
def test_a_checkpoint_without_a_shape_is_refused(buckets):
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged: trained\.buckets"):
        model_of(buckets=buckets)


def test_a_long_negative_prompt_is_told():
    config = SampleConfig(negative_prompt="blurry and dark")
    assert truncation_warnings(BYTES, config, ["a"]) == [
        "sample.negative_prompt has more than the 8 bytes that the network reads and is cut there"
    ]


def test_the_long_prompt_of_the_cases_is_told_in_a_short_line():
    prompts, _ = read_prompts(CASES_DIR / "prompts" / "long.txt")
    (warning,) = truncation_warnings(BYTES, SampleConfig(), [prompt.prompt for prompt in prompts])
    assert "1 of 1 prompts have more than the 8 bytes" in warning
    assert "the longest has 5000" in warning
    assert len(warning) < 300


@pytest.mark.parametrize(("max_tokens", "num_warnings"), [(4, 1), (6, 0)])
def test_with_a_text_encoder_tokens_are_counted(text_encoder_dir, max_tokens, num_warnings):
    record = TextEncoderRecord(folder=str(text_encoder_dir), fingerprint="", max_tokens=max_tokens, width=16)
    model = model_of(text_encoder=record.model_dump())
    warnings = truncation_warnings(model, SampleConfig(), ["a red circle moves left", "a"])
    assert len(warnings) == num_warnings
    assert all("1 of 2 prompts have more than the 4 tokens" in warning for warning in warnings)


class Untrained(TrainedModel):
    """A model with random weights."""

    def weights(self, which: str) -> Iterator[tuple[str, torch.Tensor]]:
        torch.manual_seed(0)
        network = build_network(self.network, self.stats.num_channels)
        return iter([(name, parameter.detach()) for name, parameter in with_open_gates(network).named_parameters()])

    def load_autoencoder(self) -> Autoencoder:
        torch.manual_seed(0)
        return Autoencoder(AutoencoderConfig(latent_channels=1, width=8, deep_width=8, num_blocks=1)).eval()


def test_clips_are_sampled_at_the_frame_rate_of_their_bucket():
    """The same noise and prompt at two frame rates; a network that does not read them gives the same clip."""
    buckets = [Bucket(num_frames=1, height=16, width=16, fps=fps) for fps in (8, 24)]
    for conditions, is_same in (((), True), (("fps",), False)):
        network = NETWORK.model_copy(update={"clip_conditions": conditions})
        model = model_of(model=network.model_dump(), buckets=[bucket.model_dump() for bucket in buckets])
        sampler = ClipSampler(Untrained(**vars(model)), SampleConfig(steps=1, solver="euler"), torch.device("cpu"))
        requests = [
            PromptRequest(id="0" * 12, prompt="a dot", seed=1, guidance_scale=2.0, bucket=each.name) for each in buckets
        ]
        slow, fast = (sampler.sample([request])[0][0] for request in requests)
        assert np.array_equal(slow, fast) == is_same


def test_the_wanted_kernel_computes_the_networks_attention():
    """In float32 on a CPU: sdpa takes every call of the network, and flash-attn none."""
    bucket = Bucket(num_frames=1, height=16, width=16)
    model = model_of(buckets=[bucket.model_dump()])
    request = PromptRequest(id="0" * 12, prompt="a dot", seed=1, guidance_scale=2.0, bucket=bucket.name)

    def sampled(kernel: AttentionBackend) -> np.ndarray:
        config = SampleConfig(steps=1, solver="euler", precision="fp32", attention=kernel)
        return ClipSampler(Untrained(**vars(model)), config, torch.device("cpu")).sample([request])[0][0]

    assert np.array_equal(sampled("sdpa"), sampled("auto"))
    with pytest.raises(AttentionBackendError, match="flash-attn-2 does not take a full call"):
        sampled("flash-attn-2")
