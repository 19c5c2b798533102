"""Every fault once, through the command line on a real Ray cluster; `python -m benchmarks.faults` runs the campaign.

A checkpoint is damaged where another fault has ended the command, which saves two starts of a cluster: the next start
has to do with both.
"""

import pytest

from testing.faults import (
    FAULTS,
    INTERVAL,
    Cell,
    Fault,
    compare,
    num_starts_of_the_training,
    recovery_of,
    run_undisturbed,
    steps_for,
)

STAGE = 2
DAMAGES: dict[Fault, Fault] = {
    "raylet killed": "newest shard corrupted",
    "disk full during save": "newest shard deleted",
}
STRIKES: list[Fault] = [fault for fault in FAULTS if fault not in DAMAGES.values()]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_training_that_meets_every_fault_ends_as_if_nothing_had_happened(tmp_path):
    undisturbed = run_undisturbed(tmp_path / "undisturbed", STAGE, steps_for(len(STRIKES)))
    cell = Cell(tmp_path / "struck", STAGE, STRIKES, damages=DAMAGES)
    cell.run()
    told = compare(cell, undisturbed)
    assert told.finished
    assert told.losses_bit_identical
    assert told.batches_in_order
    recoveries = {STRIKES[number]: recovery_of(cell, at) for number, at in cell.struck_at.items()}
    assert set(recoveries) == {fault for fault in STRIKES if fault != "two starts at once"}
    for fault, recovery in recoveries.items():
        assert recovery is not None, fault
        assert recovery.recomputed_steps <= allowed(fault), fault
    # Workers Ray starts again by itself; for each other fault, and for the start that was refused, there is a command.
    assert num_starts_of_the_training(cell) == len(STRIKES)
    assert cell.num_starts == 2 + sum(not fault.startswith("worker") for fault in recoveries)
    for words in ("No space left on device", "its checksum differs", "is missing", "is in use"):
        assert words in cell.outputs_text()


def allowed(fault: str) -> int:
    """Steps that may be done twice. A save ends before the next one begins, so that two intervals are lost at most.

    How many of them are depends on how long a save takes; another one is lost with a damaged checkpoint.
    """
    if fault == "SIGTERM":
        return 0
    return (3 if fault in DAMAGES else 2) * INTERVAL
