"""What is said of a training before it starts."""

from data.dataset.compression import COMPRESSION
from pipeline.train.plan import describe_batches, describe_steps
from testing.tiny import MIXED, MIXED_BUCKETS, make_task, write_mixed_latents


def test_steps_of_mixed_buckets_are_described_by_their_tokens(tmp_path):
    """Buckets of 8, 4 and 16 tokens a clip, with ten clips each, in steps of 12 x 16 tokens."""
    said = describe_steps(MIXED, MIXED_BUCKETS, 2, COMPRESSION)
    assert said.startswith(
        "8 steps of 192 tokens, in clips of 8 (5x32x32@8) and 4 (1x32x32@8) and 16 (5x32x64@8) tokens"
    )
    write_mixed_latents(tmp_path)
    lines = [line.split() for line in describe_batches(make_task(tmp_path).subsets(), MIXED)]
    assert [line[0] for line in lines] == ["1x32x32@8", "5x32x32@8", "5x32x64@8"]
    assert all("6.9 a step" in " ".join(line) for line in lines)  # 192 tokens / 28 of one clip of each
    assert [line[-4] for line in lines] == ["14.3%", "28.6%", "57.1%"]
