"""What all HTML pages share: templates, plots and videos as part of the page, and the escaping of invisible text."""

import base64
import io
import re
import unicodedata
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

LINE_COLOUR = "#2b6cb0"
# Control, format (direction marks, zero-width characters), private use, surrogates, line and paragraph separators.
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
JOINERS = "\u200c\u200d"  # part of the spelling of some scripts and of emoji


def visible(text: str) -> str:
    """The text with every invisible character replaced by its code point, such as <U+202E>."""
    return re.sub(r"[^ -~]", lambda match: _shown(match[0]), text)


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in HIDDEN_CATEGORIES and character not in JOINERS
    return f"<U+{ord(character):04X}>" if hidden else character


def video_uri(content: bytes) -> str:
    """An MP4 file as a data URI, so that a page contains its videos."""
    return "data:video/mp4;base64," + base64.b64encode(content).decode()


def svg_of(figure: Figure) -> str:
    """A figure as an `<svg>` element; equal figures give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "reelflow"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
TEMPLATES.filters["visible"] = visible
