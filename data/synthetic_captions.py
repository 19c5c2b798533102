"""Captions of drawn clips in many wordings, so that a network reads what a caption says, not its template.

A caption is put together from a subject (size, colour and shape, each in several words), a movement and, sometimes, the
background and a remark, in one of several orders. Some captions leave things out, have a typing error or other
capitals, as captions of real videos do.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from data.synthetic import Scene

T = TypeVar("T")

# The usual word comes first and is drawn as often as all the others together.
COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet", "ruby"),
    "green": ("green", "emerald", "grass-green", "forest-green"),
    "blue": ("blue", "sapphire", "royal-blue", "cobalt"),
    "yellow": ("yellow", "golden", "lemon", "sunny yellow"),
    "purple": ("purple", "violet", "plum", "lilac"),
    "cyan": ("cyan", "turquoise", "aqua", "teal"),
}
SHAPE_WORDS: Mapping[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball", "round dot"),
    "square": ("square", "box", "block", "quadrangle"),
    "triangle": ("triangle", "wedge", "pyramid", "three-cornered shape"),
    "cross": ("cross", "plus sign", "plus", "crucifix"),
}
DIRECTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": ("left", "to the left", "leftwards", "leftward", "towards the left side", "from right to left"),
    "right": ("right", "to the right", "rightwards", "rightward", "towards the right side", "from left to right"),
    "up": ("up", "to the top", "upwards", "upward", "towards the upper edge", "from bottom to top"),
    "down": ("down", "to the bottom", "downwards", "downward", "towards the lower edge", "from top to bottom"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
SPEED_WORDS: Mapping[str, tuple[str, ...]] = {
    "slowly": ("slowly", "gently", "at a low speed"),
    "quickly": ("quickly", "fast", "at a high speed"),
}
NAMELESS = ("shape", "thing", "object", "figure")
"""Of a shape that is not named."""


@dataclass(frozen=True)
class Verb:
    """The forms of a verb."""

    plain: str
    third: str
    participle: str


VERBS = (
    Verb("move", "moves", "moving"),
    Verb("go", "goes", "going"),
    Verb("drift", "drifts", "drifting"),
    Verb("slide", "slides", "sliding"),
    Verb("glide", "glides", "gliding"),
    Verb("travel", "travels", "travelling"),
    Verb("float", "floats", "floating"),
    Verb("head", "heads", "heading"),
)
OPENINGS = ("a video of", "a clip of", "an animation of", "a short film with", "here is", "we see", "look at")
REMARKS = (
    "nothing else can be seen",
    "the camera stands still",
    "the scene is simple",
    "it is alone in the picture",
    "very calm",
    "simple graphics",
)
SURROUNDINGS = ("on {}", "on a {} background", "against a {} backdrop", "in front of {}", "over a {} ground")

SHARE_WITHOUT_COLOUR, SHARE_WITHOUT_SHAPE, SHARE_WITHOUT_MOVEMENT = 0.06, 0.06, 0.06
SHARE_WITH_TYPING_ERROR, SHARE_WITH_REMARK = 0.12, 0.2
SHARE_IN_CAPITALS, SHARE_CAPITALISED = 0.05, 0.2
SHORTEST_WITH_ERROR = 4  # letters of a word that may have a typing error


def varied_caption(scene: Scene, random: np.random.Generator, *, with_errors: bool = True) -> str:
    """A caption of a scene, all of which is true of the scene.

    Args:
        with_errors: some have a typing error; False: none.
    """
    return _Writer(scene, random, with_errors).caption()


@dataclass(frozen=True)
class _Writer:
    """Draws the words of one caption."""

    scene: Scene
    random: np.random.Generator
    with_errors: bool

    def caption(self) -> str:
        """All of it."""
        if self._chance(SHARE_WITHOUT_MOVEMENT):
            text = self._and_surroundings(self._subject())
        else:
            text = self._choose(_ORDERS)(self)
        if self._chance(SHARE_WITH_REMARK):
            remark = self._choose(REMARKS)
            text = self._choose((f"{text}, {remark}", f"{text}. {remark}", f"{remark}: {text}"))
        text = re.sub(r"\s*,(?=\s*[.,;]|$)", "", text)
        if self._chance(SHARE_WITH_TYPING_ERROR) and self.with_errors:
            text = self._with_error(text)
        return self._capitalised(text)

    def _chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def _choose(self, options: Sequence[T]) -> T:
        return options[int(self.random.integers(len(options)))]

    def _word(self, words: Sequence[str]) -> str:
        """The usual word, or one of the others."""
        return words[0] if len(words) == 1 or self._chance(0.5) else self._choose(words[1:])

    def _subject(self) -> str:
        """Size, colour and shape; a colour or a shape that is left out leaves the other."""
        scene = self.scene.combination
        has_shape, has_colour = not self._chance(SHARE_WITHOUT_SHAPE), not self._chance(SHARE_WITHOUT_COLOUR)
        shape = self._word(SHAPE_WORDS[scene.shape]) if has_shape else self._choose(NAMELESS)
        size = f"{self._word(SIZE_WORDS[self.scene.size])} " if self._chance(0.3) else ""
        if not has_colour and has_shape:
            return f"a {size}{shape}"
        colour = self._word(COLOUR_WORDS[scene.colour])
        return self._choose(
            (
                f"a {size}{colour} {shape}",
                f"a {size}{colour} {shape}",
                f"one {size}{colour} {shape}",
                f"{size}{colour} {shape}",
                f"the {size}{colour} {shape}",
                f"a {size}{shape} in {colour}",
                f"a {size}{shape}, {colour} in colour,",
            )
        )

    def _direction(self) -> str:
        return self._word(DIRECTION_WORDS[self.scene.combination.direction])

    def _way(self) -> str:
        """Direction, and sometimes speed."""
        speed = self._word(SPEED_WORDS[self.scene.speed]) if self._chance(0.3) else ""
        direction = self._direction()
        return " ".join(filter(None, (speed, direction) if self._chance(0.5) else (direction, speed)))

    def _and_surroundings(self, text: str) -> str:
        if not self._chance(0.25):
            return text
        return f"{text.rstrip(',')} {self._choose(SURROUNDINGS).format(self.scene.background)}"

    def _statement(self) -> str:
        """A red circle moves left."""
        return self._and_surroundings(f"{self._subject()} {self._choose(VERBS).third} {self._way()}")

    def _progressive(self) -> str:
        """A red circle is moving left."""
        verb = self._choose(("is {}", "{}", ", {}")).format(self._choose(VERBS).participle)
        return self._and_surroundings(f"{self._subject()} {verb} {self._way()}".replace(" ,", ","))

    def _shown(self) -> str:
        """A video of a red circle moving left."""
        return self._and_surroundings(
            f"{self._choose(OPENINGS)} {self._subject()} {self._choose(VERBS).participle} {self._way()}"
        )

    def _existing(self) -> str:
        """There is a red circle that moves left."""
        return self._and_surroundings(f"there is {self._subject()} that {self._choose(VERBS).third} {self._way()}")

    def _fronted(self) -> str:
        """Moving left, a red circle."""
        return self._and_surroundings(f"{self._choose(VERBS).participle} {self._way()}, {self._subject()}")

    def _direction_first(self) -> str:
        """To the left goes a red circle."""
        verb = self._choose(VERBS)
        return self._and_surroundings(f"{self._way()} {self._choose((verb.third, verb.participle))} {self._subject()}")

    def _requested(self) -> str:
        """Let a red circle move left."""
        opening = self._choose(("let", "make", "watch", "see"))
        return self._and_surroundings(f"{opening} {self._subject()} {self._choose(VERBS).plain} {self._way()}")

    def _listed(self) -> str:
        """Red, circle, left: words in any order."""
        scene = self.scene.combination
        words = [
            self._word(COLOUR_WORDS[scene.colour]),
            self._word(SHAPE_WORDS[scene.shape]),
            self._choose(("{}", "direction {}", "motion {}")).format(self._direction()),
        ]
        self.random.shuffle(words)
        return self._choose((", ", " ", "; ")).join(words)

    def _in_two_sentences(self) -> str:
        """There is a red circle. It moves left."""
        opening = self._choose(("", "there is ", "we see "))
        return f"{self._and_surroundings(opening + self._subject())}. it {self._choose(VERBS).third} {self._way()}"

    def _with_error(self, text: str) -> str:
        """One letter of one longer word is left out, doubled, or changes places with the next."""
        places = [word for word in re.finditer("[a-z]+", text) if len(word[0]) >= SHORTEST_WITH_ERROR]
        if not places:
            return text
        word = self._choose(places)
        at = int(self.random.integers(word.start() + 1, word.end() - 1))
        kept, kind = text[:at], self._choose(("out", "twice", "swapped"))
        if kind == "out":
            return kept + text[at + 1 :]
        return kept + (text[at] * 2 + text[at + 1 :] if kind == "twice" else text[at + 1] + text[at] + text[at + 2 :])

    def _capitalised(self, text: str) -> str:
        draw = self.random.random()
        if draw < SHARE_IN_CAPITALS:
            return text.upper()
        return f"{text[:1].upper()}{text[1:]}." if draw < SHARE_IN_CAPITALS + SHARE_CAPITALISED else text


_ORDERS: tuple[Callable[[_Writer], str], ...] = (
    _Writer._statement,
    _Writer._statement,
    _Writer._progressive,
    _Writer._shown,
    _Writer._existing,
    _Writer._fronted,
    _Writer._direction_first,
    _Writer._requested,
    _Writer._listed,
    _Writer._in_two_sentences,
)
