"""Ids of runs, which sort by when they began. Standard library only, as the fast path needs them."""

from __future__ import annotations

import os
import re
import time

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}\Z")
LAST = 0xFFFF


def make_folder(runs: str | os.PathLike[str]) -> str:
    """Make the folder of a new run below `runs` and give its id, which sorts after all that are there.

    The id begins with the time in UTC, or with the latest run's where the clock stands before that.
    """
    while True:
        latest = max((entry.name for entry in os.scandir(runs) if RUN_ID.match(entry.name)), default="")
        run = _after(latest, time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
        try:
            os.mkdir(os.path.join(runs, run))
            return run
        except FileExistsError:  # another process began in this moment
            continue


def _after(latest: str, now: str) -> str:
    if now > latest[:15]:
        return f"{now}-{_random(LAST // 2):04x}"
    number = int(latest[16:], 16) + 1 + _random(64)
    if number <= LAST:
        return f"{latest[:15]}-{number:04x}"
    import calendar  # imports datetime, which nearly no run needs

    moment = time.gmtime(calendar.timegm(time.strptime(latest[:15], "%Y%m%d-%H%M%S")) + 1)
    return f"{time.strftime('%Y%m%d-%H%M%S', moment)}-{_random(LAST // 2):04x}"


def _random(below: int) -> int:
    return int.from_bytes(os.urandom(4)) % below  # `secrets` takes longer to import than all else here
