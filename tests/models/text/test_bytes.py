"""Captions as bytes: truncation, and padding that has no effect."""

import torch

from models.text.bytes import CaptionEncoder, CaptionTokens
from models.text.config import TextConfig
from pipeline.run.fingerprints import stored


def test_caption_tokens():
    tokens = CaptionTokens.encode(["", "é", "x" * 50], 8)
    assert tokens.ids.shape == (3, 9)
    assert tokens.ids[0, 0] == 256
    assert tokens.mask.sum(1).tolist() == [1, 3, 9]  # "é" is two bytes
    assert tokens.ids[2, 8] == 256


def test_padding_does_not_change_a_caption():
    torch.manual_seed(0)
    encoder = CaptionEncoder(TextConfig(width=32, depth=2, heads=2, max_bytes=24))
    tokens = CaptionTokens.encode(["a red circle"], 24)
    length = int(tokens.mask.sum())
    changed = CaptionTokens(tokens.ids.masked_fill(~tokens.mask, 7), tokens.mask)
    torch.testing.assert_close(encoder(tokens)[:, :length], encoder(changed)[:, :length])


def test_normalised_captions_have_one_case_and_one_form():
    text = TextConfig(max_bytes=24, normalization="nfkc_casefold")
    for written, read in (
        ("A RED Circle", "a red circle"),
        ("\ufb01lm", "film"),  # a ligature
        ("\uff32\uff45\uff44", "red"),  # full width
        ("Straße", "strasse"),
        ("e\u0301", "\u00e9"),  # an accent that combines
        ("\u01c5", "d\u017e"),  # a title-case digraph, whose compatibility form has capitals
    ):
        assert text.normalized(written) == read
        assert text.normalized(read) == read
        assert TextConfig().normalized(written) == written


def test_normalisation_is_stored_only_where_it_is_on():
    assert "normalization" not in stored(TextConfig())
    assert stored(TextConfig(normalization="nfkc_casefold"))["normalization"] == "nfkc_casefold"
