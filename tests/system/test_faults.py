"""Every fault once, through the command line on a real Ray cluster; `python -m benchmarks.faults` runs the campaign."""

import pytest

from testing.faults import (
    FAULTS,
    INTERVAL,
    Cell,
    compare,
    num_starts_of_the_training,
    recovery_of,
    run_undisturbed,
    steps_for,
)

STAGE = 2


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_training_that_meets_every_fault_ends_as_if_nothing_had_happened(tmp_path):
    undisturbed = run_undisturbed(tmp_path / "undisturbed", STAGE, steps_for(len(FAULTS)))
    cell = Cell(tmp_path / "struck", STAGE, FAULTS)
    cell.run()
    told = compare(cell, undisturbed)
    assert told.finished
    assert told.losses_bit_identical
    assert told.batches_in_order
    recoveries = {FAULTS[number]: recovery_of(cell, at) for number, at in cell.struck_at.items()}
    assert set(recoveries) == {fault for fault in FAULTS if fault != "two starts at once"}
    for fault, recovery in recoveries.items():
        assert recovery is not None, fault
        assert recovery.recomputed_steps <= allowed(fault), fault
    # Workers Ray starts again by itself; for each other fault, and for the start that was refused, there is a command.
    assert num_starts_of_the_training(cell) == len(FAULTS)
    assert cell.num_starts == 2 + sum(not fault.startswith("worker") for fault in recoveries)
    for words in ("No space left on device", "its checksum differs", "is missing", "is in use"):
        assert words in cell.outputs_text()


def allowed(fault: str) -> int:
    """Steps that may be done twice: an interval, one more while a save is written, and another where it is lost."""
    if fault == "SIGTERM":
        return 0
    return 2 * INTERVAL + 1 if fault.startswith("newest shard") else INTERVAL + 1
