"""Who may see the pages, and who somebody is: one-time addresses, passwords, sessions, and the tokens of forms.

Knows nothing of HTTP. All state is in memory and bounded; it ends with the process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UsageError
from runner.model.registry_rules import Person

if TYPE_CHECKING:
    from argon2 import PasswordHasher

USERS = "RUNNER_UI_USERS"
IDLE_S = 12 * 3600.0  # after which a session is over
FORM_S = 12 * 3600.0  # for which a form may be sent
SESSIONS, TRIED = 1000, 10_000  # at most; the oldest goes
FREE_TRIES, LONGEST_WAIT_S = 5, 60.0  # wrong passwords before each further one costs a wait, doubled each time
LONGEST_PASSWORD = 1000


@dataclass
class Session:
    """Somebody's visit. `notes` are sentences to show on their next page."""

    person: Person
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    seen: float = field(default_factory=time.monotonic)
    used: OrderedDict[str, float] = field(default_factory=OrderedDict)  # forms that were sent, until they are too old
    notes: list[tuple[str, str]] = field(default_factory=list)  # (tone, sentence)


class FormRefused(Exception):
    """A form that nobody filled in on these pages, or one that was sent before; the message says which."""


class Sessions:
    """Sessions by their secret id. Safe to use from several threads."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, person: Person) -> str:
        """The id of a new session."""
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[_digest(name)] = Session(person)
            while len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        return name

    def find(self, name: str) -> Session | None:
        with self._lock:
            session = self._sessions.get(_digest(name))
            if session is None:
                return None
            if time.monotonic() - session.seen > IDLE_S:
                del self._sessions[_digest(name)]
                return None
            session.seen = time.monotonic()
            return session

    def end(self, name: str) -> None:
        with self._lock:
            self._sessions.pop(_digest(name), None)

    def form_token(self, session: Session, purpose: str) -> str:
        """For one form, to be sent once. `purpose` is the path it is sent to."""
        head = f"{int(time.monotonic() + FORM_S)}.{secrets.token_urlsafe(16)}"
        return f"{head}.{_mac(session.key, purpose, head)}"

    def take_form(self, session: Session, purpose: str, token: str) -> None:
        """Accept the form. Raises FormRefused; a second time too."""
        head, _, mac = token.rpartition(".")
        expires = head.partition(".")[0]
        if not token.isascii() or not hmac.compare_digest(mac, _mac(session.key, purpose, head)):
            raise FormRefused("This form is not from these pages, or from before you signed in.")
        if int(expires) < time.monotonic():
            raise FormRefused("This form is too old.")
        with self._lock:
            now = time.monotonic()
            while session.used and next(iter(session.used.values())) < now:
                session.used.popitem(last=False)
            if head in session.used:
                raise FormRefused("This form was sent before.")
            session.used[head] = now + FORM_S


def _mac(key: bytes, purpose: str, head: str) -> str:
    return hmac.new(key, f"{purpose}\n{head}".encode(), hashlib.sha256).hexdigest()


def _digest(name: str) -> str:
    """By which a session is looked up, so that comparing takes no time that tells anything of the name."""
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()


class OneTimeToken:
    """The token of the printed address: whoever brings it first is let in, and another one takes its place."""

    def __init__(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._lock = threading.Lock()

    @property
    def now(self) -> str:
        return self._token

    def take(self, token: str) -> bool:
        with self._lock:
            if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
                return False
            self._token = secrets.token_urlsafe(24)
            return True


class TooManyTries(Exception):
    """After wrong passwords; `wait_s` says for how long."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"Too many wrong passwords. Try again in {wait_s:.0f} s.")
        self.wait_s = wait_s


class Passwords:
    """Names with Argon2 hashes. One password is checked at a time, as each check takes memory on purpose."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        self._hasher = hasher()
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))  # so that an unknown name takes as long
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()  # by name and by address
        self._lock = threading.Lock()

    def check(self, name: str, password: str, address: str) -> bool:
        """Raises TooManyTries where this name or this address has failed too often just now."""
        from argon2.exceptions import Argon2Error, InvalidHashError

        keys = [f"name {name[:200]}", f"address {address}"]
        with self._lock:
            wait_s = max(self._wait_s(key) for key in keys)
            if wait_s > 0:
                raise TooManyTries(wait_s)
            known = self._hashes.get(name)
            try:
                self._hasher.verify(known or self._nobody, password[:LONGEST_PASSWORD])
                right = known is not None
            except (Argon2Error, InvalidHashError):
                right = False
            for key in keys:
                if right:
                    self._tries.pop(key, None)
                else:
                    self._tries[key] = (self._tries.pop(key, (0, 0.0))[0] + 1, time.monotonic())
            while len(self._tries) > TRIED:
                self._tries.popitem(last=False)
            return right

    def _wait_s(self, key: str) -> float:
        tries, last = self._tries.get(key, (0, 0.0))
        if tries < FREE_TRIES:
            return 0.0
        return last + min(LONGEST_WAIT_S, 2.0 ** (tries - FREE_TRIES)) - time.monotonic()


def hasher() -> PasswordHasher:
    """Argon2id with 19 MiB, two passes: OWASP's Password Storage Cheat Sheet. Raises UsageError where it is missing."""
    try:
        from argon2 import PasswordHasher  # an extra: without passwords nothing needs it
    except ImportError:
        raise UsageError("Passwords need the extra `ui`: pip install argon2-cffi.") from None
    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def users(text: str) -> dict[str, str]:
    """The hashes by name in the text: lines of `NAME:HASH`, or the path of a file with these. Raises UsageError."""
    if "$" not in text and text.strip():
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{USERS} names {text}, which cannot be read: {error}") from error
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, value = (part.strip() for part in line.partition(":"))
        if not name or not value.startswith("$argon2"):
            raise UsageError(
                f"Line {number} of {USERS} is not NAME:HASH with an Argon2 hash. `runner ui --user NAME` makes one."
            )
        if name in hashes:
            raise UsageError(f"{USERS} has {name} twice.")
        hashes[name] = value
    if not hashes:
        raise UsageError(f"{USERS} has no user. `runner ui --user NAME` makes a line for it.")
    return hashes
