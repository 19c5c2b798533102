"""Shards are a function of the names of their sources, and a change of one source changes about one shard."""

import random

import pytest

from pipeline.ingest.layout import address, grouped, keeps_numbers, numbered


def shards(names: list[str], limit: int) -> dict[str, tuple[str, ...]]:
    return {group.shard: group.sources for group in grouped(names, str, limit)}


def collection(number: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.randrange(10**9)}/clip {index}.mp4" for index in range(number)]


@pytest.mark.parametrize(("number", "limit"), [(0, 4), (1, 1), (7, 1), (256, 256), (257, 256), (3000, 16), (5000, 256)])
def test_every_source_is_in_one_shard_and_no_shard_has_too_many(number, limit):
    names = collection(number)
    made = shards(names, limit)
    assert sorted(name for sources in made.values() for name in sources) == sorted(names)
    assert all(0 < len(sources) <= limit for sources in made.values())
    assert all(list(sources) == sorted(sources) for sources in made.values())
    for shard, sources in made.items():
        bits = shard.removeprefix("shard-b").removesuffix(".tar")
        assert all(address(name).startswith(bits) for name in sources)
    assert list(made) == sorted(made)


def test_a_small_collection_is_one_shard():
    assert list(shards(collection(256), 256)) == ["shard-b.tar"]


def test_the_number_of_shards_follows_the_limit_while_a_collection_grows():
    """Between half full and full on average, at every size; by chance one group may be smaller."""
    for seed, number in enumerate((300, 500, 700, 1000, 1500, 2000, 4000, 8000)):
        sizes = [len(sources) for sources in shards(collection(number, seed), 64).values()]
        assert number / 64 <= len(sizes) <= 2 * number / 64 + 1
        assert min(sizes) >= 64 // 4


def test_the_order_does_not_matter():
    names, rng = collection(400), random.Random(1)
    expected = shards(names, 16)
    for _ in range(5):
        rng.shuffle(names)
        assert shards(names, 16) == expected


@pytest.mark.parametrize("limit", [1, 4, 16, 64])
def test_one_source_more_changes_one_shard_or_splits_it(limit):
    names, rng = collection(300), random.Random(limit)
    num_split = 0
    for trial in range(50):
        some = names[: rng.randrange(1, 300)]
        before, after = shards(some, limit), shards([*some, f"new {trial}"], limit)
        gone, made = before.items() - after.items(), after.items() - before.items()
        (its_shard,) = [shard for shard, sources in made if f"new {trial}" in sources]
        moved = {name for _, sources in gone for name in sources}
        assert len(gone) <= 1  # the shard that it came into; none where there was none
        assert len(moved) <= limit
        assert {name for _, sources in made for name in sources} == moved | {f"new {trial}"}
        assert all(shard.startswith(next(iter(gone), ("shard-b", ()))[0].removesuffix(".tar")) for shard, _ in made)
        if limit > 1:
            assert len(made) <= 2 or limit < 16  # many in a row with the same next bits: only in small groups
        num_split += len(made) > 1
        assert its_shard in after
        assert shards(some, limit) == before  # and one source less gives back what was there
    assert num_split < 50


def test_shards_of_an_older_version_keep_their_numbers_while_the_sources_are_the_same():
    names = [f"{number}.mp4" for number in range(7)]
    old = {group.shard: group.sources for group in numbered(names, 3)}
    assert old == {
        "shard-00000.tar": ("0.mp4", "1.mp4", "2.mp4"),
        "shard-00001.tar": ("3.mp4", "4.mp4", "5.mp4"),
        "shard-00002.tar": ("6.mp4",),
    }
    assert keeps_numbers(old, names, 3)
    assert keeps_numbers({"shard-00001.tar": old["shard-00001.tar"]}, names, 3)  # the others were lost
    assert not keeps_numbers(old, [*names, "7.mp4"], 3)
    assert not keeps_numbers(old, names[1:], 3)
    assert not keeps_numbers(old, names, 4)
    assert not keeps_numbers({}, names, 3)
    assert not keeps_numbers(shards(names, 3), names, 3)
