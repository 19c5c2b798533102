"""Each fault once, through the command line on a real Ray cluster; `python -m benchmarks.faults` runs all of them."""

import pytest

from benchmarks.faults import FAULTS, INTERVAL, Cell, run_cell

pytestmark = pytest.mark.slow
STAGE = 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cell = Cell(tmp_path_factory.mktemp("undisturbed"), "none", STAGE)
    cell.run()
    return cell


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_ends_as_if_nothing_had_happened(undisturbed, tmp_path, fault):
    result = run_cell(tmp_path, fault, STAGE, undisturbed)
    assert result.finished
    assert result.losses_bit_identical
    assert result.batches_in_order
    assert max(result.recomputed_steps, default=0) <= allowed(fault)
    assert len(result.recovery_seconds) == (fault != "two starts at once")
    if fault.startswith("worker"):
        assert result.num_starts_of_the_command == 1  # Ray starts the workers again by itself
        assert result.num_starts_of_the_training == 2
    if fault == "disk full during save":
        assert result.num_starts_of_the_training == 2  # the second is ours: Ray was not to try again
        assert "No space left on device" in result.said


def allowed(fault: str) -> int:
    """Steps that may be done twice: an interval, one more while a save is written, and another where it is lost."""
    if fault in ("SIGTERM", "two starts at once"):
        return 0
    return 2 * INTERVAL + 1 if fault.startswith("newest shard") else INTERVAL + 1
