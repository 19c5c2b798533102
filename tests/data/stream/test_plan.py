"""The order of samples and the stream that follows it: nothing missing, nothing twice, the same on any world."""

import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stream.loader import local_slots
from data.stream.plan import BatchPlan, Interleave, Part, ShuffledEpochs, TokenBudget

weights = st.lists(st.integers(1, 50), min_size=1, max_size=9).map(tuple)


@given(weights, st.integers(0, 10**12))
def test_turns_are_counted_without_counting(weights, start):
    turns = Interleave(weights)
    counts = turns.counts(start)
    assert sum(counts) == start
    for number in range(start, start + 20):
        member, before = turns.turn(number)
        assert before == counts[member]
        counts[member] += 1
        assert counts == turns.counts(number + 1)


@given(weights, st.integers(0, 10**6))
def test_turns_are_taken_evenly(weights, num_turns):
    """No member is ever further from its share than the rounding of the splits above it."""
    depth, total = math.ceil(math.log2(len(weights))), sum(weights)
    for count, weight in zip(Interleave(weights).counts(num_turns), weights, strict=True):
        assert abs(count - num_turns * weight / total) <= depth / 2 + 0.5
    whole = Interleave(weights).counts(total * num_turns)
    if len(weights) <= 2:
        assert whole == [weight * num_turns for weight in weights]


