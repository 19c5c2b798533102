"""What a caption is: one line of text of a bounded length, without control characters."""

import unicodedata

from data.errors import ReelflowError, quoted

MAX_CAPTION_CHARACTERS = 4096


class CaptionError(ReelflowError, ValueError):
    """A caption, caption table or sidecar file that cannot be used."""


def clean_caption(caption: str) -> str:
    """The caption as one line with single spaces.

    Raises:
        CaptionError: it has more than `MAX_CAPTION_CHARACTERS` characters or contains control characters.
    """
    caption = " ".join(caption.split())
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise CaptionError(f"its caption has {len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}")
    strange = next((character for character in caption if unicodedata.category(character) in ("Cc", "Cs")), None)
    if strange is not None:
        raise CaptionError(f"its caption contains the control character U+{ord(strange):04X}")
    return caption


def check_caption_value(where: str, column: str, caption: object) -> str | None:
    """The caption of a row as it stands in the table, None if it is empty.

    Args:
        where: the table and the row, for the message.

    Raises:
        CaptionError: it is not text, or not as `clean_caption` demands.
    """
    if caption is None:
        return None
    if not isinstance(caption, str):
        raise CaptionError(f"{where}: {column} is {quoted(caption)}; it must be text, in JSON within double quotes")
    try:
        clean_caption(caption)
    except CaptionError as error:
        raise CaptionError(f"{where}: {error}; correct the row") from error
    return caption or None
