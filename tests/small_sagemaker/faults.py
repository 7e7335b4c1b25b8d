"""Trouble on demand: which calls, downloads, logs and jobs go wrong, how, and how often."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .calls import Call

LOST_REPLY = "LostReply"  # executed, then the connection is closed without an answer
REFUSED = "ConnectionClosed"  # closed without an answer and never executed
TRUNCATED = "Truncated"  # the body ends early and Content-Length says so: a well-formed, wrong answer
CUT = "Cut"  # Content-Length tells the whole size, the connection ends early
MESSAGES = {
    "ThrottlingException": "Rate exceeded",
    "InternalServerError": "We encountered an internal error. Please try again.",
    "ExpiredTokenException": "The security token included in the request is expired",
    "ResourceLimitExceeded": "The account-level service limit 'ml.m5.xlarge for processing job usage' is 0 Instances, "
    "with current utilization of 0 Instances and a request delta of 1 Instances.",
}


@dataclass
class Fault:
    number: int
    action: str
    error: str
    message: str
    status: int | None
    left: int | None
    skip: int
    match: str | Mapping[str, str] | None
    caller: str | None
    delay_s: float
    hits: int = 0

    def fits(self, call: Call) -> bool:
        if not re.fullmatch(self.action.replace("*", ".*"), call.action):
            return False
        if self.caller is not None and self.caller != call.access_key:
            return False
        if self.match is None:
            return True
        if isinstance(self.match, str):
            return self.match in json.dumps(call.parameters)
        return all(value in str(call.parameters.get(name, "")) for name, value in self.match.items())


@dataclass
class Rate:
    actions: Sequence[str]
    per_second: float
    seen: deque[float] = field(default_factory=deque)


@dataclass
class JobFault:
    name_contains: str
    fail: str
    left: int | None
    after_s: float


@dataclass
class Interruption:
    """What takes a spot instance away: a line of its log, so long before, or, for "", that its container has ended well."""

    name_contains: str
    at_line: str
    warned: bool
    after_s: float
    left: int


class Faults:
    """Every method may be called from the test process. Calls of the service itself are never hit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._faults: list[Fault] = []
        self._rates: list[Rate] = []
        self._jobs: list[JobFault] = []
        self._logs: list[tuple[str, float]] = []
        self._interruptions: list[Interruption] = []

    def add(
        self,
        action: str,
        error: str = "",
        *,
        times: int | None = 1,
        skip: int = 0,
        match: str | Mapping[str, str] | None = None,
        caller: str | None = None,
        message: str | None = None,
        status: int | None = None,
        delay_s: float = 0.0,
    ) -> int:
        """Makes the next `times` calls of `action` (after `skip` good ones) answer `error`; None: for ever.

        `error` is a code of the service, "LostReply", "ConnectionClosed", "Truncated", "Cut" or "" (only the delay).
        `match` is a piece of the parameters' JSON, or a piece of the value for each parameter named.
        `caller` is an access key. The number that comes back is for `hits` and `remove`.
        """
        with self._lock:
            number = next(self._numbers)
            text = message if message is not None else MESSAGES.get(error, error)
            self._faults.append(Fault(number, action, error, text, status, times, skip, match, caller, delay_s))
            return number

    def rate(self, actions: Sequence[str] | str, per_second: float) -> None:
        """Answers ThrottlingException to calls of `actions` (together) above so many in any one second."""
        with self._lock:
            self._rates.append(Rate([actions] if isinstance(actions, str) else list(actions), per_second))

    def job(self, name_contains: str, fail: str, *, times: int | None = 1, after_s: float = 0.0) -> None:
        """Makes jobs fail with the reason `fail`, before their container starts or `after_s` into its run."""
        with self._lock:
            self._jobs.append(JobFault(name_contains, fail, times, after_s))

    def interrupt(
        self, name_contains: str, at_line: str = "", *, warned: bool = False, after_s: float = 0.0, times: int = 1
    ) -> None:
        """Takes the instances of such jobs on spot away: the next `times`, once they have said such a line, or else have
        ended and are about to be recorded so. `warned`: SIGTERM comes first."""
        with self._lock:
            self._interruptions.append(Interruption(name_contains, at_line, warned, after_s, times))

    def delay_logs(self, seconds: float, *, name_contains: str = "") -> None:
        """Log streams of such jobs appear only so long after their container has started."""
        with self._lock:
            self._logs.append((name_contains, seconds))

    def hits(self, number: int) -> int:
        with self._lock:
            return sum(fault.hits for fault in self._faults if fault.number == number)

    def remove(self, number: int) -> None:
        with self._lock:
            self._faults = [fault for fault in self._faults if fault.number != number]

    def clear(self) -> None:
        with self._lock:
            for kept in (self._faults, self._rates, self._jobs, self._logs, self._interruptions):
                kept.clear()

    def pick(self, call: Call) -> Fault | None:
        """The fault that hits this call, used up by one."""
        with self._lock:
            for fault in self._faults:
                if fault.left == 0 or not fault.fits(call):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                fault.left = None if fault.left is None else fault.left - 1
                return fault
            return self._pick_rate(call)

    def _pick_rate(self, call: Call) -> Fault | None:
        now = time.monotonic()
        for rate in self._rates:
            if call.action not in rate.actions:
                continue
            while rate.seen and rate.seen[0] <= now - 1:
                rate.seen.popleft()
            if len(rate.seen) >= rate.per_second:
                error = "ThrottlingException"
                return Fault(0, call.action, error, MESSAGES[error], 400, None, 0, None, None, 0.0)
            rate.seen.append(now)
        return None

    def pick_job(self, name: str) -> JobFault | None:
        with self._lock:
            for fault in self._jobs:
                if fault.left != 0 and fault.name_contains in name:
                    fault.left = None if fault.left is None else fault.left - 1
                    return fault
            return None

    def pick_interruption(self, name: str) -> Interruption | None:
        with self._lock:
            for one in self._interruptions:
                if one.left and one.name_contains in name:
                    one.left -= 1
                    return one
            return None

    def logs_delay_s(self, name: str) -> float:
        with self._lock:
            return max((seconds for part, seconds in self._logs if part in name), default=0.0)
