"""What the workers have answered, counted in memory that they share, and as text for Prometheus.

A worker writes only its own numbers; whoever is asked adds up all.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable

from runner.model.versions import ModelVersion

STATUSES = (200, 400, 401, 404, 405, 406, 408, 413, 415, 421, 499, 500, 503)
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# of one worker: answers to scoring by status, other answers by status, times by bound and above, their sum, rows,
# connections now, connections refused, requests captured, requests to capture that were not, whether capture is stopped
WIDTH = 2 * len(STATUSES) + len(BOUNDS_S) + 1 + 7
BUCKETS = 2 * len(STATUSES)
SECONDS, ROWS, CONNECTIONS, REFUSED, CAPTURED, DROPPED, STOPPED = range(WIDTH - 7, WIDTH)


class Metrics:
    """Counters of `workers` processes; make it before they are forked."""

    def __init__(self, workers: int) -> None:
        self._all = memoryview(mmap.mmap(-1, workers * WIDTH * 8)).cast("d")
        self._own = self._all[:WIDTH]

    def of_worker(self, number: int) -> None:
        """From now on, count for this worker, from 0; its earlier self's connections are gone."""
        self._own = self._all[number * WIDTH : (number + 1) * WIDTH]
        self._own[CONNECTIONS] = self._own[STOPPED] = 0

    def answered(self, *, scoring: bool, status: int, seconds: float, rows: int) -> None:
        at = STATUSES.index(status) if status in STATUSES else STATUSES.index(500 if status >= 500 else 400)
        self._own[at if scoring else at + len(STATUSES)] += 1
        if scoring:
            self._own[BUCKETS + bisect_left(BOUNDS_S, seconds)] += 1
            self._own[SECONDS] += seconds
            self._own[ROWS] += rows

    def connected(self, change: int) -> None:
        self._own[CONNECTIONS] += change

    def refused(self) -> None:
        self._own[REFUSED] += 1

    def captured(self, written: int, dropped: int, stopped: bool) -> None:
        """Requests kept and not kept since the last call; `stopped`: the disk takes none now."""
        self._own[CAPTURED] += written
        self._own[DROPPED] += dropped
        self._own[STOPPED] = stopped

    def text(self, version: ModelVersion) -> str:
        """Prometheus' text format, version 0.0.4."""
        total = [sum(self._all[at::WIDTH]) for at in range(WIDTH)]
        info = {"name": version.name, "version": version.version, "run": version.run, "sha256": version.sha256}
        requests = [
            (f'path="{path}",status="{status}"', total[start + at])
            for path, start in (("/invocations", 0), ("other", len(STATUSES)))
            for at, status in enumerate(STATUSES)
            if total[start + at]
        ]
        counts, below = [], 0.0
        for at, bound in enumerate((*BOUNDS_S, "+Inf")):
            below += total[BUCKETS + at]
            counts.append((f'le="{bound}"', below))
        lines = [
            *_family("model_info", "gauge", "The version that is served.", [(_labels(info), 1)]),
            *_family("requests_total", "counter", "Answers by path and status; 499: the client left.", requests),
            *_family("request_seconds", "histogram", "Time from a scoring request to its answer.", counts, "_bucket"),
            f"runner_request_seconds_sum {total[SECONDS]:g}",
            f"runner_request_seconds_count {below:g}",
            *_family("rows_total", "counter", "Records scored.", [("", total[ROWS])]),
            *_family("connections", "gauge", "Open connections.", [("", total[CONNECTIONS])]),
            *_family("connections_refused_total", "counter", "Connections over the limit.", [("", total[REFUSED])]),
            *_family("captured_total", "counter", "Requests that were captured.", [("", total[CAPTURED])]),
            *_family("capture_dropped_total", "counter", "Requests to capture that were not.", [("", total[DROPPED])]),
            *_family("capture_stopped", "gauge", "Workers whose disk takes nothing.", [("", total[STOPPED])]),
        ]
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, help_text: str, values: Iterable[tuple[str, float]], suffix: str = "") -> list[str]:
    shown = [f"runner_{name}{suffix}{'{' + labels + '}' if labels else ''} {value:.15g}" for labels, value in values]
    return [f"# HELP runner_{name} {help_text}", f"# TYPE runner_{name} {kind}", *shown]


def _labels(values: dict[str, object]) -> str:
    escaped = {k: str(v).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in values.items()}
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())
