"""A mark for torch.compile that does not load it."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_traced(function: Function) -> Function:
    """Mark a function whose result torch.compile takes as a constant, as `torch.compiler.assume_constant_result` does.

    That one loads the compiler, which takes more than a second in each process that samples, encodes or measures.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
