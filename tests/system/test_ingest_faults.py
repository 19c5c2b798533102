"""Killed anywhere, ingestion ends with the bytes of an undisturbed run. The campaign is `benchmarks.ingest_faults`."""

import os

import pytest

from testing.ingest_faults import (
    FAULTS,
    NUM_VIDEOS,
    disk_full,
    driver,
    prepare,
    strike,
    worker_in_mid_tar,
)

SLOW = (worker_in_mid_tar, driver)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    run, reference = prepare(tmp_path_factory.mktemp("faults"))
    assert len(reference) == NUM_VIDEOS // 8 + 4
    return run, reference


def check(outcome):
    assert outcome.identical, outcome
    assert (outcome.sources, outcome.shards, outcome.quarantine) == (NUM_VIDEOS, NUM_VIDEOS - 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW, ids=lambda fault: fault.__name__)
def test_a_killed_run_ends_with_the_same_bytes(calm, fault):
    check(strike(fault, *calm))


@pytest.mark.campaign
@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in SLOW], ids=lambda fault: fault.__name__)
def test_other_faults_end_with_the_same_bytes(calm, fault):
    check(strike(fault, *calm))


@pytest.mark.campaign
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own can be mounted by root only")
def test_a_full_disk_ends_with_the_same_bytes_once_there_is_room(calm):
    check(disk_full(*calm))
