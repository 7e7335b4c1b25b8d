"""What runs now, as server-sent events: the progress that the terminal shows, a line for each step that runs.

Looks at the times of a few files once a second, and reads only what has changed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.project import Project
from runner.run.ids import RUN_ID
from runner.run.progress import PROGRESS
from runner.run.store import MANIFEST, Store
from runner.ui.run_pages import live_lines

EVERY_S, ALIVE_S = 1.0, 15.0
MOST = 50  # runs that one page follows
LOCK_S = 5.0  # between two looks at whether a run's process lives


async def events(
    project: Project, runs: Sequence[str], newest: str, *, is_ending: Callable[[], bool]
) -> AsyncIterator[str]:
    """`row` with a run's lines as JSON; `ended` for one that is over, `begun` where there is a run after `newest`."""
    store = project.store_here
    watched = [run for run in dict.fromkeys(runs) if RUN_ID.match(run)][:MOST]
    seen: dict[str, Any] = {}
    root_stamp: object = None
    told, quiet_s = newest, 0.0
    yield ": hello\n\n"
    while not is_ending():
        messages = []
        stamp = _stamp(store.root)
        if stamp != root_stamp:
            root_stamp = stamp
            latest = next((run for run in store.runs() if (store.folder(run) / MANIFEST).exists()), "")
            if latest > told:
                told = latest
                messages.append(_message("begun", {"run": latest}))
        messages += [message for run in list(watched) if (message := _change(store, run, seen)) is not None]
        watched = [run for run in watched if seen.get(run) != "ended"]
        quiet_s = 0.0 if messages else quiet_s + EVERY_S
        if quiet_s >= ALIVE_S:
            messages, quiet_s = [": still here\n\n"], 0.0
        for message in messages:
            yield message
        await asyncio.sleep(EVERY_S)


def _change(store: Store, run: str, seen: dict[str, Any]) -> str | None:
    folder = store.folder(run)
    clock = int(asyncio.get_running_loop().time() / LOCK_S)
    stamp = (_stamp(folder / MANIFEST), _stamp(folder / PROGRESS), clock)
    if seen.get(run) == stamp:
        return None
    previous, seen[run] = seen.get(run), stamp
    try:
        if previous is not None and previous[:2] == stamp[:2] and store.locked(run):
            return None
        manifest = store.manifest(run)
    except RunnerError:
        seen[run] = "ended"
        return _message("ended", {"run": run})
    if manifest.status != "running":
        seen[run] = "ended"
        return _message("ended", {"run": run})
    return _message("row", {"run": run, "lines": live_lines(store, manifest)})


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _message(event: str, values: dict[str, Any]) -> str:
    return f"event: {event}\ndata: {json.dumps(values)}\n\n"
