"""RMS norms, the time embedding, and blocks that are computed again."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.layers import EXPENSIVE, BlockStack, HeadNorm, RMSNorm, time_embedding
from models.networks.dit import DiT
from testing.networks import noisy_batch, small_dit, with_open_gates


def test_time_embedding_has_unit_norm():
    """Holderrieth & Erives 2025, section 5.1: || sqrt(2/d) [cos, sin] || = 1."""
    torch.testing.assert_close(time_embedding(torch.linspace(0, 1, 7), 64).norm(dim=-1), torch.ones(7))


def test_rms_norm():
    x = torch.randn(3, 8)
    torch.testing.assert_close(RMSNorm(8)(x).square().mean(-1), torch.ones(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_keeps_the_direction_and_gives_each_head_its_gain(dtype):
    """Henry et al. 2020, eq. 4: g q / ||q||, here with the root mean square as the unit of length."""
    x = torch.randn(2, 5, 3, 16).to(dtype)
    norm = HeadNorm(3)
    norm.gain.data[:, 0] = torch.tensor([1.0, 2.0, 0.5])
    out = norm(x)
    assert out.dtype == dtype
    exact = dtype == torch.float32
    torch.testing.assert_close(
        out.float().square().mean(-1).sqrt(),
        norm.gain.data[:, 0].expand(2, 5, 3),
        rtol=1e-5 if exact else 1e-2,
        atol=0,
    )
    similarity = torch.cosine_similarity(out.float(), x.float(), dim=-1)
    torch.testing.assert_close(similarity, torch.ones(2, 5, 3), rtol=0, atol=1e-6 if exact else 1e-4)
    assert torch.equal(norm(torch.zeros(1, 1, 3, 16)), torch.zeros(1, 1, 3, 16))


class Counted(TorchDispatchMode):
    """Counts operations that are computed, as torch names them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        return func(*args, **kwargs or {})


def test_blocks_that_are_recomputed_give_the_same_bits_and_compute_what_they_say():
    """All: everything but the inputs of a block is computed twice. Selective: no linear layer and no attention is."""
    torch.manual_seed(0)
    config = small_dit(joint_blocks=2, attention_pattern=("space",))
    network = with_open_gates(DiT(config, 4))
    x, t, caption = noisy_batch(config)
    gradients, calls = {}, {}
    settings: dict[str, Any] = {"nothing": False, "all": True, "selective": "selective"}
    for name, recompute in settings.items():
        for stack in (part for part in network.modules() if isinstance(part, BlockStack)):
            stack.recompute = recompute
        network.zero_grad()
        loss = network(x, t, caption).square().mean()
        with Counted() as counted:
            loss.backward()
        gradients[name], calls[name] = [parameter.grad for parameter in network.parameters()], counted.calls
    for name in ("all", "selective"):
        assert all(torch.equal(*pair) for pair in zip(gradients[name], gradients["nothing"], strict=True))
    expensive = {name: sum(calls[name][operation] for operation in EXPENSIVE) for name in calls}
    assert expensive["selective"] == expensive["nothing"] < expensive["all"]
    assert calls["nothing"].total() < calls["selective"].total() < calls["all"].total()
