"""Captions of drawn clips in many wordings: true, different, of the promised kinds, and without the held-out words."""

import re

import numpy as np
import pytest

from data.synthetic import Combination, random_scene, training_combinations
from data.synthetic_captions import (
    COLOUR_WORDS,
    DIRECTION_WORDS,
    NAMELESS,
    SHAPE_WORDS,
    SIZE_WORDS,
    SPEED_WORDS,
    varied_caption,
)
from testing.phrasings import DEVELOPMENT, HELD_OUT, UNSEEN_WORDS, with_error, wordings

FUNCTION_WORDS = {"a", "be", "if", "is", "it", "of", "that", "the", "to"}
TABLES = (COLOUR_WORDS, SHAPE_WORDS, DIRECTION_WORDS, SIZE_WORDS, SPEED_WORDS)


def drawn(number: int, *, with_errors: bool) -> list[tuple[Combination, str]]:
    """Captions of that many scenes, with what the scenes show."""
    allowed, made = training_combinations(), []
    for index in range(number):
        scene = random_scene(5, index, allowed)
        caption = varied_caption(scene, np.random.default_rng([5, index, 1]), with_errors=with_errors)
        made.append((scene.combination, caption))
    return made


@pytest.fixture(scope="module")
def captions() -> list[tuple[Combination, str]]:
    return drawn(3000, with_errors=False)


def says(words: tuple[str, ...], caption: str) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", caption.lower()) for word in words)


def test_a_caption_names_what_is_shown_and_nothing_else(captions):
    for shown, caption in captions:
        for table, value in zip(
            (COLOUR_WORDS, SHAPE_WORDS, DIRECTION_WORDS), (shown.colour, shown.shape, shown.direction), strict=True
        ):
            others = {word for name, words in table.items() if name != value for word in words} - set(table[value])
            text = caption.lower()
            for phrase in sorted(table[value], key=len, reverse=True):  # "from right to left" says left
                text = text.replace(phrase, "")
            assert not says(tuple(others), text), caption


def test_a_few_captions_leave_something_out(captions):
    missing = {
        "colour": [c for shown, c in captions if not says(COLOUR_WORDS[shown.colour], c)],
        "shape": [c for shown, c in captions if not says(SHAPE_WORDS[shown.shape], c)],
        "direction": [c for shown, c in captions if not says(DIRECTION_WORDS[shown.direction], c)],
    }
    for part, without in missing.items():
        assert 0.02 < len(without) / len(captions) < 0.1, part
    assert all(says(NAMELESS, caption) for caption in missing["shape"])
    assert not set(missing["colour"]) & set(missing["shape"])


def test_every_word_is_used_and_captions_differ(captions):
    texts = [caption for _, caption in captions]
    for table in TABLES:
        for words in table.values():
            for word in words:
                assert any(says((word,), text) for text in texts), word
    assert len(set(texts)) > 0.98 * len(texts)
    assert max(len(text.encode()) for text in texts) < 128
    assert 0.02 < sum(text.isupper() for text in texts) / len(texts) < 0.1
    assert not [text for text in texts if re.search(r",[.,;]|,$| ,|  ", text)]


def test_a_typing_error_is_one_change_and_is_in_some_captions_only(captions):
    mistyped = drawn(3000, with_errors=True)
    changed = [(one, other) for (_, one), (_, other) in zip(captions, mistyped, strict=True) if one != other]
    # the error is drawn before the capitals, so that some captions differ in these alone
    changed = [(one, other) for one, other in changed if one.lower().rstrip(".") != other.lower().rstrip(".")]
    assert 0.06 < len(changed) / len(captions) < 0.16
    assert all(abs(len(one.rstrip(".")) - len(other.rstrip("."))) <= 1 for one, other in changed)


def test_a_caption_depends_on_its_scene_and_number_alone():
    assert drawn(50, with_errors=True) == drawn(50, with_errors=True)


def test_the_held_out_wordings_share_no_words_with_the_captions(captions):
    vocabulary = {word for _, caption in captions for word in re.findall(r"[\w'-]+", caption.lower())}
    assert HELD_OUT.filler_words() & vocabulary <= FUNCTION_WORDS
    assert not {word for words in UNSEEN_WORDS.values() for word in words} & vocabulary
    assert len(HELD_OUT.plain) + len(HELD_OUT.long) == 15
    assert not set(DEVELOPMENT.plain + DEVELOPMENT.long) & set(HELD_OUT.plain + HELD_OUT.long)


def test_held_out_wordings_are_of_held_out_combinations_and_name_what_they_ask_for():
    trained = set(training_combinations())
    made = wordings()
    assert len(made) == 216
    for wording in made:
        assert wording.combination not in trained
        if wording.group in ("new sentences", "long new sentences", "new sentences in capitals"):
            names = (wording.combination.colour, wording.combination.shape, wording.combination.direction)
            assert all(name in wording.prompt.lower() for name in names)
        if "typing error" in wording.group:
            names = (wording.combination.colour, wording.combination.shape, wording.combination.direction)
            assert sum(not re.search(rf"\b{name}\b", wording.prompt) for name in names) == 1
    random = np.random.default_rng(0)
    assert with_error(made[0], random) != made[0].prompt
