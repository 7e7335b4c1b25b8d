"""Reading the next part of a table, and writing the last ones, in a thread beside the work on this one.

Arrow leaves Python's lock while it parses, decodes and compresses, so that the work hardly waits for it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made while the one before it is worked on: one more is in memory.

    Who takes only the first has none made ahead. An error comes where it would come without this.
    """
    iterator, end = iter(items), object()
    yield from islice(iterator, 1)
    pool = ThreadPoolExecutor(1)
    try:
        coming: Future[Any] = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item
    finally:
        _end(pool)


class Behind:
    """Calls one after the other, in the order in which they are put; `most` wait or are under way at a time."""

    def __init__(self, most: int) -> None:
        self._pool, self._most = ThreadPoolExecutor(1), most
        self._put: deque[Future[None]] = deque()

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Begin the call once those before it have ended. Raises what one of them raised, and does not begin it."""
        self._leave(self._most - 1)
        self._put.append(self._pool.submit(call, *arguments))

    def wait(self) -> None:
        """Until all calls have ended. Raises what the first of them raised that failed."""
        self._leave(0)

    def close(self) -> None:
        """Wait for the calls, whatever they raise, and end the thread."""
        _end(self._pool)

    def _leave(self, most: int) -> None:
        while len(self._put) > most:
            self._put[0].result()  # one that failed stays, so that nothing is left out unseen
            self._put.popleft()


def _end(pool: ThreadPoolExecutor) -> None:
    """Wait for what the thread is at, and end it; but for the thread itself, where the garbage collector calls this."""
    with contextlib.suppress(RuntimeError):
        pool.shutdown(wait=True)
