"""JSON objects with a key that is there twice."""

import pytest

from data.files.text import TextError, object_of


def test_a_repeated_key_is_found_without_comparing_all_keys():
    compared = []

    class Key(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return super().__eq__(other)

        __hash__ = str.__hash__

    keys = [Key(f"v/{number}.mp4") for number in range(1000)]
    with pytest.raises(TextError, match=r"the key 'v/999\.mp4' is there twice; keep one of them"):
        object_of([(key, "x") for key in [*keys, Key(keys[-1])]])
    assert 0 < len(compared) <= len(keys)  # each with each: half a million
