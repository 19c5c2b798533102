"""The mark that is set without loading torch.compile is the one that torch.compile reads."""

import torch

from models.traced import constant_when_traced


def test_the_mark_is_that_of_torch():
    def ours() -> None: ...

    def theirs() -> None: ...

    assert constant_when_traced(ours) is ours
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}
