"""Every option of sampling changes what is sampled; the module that samples loads neither Ray nor a decoder."""

import subprocess
import sys

import pytest
import torch

from models.flow.spec import FlowSpec
from pipeline.encode.captions import byte_captions
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed, sample_latents


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "cfg-zero-star"},
        {"guidance": "apg"},
        {"guidance": "rescaled"},
        {"negative_prompt": "a blue square"},
        {"sde_sigma": 0.5},
        {"shift": 3.0},
        {"grid": "diffusers_euler"},
        {"grid": "diffusers_unipc"},
    ],
    ids=str,
)
def test_no_option_of_sampling_is_passed_over(options):
    def network(x, t, caption):
        return x + caption.mask.sum(1).reshape(-1, 1, 1, 1, 1) * x.roll(1, -1)

    def latents(**chosen):
        config = SampleConfig(solver="euler", steps=3, **chosen)
        clips, captions, cpu = [PromptSeed("a red circle", 1)], byte_captions(63), torch.device("cpu")
        shape, spec = (4, 3, 4, 4), FlowSpec()
        return sample_latents(
            network, spec, config, clips, guidance_scale=3.0, shape=shape, read_captions=captions, device=cpu
        )

    assert torch.equal(latents(), latents())
    assert not torch.equal(latents(**options), latents())


def test_noise_while_sampling_suits_data_that_are_narrow():
    """Gaussian data of std 0.05, by its exact velocity: noise that did not fall with the level would leave 0.33."""
    std = 0.05

    def network(x, t, caption):
        t = t.reshape(-1, 1, 1, 1, 1)
        return (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * x

    clips = [PromptSeed("a red circle", seed) for seed in range(8)]
    latents = sample_latents(
        network,
        FlowSpec(),
        SampleConfig(steps=50, sde_sigma=1.0),
        clips,
        guidance_scale=1.0,
        shape=(4, 3, 16, 16),
        read_captions=byte_captions(63),
        device=torch.device("cpu"),
    )
    assert std / 1.5 < latents.std().item() < std * 1.5


def test_nothing_heavy_is_loaded_to_sample_latents():
    heavy = ("ray", "deepspeed", "decord", "av", "matplotlib", "transformers")
    code = f"import sys, pipeline.sample.latents; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
