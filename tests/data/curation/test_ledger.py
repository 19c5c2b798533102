"""The counts of a ledger must add up."""

import os

import pytest

from data.curation.ledger import LedgerError, Rejection, balance, reject


def test_the_ledger_must_add_up():
    counts = balance(["a", "b", "c", "d"], ["a", "b"], ["c"], ["d"])
    assert (counts.sources, counts.shards, counts.filtered, counts.quarantine) == (4, 2, 1, 1)
    with pytest.raises(LedgerError, match=r"1 are lost \(such as \['c'\]\)"):
        balance(["a", "b", "c"], ["a"], ["b"], [])
    with pytest.raises(LedgerError, match="1 are unknown or counted twice"):
        balance(["a", "b"], ["a"], ["b"], ["b"])
    with pytest.raises(ValueError, match="sources must equal"):
        type(counts)(sources=3, shards=1, filtered=1, quarantine=0)


def test_a_detail_with_bytes_that_are_no_text_can_be_stored():
    rejection = reject("a.mp4", "read", "missing", os.fsdecode(b"caf\xe9.mp4 is gone"))
    assert rejection.detail == "caf\\xe9.mp4 is gone"
    assert Rejection.model_validate_json(rejection.model_dump_json()) == rejection
