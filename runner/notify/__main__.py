"""Sends one notice to every address of a variable: `python -m runner.notify`, an order as JSON on standard input, which
without a title sends nothing.

Writes a line of JSON with the names of the services, then one for each that has taken it. Never writes an address.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from runner.notify import LIMIT_S, NO_ADDRESS, UNKNOWN

MOST = 20  # addresses at a time


def main() -> None:
    order: dict[str, str] = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a plug-in prints is no answer
    logging.disable(logging.CRITICAL)
    import apprise  # 1 s
    import apprise.utils.parse

    apprise.NotifyBase.overflow_mode = apprise.OverflowMode.TRUNCATE  # else a text that is too long is refused
    urls: list[str] = apprise.utils.parse.parse_urls(os.environ[order["variable"]])  # type: ignore[no-untyped-call]
    services = [apprise.Apprise.instantiate(url) for url in urls]
    names = [UNKNOWN if one is None else str(one.service_name) for one in services]

    def write(record: dict[str, Any]) -> None:
        os.write(answer, (json.dumps(record) + "\n").encode())  # in one piece, whichever thread it is

    def send(number: int, service: Any) -> None:
        one = apprise.Apprise()
        one.add(service)
        if one.notify(title=order["title"], body=order["body"], body_format=apprise.NotifyFormat.TEXT):
            write({"sent": number})

    write({"services": names or [NO_ADDRESS]})
    if "title" not in order:
        return
    threads = ThreadPoolExecutor(MOST)
    wait([threads.submit(send, *item) for item in enumerate(services) if item[1] is not None], timeout=LIMIT_S)
    os._exit(0)  # without waiting for those that are too slow


if __name__ == "__main__":
    main()
