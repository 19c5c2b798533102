"""Captions as words: what is read of them, in any batch the same, and how misspelt and unknown words are met."""

import math

import pytest
import torch

from data.synthetic_captions import COLOUR_WORDS, DIRECTION_WORDS, SHAPE_WORDS
from models.text.config import TextConfig, WordsConfig
from models.text.encoder import build_encoder, read
from models.text.packing import CaptionPacking
from models.text.splitting import LONGEST, words_of
from models.text.words import END, GAIN, INITIAL, MAX_PARTS, NO_PART, NUM_MARKS, CaptionWords, WordEncoder, parts_of
from pipeline.run.fingerprints import stored

WORDS = WordsConfig(max_words=8, buckets=512)
TEXT = TextConfig(width=16, depth=1, heads=2, words=WORDS)


def encoder(**changes: object) -> WordEncoder:
    torch.manual_seed(0)
    built = build_encoder(TEXT.model_copy(update=changes), None)
    assert isinstance(built, WordEncoder)
    return built


def test_words_of_a_caption():
    assert words_of("a red-ish circle, (3rd) don't!") == ["a", "red", "ish", "circle", "3rd", "don", "t"]
    assert words_of("Größe 円が動く \U0001f534\u2192") == ["Größe", "円が動く", "\U0001f534", "\u2192"]
    assert words_of("x" * (2 * LONGEST + 1)) == ["x" * LONGEST, "x" * LONGEST, "x"]
    assert words_of(" .,;\n") == []


def test_parts_of_a_word():
    assert parts_of("left") == [" left", " eft", " lft", " let", " lef", "<le", "lef", "eft", "ft>"]
    assert parts_of("red") == [" red", "<re", "red", "ed>"]
    assert parts_of("a") == [" a", "<a>"]
    assert parts_of("aaaa") == [" aaaa", " aaa", "<aa", "aaa", "aa>"]
    assert max(len(parts_of("abcdefghijklmnop"[:length])) for length in range(1, LONGEST + 1)) == MAX_PARTS


def edits(word: str) -> set[str]:
    """The word with one letter within it left out, doubled or exchanged with the next."""
    places = range(1, len(word) - 1)
    left_out = {word[:at] + word[at + 1 :] for at in places}
    doubled = {word[:at] + word[at] + word[at:] for at in places}
    swapped = {word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in places}
    return left_out | doubled | swapped


def test_spellings_one_typing_error_apart_share_a_spelling_beside_runs_of_letters():
    tables = (COLOUR_WORDS, SHAPE_WORDS, DIRECTION_WORDS)
    names = {word for table in tables for phrases in table.values() for phrase in phrases for word in words_of(phrase)}
    long_names = {name for name in names if len(name) > 4}
    assert len(long_names) > 40
    for name in long_names:
        spellings = {part for part in parts_of(name) if part.startswith(" ")}
        for misspelt in edits(name):
            assert spellings & set(parts_of(misspelt)), (name, misspelt)


def test_a_caption_is_its_first_words_and_an_end():
    caption = CaptionWords.encode(["", "red", "a b c d e f g h i j"], WORDS)
    assert caption.parts.shape == (3, 9, MAX_PARTS)
    assert caption.mask.sum(1).tolist() == [1, 2, 9]
    assert caption.parts[0, 0].tolist() == [END] + [NO_PART] * (MAX_PARTS - 1)
    assert caption.parts[1, 1, 0] == caption.parts[2, 8, 0] == END
    cut = CaptionWords.encode(["a b c d e f g h"], WORDS)
    assert torch.equal(cut.parts[0], caption.parts[2])


def test_rows_of_the_table_never_change():
    """A checkpoint's table is of use only with these numbers."""
    (rows,) = CaptionWords.encode(["left"], WordsConfig(buckets=8192)).parts[:, 0, :9].tolist()
    assert rows == [111, 239, 7012, 2211, 6635, 5276, 4315, 2527, 4059]
    assert min(rows) >= NUM_MARKS


def test_a_words_vector_is_the_sum_of_its_parts_scaled_to_one():
    network = encoder(depth=0)
    caption = CaptionWords.encode(["left up", ""], WORDS)
    vectors = network.parts(caption.parts)
    table = network.parts.weight
    expected = table[caption.parts[0, 0, :9]].sum(0) / math.sqrt(9)
    torch.testing.assert_close(vectors[0, 0], expected)
    torch.testing.assert_close(vectors[1, 0], table[END])
    assert not vectors[1, 1:].any()
    assert table.std().item() == pytest.approx(INITIAL / GAIN, rel=0.1)


def test_the_order_of_words_counts_without_blocks():
    network = encoder(depth=0)
    one, other = (
        network(CaptionWords.encode([text], WORDS))[0, :4] for text in ("from left to right", "from right to left")
    )
    assert not torch.allclose(one[1], other[3])  # "left" after "from" and after "to"
    again = network(CaptionWords.encode(["swim from left"], WORDS))
    torch.testing.assert_close(again[0, 2], one[1])


@pytest.mark.parametrize("depth", [0, 2])
def test_a_caption_is_encoded_the_same_in_any_batch_and_packed(depth):
    network = encoder(depth=depth)
    captions = ["a red dot moves up", "", "one two three four five six seven eight nine"]
    caption = CaptionWords.encode(captions, WORDS)
    padded = network(caption)
    for row, text in enumerate(captions):
        alone = network(CaptionWords.encode([text], WORDS))[0]
        length = int(caption.mask[row].sum())
        torch.testing.assert_close(padded[row, :length], alone[:length])
    packed = network(caption, CaptionPacking.of(caption.mask))[0]
    torch.testing.assert_close(packed, padded[caption.mask], rtol=1e-5, atol=1e-5)


def test_padding_has_no_gradient():
    network = encoder()
    caption = CaptionWords.encode(["red", ""], WORDS)
    network(caption)[caption.mask].square().sum().backward()
    gradient = network.parts.weight.grad
    assert gradient is not None
    assert not gradient[NO_PART].any()
    assert gradient[END].any()


def test_captions_are_normalised_before_they_are_split():
    text = TEXT.model_copy(update={"normalization": "nfkc_casefold"})
    one, other = read(text, ["A RED \uff43ircle!"]), read(text, ["a red circle"])
    assert isinstance(one, CaptionWords)
    assert isinstance(other, CaptionWords)
    assert torch.equal(one.parts, other.parts)
    assert (text.most, text.unit, text.units("A RED circle!")) == (8, "words", ["a", "red", "circle"])


def test_settings_of_bytes_are_refused_beside_words():
    with pytest.raises(ValueError, match="max_bytes is for captions that are read as bytes, and `words` is given"):
        TextConfig(max_bytes=47, words=WORDS)
    with pytest.raises(ValueError, match="ngram_buckets is for captions that are read as bytes"):
        TextConfig(ngram_buckets=64, words=WORDS)
    assert "words" not in stored(TextConfig())
    assert TextConfig.model_validate(stored(TEXT)) == TEXT
