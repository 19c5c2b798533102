"""Every job ends once, whatever the others of its batch do, in a fixed number of processes."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from pipeline.distributed.isolated_pool import Done, IsolatedPool, Lost
from testing.isolated_jobs import fill_disk, misbehave, note_call, with_jobs, write_down


def attempts(folder: Path) -> Counter[str]:
    return Counter(path.name.rpartition(" ")[0] for path in folder.iterdir())


@pytest.mark.slow
def test_a_job_that_misbehaves_costs_itself_only(cluster, tmp_path):
    """Three bad jobs in batches of quick ones, and one that puts off its deadline."""
    folder, written = tmp_path / "attempts", tmp_path / "written"
    folder.mkdir()
    jobs = [f"quick {number}" for number in range(200)]
    jobs[61], jobs[90], jobs[130], jobs[160] = "raise 0", "crash 0", "hang 0", "long 0"
    done: dict[str, int] = {}
    lost: dict[str, Lost[str]] = {}
    most_together = 0
    with IsolatedPool(partial(misbehave, folder), jobs, 2, timeout_seconds=3, finish=with_jobs) as pool:
        payloads = []
        for outcome in pool.outcomes():
            if isinstance(outcome, Done):
                name, done[outcome.job], together = outcome.report
                assert name == outcome.job
                most_together = max(most_together, together)
                payloads.append(outcome.payload)
            else:
                lost[outcome.job] = outcome
            if len(done) == len(jobs) - 3 and payloads:
                pool.call(write_down, written, *payloads)
                payloads.clear()
    assert sorted([*done, *lost]) == sorted(jobs)
    assert {job: (outcome.reason, outcome.detail) for job, outcome in lost.items()} == {
        "raise 0": ("failed", "it raised ValueError: in raise 0"),
        "crash 0": ("crashed", "decoding it crashed 3 workers"),
        "hang 0": ("timed_out", "decoding it took longer than 3 s"),
    }
    assert sorted(written.read_text().split("\n")) == sorted(done)
    assert most_together > 1
    tried = attempts(folder)
    assert tried["hang 0"] == 1  # it is known which job of the batch it was
    assert 3 <= tried["crash 0"] <= 4  # once in a batch, if it was in one
    assert len(set(done.values())) <= 2 + 4 + 1  # two workers, and another for each that died


def test_an_error_of_a_call_is_raised_before_the_next_jobs(cluster, tmp_path):
    jobs = [f"quick {number}" for number in range(4000)]

    def run() -> None:
        with IsolatedPool(partial(misbehave, tmp_path), jobs, num_workers=2, timeout_seconds=60) as pool:
            for outcome in pool.outcomes():
                if outcome.job == jobs[0]:
                    pool.call(fill_disk, Path("/dev/full"))

    with pytest.raises(RayTaskError) as caught:
        run()
    assert isinstance(caught.value.cause, OSError)
    assert len(attempts(tmp_path)) < len(jobs)


def test_calls_without_payloads_are_made_together_and_repeated_alone(cluster, tmp_path):
    """The fourth one ends its worker at its first attempt."""
    with IsolatedPool(partial(misbehave, tmp_path), [], num_workers=1, timeout_seconds=60) as pool:
        for number in range(12):
            pool.call(partial(note_call, is_fatal=number == 3), tmp_path / f"call {number}")
        assert list(pool.outcomes()) == []
    made = {number: (tmp_path / f"call {number}").read_text().split() for number in range(12)}
    first, second = made[3]
    assert first != second
    assert [made[number] for number in range(3)] == 3 * [[first, second]]  # made before it, in the same batch
    assert [made[number] for number in range(4, 12)] == 8 * [[second]]
