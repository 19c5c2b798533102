"""What the HTML pages share: templates, plots and clips inside the page, and text that hides nothing."""

import base64
import io
import re
import unicodedata
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

LINE_COLOUR = "#2b6cb0"
# Control, format (marks of direction, zero widths), private use, surrogate, separators of lines and paragraphs.
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
JOINERS = "\u200c\u200d"  # letters of some scripts, and emoji, are written with them


def visible(text: str) -> str:
    """The text with every character that cannot be seen written out, as <U+202E>."""
    return re.sub(r"[^ -~]", lambda match: _shown(match[0]), text)


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in HIDDEN_CATEGORIES and character not in JOINERS
    return f"<U+{ord(character):04X}>" if hidden else character


def video_uri(content: bytes) -> str:
    """An MP4 as an address that holds it, so that the page alone is enough."""
    return "data:video/mp4;base64," + base64.b64encode(content).decode()


def svg_of(figure: Figure) -> str:
    """The figure as an `<svg>` element; equal figures give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "reelflow"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
TEMPLATES.filters["visible"] = visible
