"""Reading the next part of a table, and writing the last one, in a thread beside the work on this one.

Arrow leaves Python's lock while it parses, decodes and compresses, so that the work hardly waits for it.
"""

from __future__ import annotations

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
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Any] = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


class Behind:
    """Calls one after the other, in the order in which they are put; one is under way while the next is made ready."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Begin the call once the last one has ended. Raises what that one raised."""
        self.wait()
        self._last = self._pool.submit(call, *arguments)

    def wait(self) -> None:
        """Until the last call has ended. Raises what it raised, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for the last call, whatever it raises, and end the thread."""
        self._pool.shutdown(wait=True)
