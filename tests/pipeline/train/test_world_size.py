"""The number of workers that can share every batch."""

from pipeline.distributed.config import num_participating
from pipeline.train.world_size import fitting_worlds
from testing.tiny import CONFIG


def test_the_largest_number_that_divides_every_batch_takes_part():
    fitting = fitting_worlds(CONFIG.model_copy(update={"global_batch": 12}), [], 8)
    assert fitting == [1, 2, 3, 4, 6]
    assert [num_participating(number, fitting) for number in (1, 2, 3, 4, 5, 6, 7, 8)] == [1, 2, 3, 4, 4, 6, 6, 6]
    in_pieces = CONFIG.model_copy(update={"global_batch": 12, "gradient_accumulation_steps": 2})
    assert fitting_worlds(in_pieces, [], 8) == [1, 2, 3, 6]
    in_groups = CONFIG.model_copy(update={"global_batch": 3, "sequence_parallel": 2})
    assert fitting_worlds(in_groups, [], 8) == [2, 6]
