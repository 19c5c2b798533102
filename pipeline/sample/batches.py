"""Requests in batches of equal shape and settings, of which a few are in memory."""

from collections import deque
from collections.abc import Iterable, Iterator

from pipeline.sample.requests import PromptRequest

MAX_WAITING = 4096  # requests that wait for others of their kind


def batches_of(
    requests: Iterable[PromptRequest], size: int, max_waiting: int = MAX_WAITING
) -> Iterator[list[PromptRequest]]:
    """Batches of requests that differ in prompt, seed and the files they are given alone.

    A batch is given as soon as it is full. Where too many requests wait for others of their kind, the kind that began
    to wait first is given as it is.
    """
    groups: dict[object, list[PromptRequest]] = {}
    num_waiting = 0
    for request in requests:
        networks = request.checkpoint, request.weaker
        kind = networks, request.settings, request.guidance_scale, request.bucket, request.layout
        group = groups.setdefault(kind, [])
        group.append(request)
        num_waiting += 1
        if len(group) == size:
            ready = kind
        elif num_waiting > max_waiting:
            ready = next(iter(groups))
        else:
            continue
        batch = groups.pop(ready)
        num_waiting -= len(batch)
        yield batch
    yield from groups.values()


class Batches:
    """A queue of `batches_of`, and of batches that are tried again."""

    def __init__(self, requests: Iterable[PromptRequest], size: int) -> None:
        self._rest = batches_of(requests, size)
        self._next: deque[list[PromptRequest]] = deque()
        self._later: deque[list[PromptRequest]] = deque()

    def retry_singly(self, batch: list[PromptRequest], *, first: bool) -> None:
        """Add the requests of a batch, each alone: before all others, or after them."""
        singly = [[request] for request in batch]
        if first:
            self._next.extendleft(singly[::-1])
        else:
            self._later.extend(singly)

    def __bool__(self) -> bool:
        """Whether there is another batch."""
        if not self._next:
            batch = next(self._rest, None)
            if batch is not None:
                self._next.append(batch)
        return bool(self._next or self._later)

    def popleft(self) -> list[PromptRequest]:
        """Remove the next batch; there is one."""
        assert self
        return (self._next or self._later).popleft()
