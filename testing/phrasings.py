"""Prompts in wordings that the drawn captions never use, for measuring how well a network reads.

The words for colours, shapes and directions are those of the captions; verbs, remarks and the order of sentences are
not. `UNSEEN_WORDS` has other words for colours, which a network that was trained on drawn captions alone cannot know.

There are two lists: `HELD_OUT` for judging, and `DEVELOPMENT` for choosing what is judged afterwards.
"""

from dataclasses import dataclass

import numpy as np

from data.synthetic import Combination, held_out_combinations
from data.synthetic_captions import COLOUR_WORDS, DIRECTION_WORDS, SHAPE_WORDS


@dataclass(frozen=True)
class Forms:
    """Sentences with places for the words of a colour, a shape and a direction."""

    plain: tuple[str, ...]
    long: tuple[str, ...]

    def filler_words(self) -> set[str]:
        """Their words that are not words for colours, shapes or directions."""
        text = " ".join(self.plain + self.long).format(colour="", shape="", direction="")
        return set("".join(letter if letter.isalpha() or letter == "'" else " " for letter in text).split())


_PLAIN = (
    "please show me a {colour} {shape} that wanders {direction}",
    "could i get a {colour} {shape} sailing {direction}?",
    "a {shape}. its paint: {colour}. its course: {direction}",
    "every frame contains the {colour} {shape}, which creeps {direction}",
    "imagine that some {colour} {shape} crawls {direction}",
    "{direction}! that is where this {colour} {shape} rolls",
    "my {colour} {shape} marches {direction} all day",
    "{colour} is what colours the {shape} which swims {direction}",
    "what about a {shape} painted {colour} and flying {direction}",
    "i want to have {colour} {shape} footage: it hurries {direction}",
    "{shape} ({colour}) sweeping {direction}",
    "generate: {colour} {shape} / course {direction}",
)
_LONG = (
    "i'd be glad if you could draw me some {colour} {shape} which, during these seconds, keeps creeping {direction}",
    "during all of it, without any pause or turn, this {colour} {shape} steadily makes its journey {direction}",
    "for my daughter's birthday i need footage where a {colour} {shape} hurries {direction} and does not rest",
)
HELD_OUT = Forms(_PLAIN, _LONG)
"""Never to be tuned on."""
DEVELOPMENT = Forms(
    (
        "kindly render one {colour} {shape} which strolls {direction}",
        "produce some {colour} {shape} walking {direction} now",
        "{shape}: {colour}. steering: {direction}",
        "our {colour} {shape} rushes {direction}, as expected",
        "{direction} jumps a bright {colour} {shape}",
        "can your model display {colour} {shape} that races {direction}?",
        "you will find a {shape} whose hue is {colour}; it gets {direction}",
        "hello, {colour} {shape} needed, running {direction}",
        "well then: something {colour}, namely a {shape}, hops {direction}",
    ),
    (
        "good morning, today at school our teacher asked everyone to film a {colour} {shape} walking {direction} before"
        " lunch",
        "when you finish your work please also create another one with a {colour} {shape} running {direction} over and"
        " over",
    ),
)
UNSEEN_WORDS = {
    "red": ("vermilion", "cherry"),
    "green": ("jade", "olive"),
    "blue": ("azure", "indigo"),
    "yellow": ("amber", "mustard"),
    "purple": ("mauve", "amethyst"),
    "cyan": ("aquamarine", "sky-coloured"),
}
"""Words for colours that occur in no drawn caption."""


@dataclass(frozen=True)
class Wording:
    """A prompt, what it asks for, and the group of wordings that it belongs to."""

    group: str
    prompt: str
    combination: Combination


def wordings(per_form: int = 3, seed: int = 0, forms: Forms = HELD_OUT) -> list[Wording]:
    """Prompts of every group, about combinations that were held out of training.

    Args:
        per_form: prompts of each form.
        seed: of the choice of combinations, synonyms and typing errors.
    """
    random = np.random.default_rng(seed)
    held_out = held_out_combinations()

    def draw(group: str, form: str, *, synonyms: bool = False, unseen: bool = False) -> Wording:
        combination = held_out[int(random.integers(len(held_out)))]
        names = (combination.colour, combination.shape, combination.direction)
        words = [
            str(random.choice(table[name][1:])) if synonyms else name
            for table, name in zip((COLOUR_WORDS, SHAPE_WORDS, DIRECTION_WORDS), names, strict=True)
        ]
        if unseen:
            words[0] = str(random.choice(UNSEEN_WORDS[combination.colour]))
        text = form.format(colour=words[0], shape=words[1], direction=words[2])
        return Wording(group, text, combination)

    made = []
    for form in forms.plain:
        for _ in range(per_form):
            made.append(draw("new sentences", form))
            made.append(draw("new sentences, other words", form, synonyms=True))
            capitals = draw("new sentences in capitals", form)
            made.append(Wording(capitals.group, capitals.prompt.upper(), capitals.combination))
            mistyped = draw("new sentences, one typing error", form)
            made.append(Wording(mistyped.group, with_error(mistyped, random), mistyped.combination))
            made.append(draw("new sentences, unseen words for colours", form, unseen=True))
    made += [draw("long new sentences", form) for form in forms.long for _ in range(4 * per_form)]
    return made


def with_error(wording: Wording, random: np.random.Generator) -> str:
    """The prompt with a typing error in the word for the colour, the shape or the direction.

    A letter within the word is left out, doubled, or changes places with the next. Short words such as "up" have none.
    """
    parts = wording.combination
    word = str(random.choice([name for name in (parts.colour, parts.shape, parts.direction) if len(name) > 3]))
    at = int(random.integers(1, len(word) - 1))
    changed = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    )[int(random.integers(3))]
    return wording.prompt.replace(word, changed, 1)
