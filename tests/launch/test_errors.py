"""Every message is of a length that a person reads."""

from data.errors import ReelflowError
from launch.errors import MAX_CHARACTERS, describe


def test_a_message_of_any_length_is_cut_and_the_rest_is_counted():
    told = describe(ReelflowError("x" * 25_000_000)) or ""
    assert len(told) < MAX_CHARACTERS + 100
    assert told.endswith(f"... (and {25_000_000 - MAX_CHARACTERS} characters more)")
    assert describe(ReelflowError("short")) == "short"
