"""Counts of operations and of clips per second, the slowest rank, and known peak rates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.dataset.buckets import Bucket
from models.autoencoder.config import AutoencoderConfig
from models.networks.config import DiTConfig
from models.text.bytes import CaptionTokens
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.throughput import RankTiming, flops_per_clip, peak_flops_per_second, slowest
from pipeline.train.tasks.autoencoder import AutoencoderTask
from testing.records import SMALL
from testing.tiny import make_task
from testing.watched import STILL, task_of


def test_operations_of_a_clip_are_those_of_its_products_of_matrices():
    """A linear layer of m rows costs 2 m in out forward and as much twice backward; attention 4 n m width, likewise."""
    bucket = Bucket(num_frames=17, height=64, width=64, fps=8)
    model = DiTConfig(width=64, depth=2, heads=2)
    task = replace(make_task(Path()), model=model)
    network = task.build().get_submodule("network")
    counted = []

    def count(layer, inputs, output):
        counted.append(2 * output.numel() * layer.in_features)

    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(count)
    caption = CaptionTokens.encode(["a"], model.caption_text.max_bytes)
    latent = torch.zeros(1, 4, 5, 8, 8)
    network(latent, torch.zeros(1), caption)
    tokens, words, text = task.num_tokens(bucket), caption.ids.shape[1], model.text
    assert tokens == 5 * 4 * 4
    scores = 2 * (4 * tokens * tokens * 64 + 4 * tokens * words * 64) + text.depth * 4 * words * words * text.width
    expected = 3 * (sum(counted) + scores)
    into = 2 * tokens * 16 * 64  # nobody asks for the gradient of the latent
    assert flops_per_clip(task, bucket) == pytest.approx(expected - into, rel=0.01)


@pytest.mark.slow
def test_pace_is_counted_from_the_plan(watched_runs):
    task = task_of(watched_runs / "data")
    per_clip = {bucket: flops_per_clip(task, bucket) for bucket in (SMALL, STILL)}
    assert (task.num_tokens(SMALL), task.num_tokens(STILL)) == (8, 4)
    assert AutoencoderTask(AutoencoderConfig(), Path(), 0).num_tokens(SMALL) == 32
    ratios = [per_clip[bucket] / task.num_tokens(bucket) for bucket in (SMALL, STILL)]
    for row in read_metrics(watched_runs / "watched-2"):  # of one step each, so of one bucket
        ratio = row["flops_per_second"] / row["tokens_per_second"]
        assert any(ratio == pytest.approx(expected) for expected in ratios)
        assert row["tokens_per_second"] > 0
        assert row["step_seconds"] > 0
        assert row["slowest_own_seconds"] > 0
        assert row["slowest_rank"] in (0, 1)
        assert row["memory_bytes"] > 1e8
        assert "mfu" not in row  # nobody knows what this processor could do


def test_the_slowest_rank_is_the_one_the_others_wait_for():
    ranks = [RankTiming(1.0, 0.2, 5), RankTiming(1.1, 0.9, 4), RankTiming(1.0, 0.3, 9)]
    assert slowest(ranks) == {"step_seconds": 1.1, "slowest_rank": 1, "slowest_own_seconds": 0.9, "memory_bytes": 9}


def test_peaks_of_known_devices():
    assert peak_flops_per_second("NVIDIA H100 80GB HBM3") == peak_flops_per_second("NVIDIA H200") == 989e12
    assert peak_flops_per_second("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_per_second("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops_per_second("NVIDIA GeForce GTX 1080") is None
