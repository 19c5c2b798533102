"""Joint blocks: what they are equal to, what they do not see, and that each kind of token has weights of its own."""

import pytest
import torch
from einops import rearrange

from models.attention.attention import attention
from models.networks.dit import DiT
from models.networks.joint import JointBlock
from models.networks.protocol import SequenceParallelPlan, SingleProcess
from models.networks.token_layout import BatchLayout
from testing.networks import small_dit, with_open_gates

VIDEO, CAPTION, WIDTH = 6, 4, 32
CONFIG = small_dit(joint_blocks=2)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Video and caption tokens, the condition, and a mask with two caption tokens of padding in the first clip."""
    mask = torch.ones(2, VIDEO + CAPTION, dtype=torch.bool)
    mask[0, -2:] = False
    return torch.randn(2, VIDEO, WIDTH), torch.randn(2, CAPTION, WIDTH), torch.randn(2, 1, WIDTH), mask


@pytest.fixture
def block() -> JointBlock:
    torch.manual_seed(0)
    block = JointBlock(CONFIG, is_last=False)
    with_open_gates(block)
    return block


def layout(mask: torch.Tensor, plan: SequenceParallelPlan | None = None) -> BatchLayout:
    """Of clips of one frame, with the mask of `inputs`."""
    return BatchLayout(1, mask[:, VIDEO:], mask, plan or SingleProcess())


UNROTATED = torch.zeros(VIDEO, WIDTH // CONFIG.heads // 2)


def test_with_equal_weights_it_is_a_block_on_one_sequence(block):
    """One stream on the concatenated tokens: norm, attention of all to all, feed-forward."""
    block.caption.load_state_dict(block.video.state_dict())
    video, caption, condition, mask = inputs()
    out = torch.cat(block((video, caption), condition, None, UNROTATED, layout(mask)), dim=1)
    stream, tokens = block.video, torch.cat([video, caption], dim=1)
    vectors = stream.vectors(condition, None)
    q_k, v = stream.before(tokens, vectors)
    q, k = q_k.chunk(2, dim=2)
    torch.testing.assert_close(out, stream.after(tokens, attention(q, k, v, mask), vectors))


def test_padding_of_the_caption_is_not_seen(block):
    video, caption, condition, mask = inputs()
    changed = caption.clone()
    changed[0, -2:] = 100.0
    before, after = (block((video, each), condition, None, UNROTATED, layout(mask)) for each in (caption, changed))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1][0, :-2], after[1][0, :-2])
    changed[1, -1, 0] += 1  # not all channels, whose mean the norm takes away
    assert not torch.allclose(block((video, changed), condition, None, UNROTATED, layout(mask))[0], before[0])


def test_it_commutes_with_permutations_within_each_kind(block):
    video, caption, condition, mask = inputs()
    for_video, for_caption = torch.randperm(VIDEO), torch.randperm(CAPTION)
    shuffled = torch.cat([mask[:, :VIDEO], mask[:, VIDEO:][:, for_caption]], dim=1)
    out = block((video, caption), condition, None, UNROTATED, layout(mask))
    permuted = block((video[:, for_video], caption[:, for_caption]), condition, None, UNROTATED, layout(shuffled))
    torch.testing.assert_close(permuted[0], out[0][:, for_video])
    torch.testing.assert_close(permuted[1], out[1][:, for_caption])


def test_the_last_one_leaves_the_caption_and_has_no_weights_for_it():
    last = JointBlock(CONFIG, is_last=True)
    video, caption, condition, mask = inputs()
    assert torch.equal(last((video, caption), condition, None, UNROTATED, layout(mask))[1], caption)
    assert last.caption.out is None
    assert last.caption.feed_forward is None
    names = [name for name, _ in DiT(CONFIG, 4).named_parameters()]
    assert "joint.0.caption.feed_forward.up.weight" in names
    assert "joint.1.caption.feed_forward.up.weight" not in names


def test_it_is_the_identity_at_first():
    block = JointBlock(CONFIG, is_last=False)
    video, caption, condition, mask = inputs()
    out = block((video, caption), condition, None, UNROTATED, layout(mask))
    assert torch.equal(out[0], video)
    assert torch.equal(out[1], caption)


def test_times_per_frame_reach_the_caption_as_their_mean(block):
    video, caption, _, mask = inputs()
    condition = torch.randn(2, 3, WIDTH)  # three frames of two tokens
    vectors = block.caption.vectors(condition.mean(1, keepdim=True), None)
    _, v = block.caption.before(caption, vectors)
    seen = {}
    plan = SingleProcess()
    plan.attention = lambda q, k, v, mask=None: seen.setdefault("value", v)[:, : q.shape[1]]  # type: ignore[method-assign]
    block((video, caption), condition, None, UNROTATED, layout(mask, plan))
    torch.testing.assert_close(seen["value"][:, VIDEO:], v)
    assert rearrange(v, "b m h d -> b m (h d)").shape == caption.shape
