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
    """The same items, each from the third on made while the one before it is worked on: one more is in memory.

    Who takes only the first has none made ahead. An error comes where it would come without this.
    """
    iterator, end = iter(items), object()
    yield from islice(iterator, 1)
    thread = _Thread()
    try:
        coming = thread.begin(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.begin(next, iterator, end)
            yield item
    finally:
        thread.end()


class Behind:
    """Calls one after the other, in the order in which they are put; `most` wait or are under way at a time."""

    def __init__(self, most: int) -> None:
        self._thread, self._most = _Thread(), most
        self._put: deque[Future[Any]] = deque()

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Begin the call after those before it.

        Raises what one of them raised, as far as that is known, and does not begin it then.
        """
        self._leave(self._most - 1)
        self._put.append(self._thread.begin(call, *arguments))

    def wait(self) -> None:
        """Until all calls have ended. Raises what the first of them raised that failed."""
        self._leave(0)

    def close(self) -> None:
        """Wait for the calls, whatever they raise, and end the thread."""
        self._thread.end()

    def _leave(self, most: int) -> None:
        while len(self._put) > most:
            self._put[0].result()  # one that failed stays, so that nothing is left out unseen
            self._put.popleft()


class _Thread:
    """One thread; the caller's own where none can be started, as in an exit handler."""

    def __init__(self) -> None:
        self._pool, self._alone = ThreadPoolExecutor(1), False

    def begin(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if not self._alone:
            try:
                return self._pool.submit(call, *arguments)
            except RuntimeError:
                self._alone = True
        done: Future[Any] = Future()
        try:
            done.set_result(call(*arguments))
        except BaseException as error:
            done.set_exception(error)
        return done

    def end(self) -> None:
        """Wait for what it is at, and end it; but for the thread itself, where the garbage collector calls this."""
        with contextlib.suppress(RuntimeError):
            self._pool.shutdown(wait=True)
