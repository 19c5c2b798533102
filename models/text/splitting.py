"""The words of a caption. Nothing here loads torch."""

import re

LONGEST = 16  # letters of a token: a longer word becomes several
WORD = re.compile(rf"\w{{1,{LONGEST}}}|[^\w\s\x00-\x7f]")
"""A run of letters and digits, or another character beyond ASCII, such as an emoji. ASCII punctuation is not read."""


def words_of(caption: str) -> list[str]:
    """The words of a caption in their order; one of more than `LONGEST` letters as several."""
    return WORD.findall(caption)