def test_turns_need_positive_weights():
    for bad in ((), (1, 0)):
        with pytest.raises(ValueError, match="positive integer weights"):
            Interleave(bad)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    block_shards=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_every_epoch_holds_every_sample_once(sizes, block_shards, seed):
    epochs = ShuffledEpochs(sizes, seed, "p", block_shards)
    n = sum(sizes)
    for epoch in (0, 1, 10**6):
        places = np.arange(epoch * n, (epoch + 1) * n)
        assert Counter(epochs.samples(places).tolist()) == Counter(range(n))
    across = np.arange(n // 2, 2 * n)
    assert epochs.samples(across).tolist() == [int(epochs.samples(np.array([p]))[0]) for p in across]


def test_epochs_differ_and_reads_stay_in_a_block_of_shards():
    epochs = ShuffledEpochs([10] * 64, 0, "p", block_shards=4)
    orders = epochs.samples(np.arange(3 * 640)).reshape(3, 640)
    assert len({tuple(order) for order in orders.tolist()}) == 3
    for block in orders[0].reshape(16, 40):
        assert len(set((block // 10).tolist())) == 4  # forty samples in a row touch four shards
    assert len({int(shard) for shard in orders[0].reshape(16, 40)[:, 0] // 10}) > 8  # which four differs


buckets = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(parts=buckets, worlds=st.lists(st.integers(1, 8), min_size=2, max_size=2), start=st.integers(0, 300))
def test_global_batches_are_a_pure_function_of_the_step(parts, worlds, start):
    """Several buckets, several datasets, any two worlds: the same keys, from any step on."""
    sizes = {bucket: math.lcm(*worlds) * factor for bucket, factor in (("a", 1), ("b", 2), ("c", 3))}
    plan = BatchPlan([Part(bucket, tuple(shards), share) for bucket, shards, share in parts], sizes, seed=3)
    for step in range(start, start + 4):
        size = plan.batch_size(step)
        whole = plan.addresses(step, range(size))
        for world in worlds:
            again = BatchPlan([Part(bucket, tuple(shards), share) for bucket, shards, share in parts], sizes, seed=3)
            pieces = [again.addresses(step, local_slots(size, rank, world)) for rank in range(world)]
            assert [address for piece in pieces for address in piece] == whole
        assert {parts[address.part][0] for address in whole} == {plan.bucket(step)}
        assert [address.position for address in whole] == list(range(plan.cursor(step), plan.cursor(step + 1)))
        assert plan.step(plan.cursor(step)) == step


def test_all_buckets_finish_their_epochs_together_and_nothing_is_left_over():
    """Shares equal to the sample counts: every clip is seen equally often, give or take a batch."""
    parts = [Part("wide", (30, 25, 41), 96), Part("tall", (50,), 50), Part("wide", (17,), 17)]
    plan, seen = BatchPlan(parts, {"wide": 4, "tall": 6}, seed=1), Counter()
    order = {part: [] for part in range(3)}
    for step in range(plan.step(plan.cursor(2000))):
        for address in plan.addresses(step, range(plan.batch_size(step))):
            seen[address.part, address.sample] += 1
            order[address.part].append(address.sample)
    for number, part in enumerate(parts):
        n = sum(part.shard_sizes)
        for epoch in range(len(order[number]) // n):
            assert Counter(order[number][epoch * n : (epoch + 1) * n]) == Counter(range(n))
    rates = [len(order[number]) / sum(part.shard_sizes) for number, part in enumerate(parts)]
    assert max(rates) - min(rates) < 0.25


def test_weights_mix_datasets_within_a_batch():
    plan = BatchPlan([Part("a", (100,), 3), Part("a", (1000,), 1)], {"a": 8}, seed=0)
    for step in range(20):
        assert Counter(address.part for address in plan.addresses(step, range(8))) == {0: 6, 1: 2}


def test_what_a_plan_refuses():
    with pytest.raises(ValueError, match="part 1 of the data has 0 samples"):
        BatchPlan([Part("a", (1,)), Part("a", ())], {"a": 1}, seed=0)
    with pytest.raises(ValueError, match="no batch size for bucket b; there are a"):
        BatchPlan([Part("b", (1,))], {"a": 1}, seed=0)
    plan = BatchPlan([Part("a", (10,))], {"a": 4}, seed=0)
    with pytest.raises(ValueError, match="no batch begins after 6 samples, the nearest before it after 4"):
        plan.step(6)
    with pytest.raises(ValueError, match="does not divide over 3 workers"):
        local_slots(8, 0, 3)


def test_a_hundred_million_samples_are_planned_in_bounded_memory_and_resumed_anywhere():
    tracemalloc.start()
    plan = BatchPlan([Part("a", (1000,) * 100_000, 10**8)], {"a": 256}, seed=0)
    far = plan.addresses(10**9, range(256))  # the 2,560th epoch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({address.sample for address in far}) == 256
    assert peak < 200 * 2**20
    assert plan.addresses(10**9, range(100, 104)) == far[100:104]


TOKENS = {"a": 3, "b": 7, "c": 16}  # of a sample of each bucket
mixed = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5)),
    min_size=2,
    max_size=5,
)


def mixed_plan(parts: Sequence[tuple[str, Sequence[int], int]], multiple: int, per_step: int) -> BatchPlan:
    sizes: dict[str, int] = dict.fromkeys(TOKENS, multiple)
    described = [Part(bucket, tuple(shards), share) for bucket, shards, share in parts]
    return BatchPlan(described, sizes, seed=3, budget=TokenBudget(per_step, TOKENS))


@settings(deadline=None, max_examples=60)
@given(parts=mixed, multiple=st.sampled_from([1, 2, 6]), factor=st.integers(3, 9), start=st.integers(0, 300))
def test_mixed_steps_have_equal_tokens_and_every_sample_is_in_exactly_one(parts, multiple, factor, start):
    per_step = factor * multiple * max(TOKENS.values())
    plan, position = mixed_plan(parts, multiple, per_step), None
    for step in range(start, start + 6):
        counts = plan.num_samples(step)
        tokens = sum(TOKENS[bucket] * number for bucket, number in counts.items())
        assert abs(tokens - per_step) < multiple * max(TOKENS.values())  # a turn
        assert sum(counts.values()) == plan.batch_size(step)
        assert all(number % multiple == 0 for number in counts.values())
        assert plan.step(plan.cursor(step)) == step
        addresses = [a for turn in plan.turns(step) for a in plan.addresses(turn, range(plan.turn_size(turn)))]
        assert Counter(parts[address.part][0] for address in addresses) == counts
        positions = [address.position for address in addresses]
        assert positions == list(range(plan.cursor(step), plan.cursor(step + 1)))
        assert position in {None, positions[0]}  # the step begins where the one before it ended
        position = positions[-1] + 1


def test_mixed_steps_of_a_whole_run_have_the_tokens_and_the_shares_that_they_should():
    """Over a run, tokens are those of the budget to within a turn, and buckets finish their epochs together."""
    parts = [("a", (300,), 300), ("b", (60, 40), 100), ("c", (50,), 50)]
    plan, steps = mixed_plan(parts, 2, 256), 400
    total, seen = Counter(), Counter()
    for step in range(steps):
        total.update(plan.num_samples(step))
        assert set(plan.num_samples(step)) == {"a", "b", "c"}  # a step holds clips of every bucket
        for turn in plan.turns(step):
            seen.update((a.part, a.sample) for a in plan.addresses(turn, range(plan.turn_size(turn))))
    assert abs(sum(TOKENS[bucket] * number for bucket, number in total.items()) - steps * 256) < 2 * 16
    assert {bucket: round(number / total["c"], 2) for bucket, number in total.items()} == {"a": 6, "b": 2, "c": 1}
    times = list(seen.values())
    assert max(times) - min(times) <= 1  # every sample as often as every other, to within an epoch
    assert len(seen) == 450


def test_mixed_steps_are_found_directly_however_far():
    plan = mixed_plan([("a", (1000,) * 1000, 10**6), ("c", (1000,), 1000)], 4, 4096)
    far = plan.turns(10**9)
    assert plan.step(plan.cursor(10**9)) == 10**9
    assert len(far) in range(250, 400)


def test_one_bucket_mixed_is_one_bucket_unmixed():
    plain = BatchPlan([Part("a", (50,))], {"a": 8}, seed=3)
    plan = mixed_plan([("a", (50,), 1)], 2, 8 * TOKENS["a"])
    for step in range(20):
        turns = [plan.addresses(turn, range(plan.turn_size(turn))) for turn in plan.turns(step)]
        assert [address for turn in turns for address in turn] == plain.addresses(step, range(8))


def test_a_turn_must_fit_into_a_step():
    with pytest.raises(ValueError, match="a turn has 32 tokens, more than the 31 of a step"):
        mixed_plan([("a", (9,), 1), ("c", (9,), 1)], 2, 31)
