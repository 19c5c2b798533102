"""Many tiny files, half of them rejected, with few in a shard: a fixed number of processes, and every file counted."""

from collections import Counter

import pytest

from testing.clusters import leave_cluster
from testing.ingest_storm import CONFIG, storm

pytestmark = pytest.mark.slow


def test_the_number_of_processes_does_not_grow_with_the_files(tmp_path):
    leave_cluster()  # which keeps idle workers of other tests
    config = CONFIG.model_copy(update={"videos_per_shard": 8})
    measured = storm(tmp_path, 500, 500, config)
    assert measured.most_processes <= measured.workers + 4
    assert measured.ledger.model_dump() == {"sources": 1000, "shards": 500, "filtered": 125, "quarantine": 375}
    commits = Counter(path.suffix for path in (tmp_path / "clips").glob("shard-*"))
    assert commits[".tar"] == commits[".json"] == commits.total() / 2
    assert 1000 / 8 <= commits[".tar"] <= 2 * 1000 / 8 + 1
