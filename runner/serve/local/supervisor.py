"""The process behind a local target: it holds the listening socket, so no connection is lost while versions change.

    python -m runner.serve.local.supervisor FOLDER       started by runner.serve.local.target, and left to itself

What is in FOLDER, and how it is asked: runner.serve.local.protocol.

A version is a child process (runner.serve.local.version_process) that inherits the socket. The new one is started
beside the old; when it has answered its sample record and is told to, it accepts requests, the old one stops
accepting, answers what it has begun, and ends. A child that dies is started again. All children end with this process;
then `runner deployments --restart` brings them back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from runner import escape
from runner.content import atomic_write
from runner.errors import RunnerError, UsageError
from runner.model.served import Deployment
from runner.records import decode, encode, utc_text
from runner.serve.local.protocol import (
    ALIVE,
    CONTROL,
    LOG,
    STATE,
    Address,
    ControlClient,
    ControlReply,
    ControlRequest,
    State,
)
from runner.serve.local.version_process import Start, VersionMessage, VersionProcess

LOG_BYTES = 64 * 2**20
IDLE_S = 60.0  # without anything to serve, and nobody who is about to bring it
READY_S, GO_S, DRAIN_S = 120.0, 30.0, 35.0
LEFT_S = 10.0  # for the old version to accept no more, before it is said that the new one serves
BIND_S = 40.0  # for what an earlier supervisor left behind to end
RESTART_S = (0.1, 30.0)  # before a child that died is started again: at first, and at most
SETTLED_S = 60.0  # a child that has lived so long did not die of what the last one died of


class Candidate:
    """A version on its way, and who brings it."""

    def __init__(self, client: ControlClient, change: Deployment, child: VersionProcess) -> None:
        self.client, self.change, self.child = client, change, child
        self.until = time.monotonic() + READY_S
        self.reported = False  # whether its client knows that it is ready
        self.may_accept = False


class TargetSupervisor:
    """The loop. One thing changes at a time: whoever asks holds the target's lock."""

    def __init__(self, listening: socket.socket, address: Address) -> None:
        self.listening, self.address = listening, address
        self.serving: VersionProcess | None = None
        self.change: Deployment | None = None
        self.candidate: Candidate | None = None
        self.leaving: list[VersionProcess] = []
        self.switched: tuple[ControlClient, VersionProcess | None, float] | None = None
        self.restarts = 0
        self.restart_at: float | None = None
        self.ending: tuple[ControlClient | None, float] | None = None
        self.idle_since = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.clients: set[ControlClient] = set()
        self.asked_to_end = False

    def run(self, control: socket.socket) -> None:
        woken, wakes = socket.socketpair()
        for one in (woken, wakes):
            one.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_ending_signal)
        self._watch(woken, lambda: woken.recv(4096))
        self._watch(control, lambda: self._accept(control))
        while not self._ended():
            for key, _ in self.selector.select(0.5 if self._busy() else 5.0):
                key.data()
            if self.asked_to_end:
                self._end(None)
            self._reap()
            self._advance()
            self._shorten_log()

    # What is asked

    def _accept(self, control: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client = ControlClient(control.accept()[0])
            self.clients.add(client)
            self._watch(client.connection, lambda: self._hear(client))

    def _hear(self, client: ControlClient) -> None:
        try:
            asks = client.asks()
        except RunnerError as error:
            client.answer(ControlReply(status="failed", why=str(error)))
            asks = None
        for ask in asks or ():
            self._do(client, ask)
        if asks is None:
            self.selector.unregister(client.connection)
            client.connection.close()
            self.clients.discard(client)
            if self.candidate is not None and self.candidate.client is client and not self.candidate.may_accept:
                self._drop("whoever brought it has left")

    def _do(self, client: ControlClient, ask: ControlRequest) -> None:
        match ask.do:
            case "look":
                self._answer(client, "look")
            case "start" if self.candidate is None and self.ending is None and ask.start and ask.change:
                self._bring(client, ask.change, ask.start)
            case "switch" if self.candidate is not None and self.candidate.client is client and self.candidate.reported:
                self.candidate.may_accept, self.candidate.until = True, time.monotonic() + GO_S
                self.candidate.child.go()
            case "stop" if self.candidate is None and self.ending is None:
                if ask.change is not None and not self._written(ask.change, None, client):
                    return
                self._end(client)
            case _:
                self._answer(client, "failed", why=f"{ask.do} cannot be done now: something else is under way.")

    def _bring(self, client: ControlClient, change: Deployment, start: Start) -> None:
        if start.token is None and self.serving is None:
            self._answer(client, "failed", why="The process that knew its token has ended. Say the same again.")
            return
        if start.token is None and self.serving is not None:
            start = msgspec.structs.replace(start, token=self.serving.start.token)
        try:
            child = VersionProcess(start, self.listening)
        except OSError as error:  # no process or memory to spare, or the interpreter is gone
            _log(f"{change.label} cannot be started: {error}")
            self._answer(client, "failed", why=f"No process can be started for {change.label}: {error}.")
            return
        self._follow(child)
        self.candidate = Candidate(client, change, child)
        _log(f"{change.label} is started, process {child.process.pid}")

    # What goes on

    def _advance(self) -> None:
        candidate, moment = self.candidate, time.monotonic()
        if candidate is not None:
            match candidate.child.message.status:
                case "failed":
                    self._drop(candidate.child.message.why)
                case "ready" if not candidate.reported:
                    candidate.reported = True
                    self._answer(candidate.client, "ready")
                case "serving" if candidate.may_accept:
                    self._switch(candidate)
            waits_for_client = candidate.reported and not candidate.may_accept
            if self.candidate is not None and moment > candidate.until and not waits_for_client:
                self._drop("it took too long")
        if self.switched is not None:
            client, old, until = self.switched
            if old is None or not old.accepts or moment > until:
                self.switched = None
                self._answer(client, "serving")
        if self.restart_at is not None and moment >= self.restart_at and self.serving is not None:
            try:
                self.serving = VersionProcess(self.serving.start, self.listening)
            except OSError as error:
                self._start_again_later(f"the version that serves cannot be started: {error}")
            else:
                self.restart_at = None
                self._follow(self.serving)
        if self.serving is not None and self.serving.message.status == "ready" and self.restart_at is None:
            self.serving.message = VersionMessage(status="going")
            self.serving.go()

    def _switch(self, candidate: Candidate) -> None:
        """The new version accepts: it is what is served, and the old one ends."""
        at = candidate.change.at or utc_text()  # brought back after this machine went down: it is the same deployment
        change = msgspec.structs.replace(candidate.change, at=at, place=self.address.url)
        if not self._written(change, candidate.child.start, candidate.client):
            self.candidate = None
            candidate.child.end()
            self.leaving.append(candidate.child)
            return
        old, self.serving, self.change, self.candidate = self.serving, candidate.child, change, None
        self.restarts, self.restart_at = 0, None
        if old is not None:
            old.end()
            self.leaving.append(old)
        _log(f"{change.label} serves, process {self.serving.process.pid}")
        self.switched = candidate.client, old, time.monotonic() + LEFT_S

    def _drop(self, why: str) -> None:
        assert self.candidate is not None
        candidate, self.candidate = self.candidate, None
        candidate.child.end(signal.SIGTERM if candidate.may_accept else signal.SIGKILL)
        self.leaving.append(candidate.child)
        _log(f"{candidate.change.label} is not served: {why}")
        self._answer(candidate.client, "failed", why=why)
        self.idle_since = time.monotonic()

    def _reap(self) -> None:
        """Take note of children that have ended."""
        for child in [one for one in self.leaving if one.process.poll() is not None]:
            self.leaving.remove(child)
            self._forget(child)
        candidate = self.candidate
        if candidate is not None and (status := candidate.child.process.poll()) is not None:
            candidate.child.hear()
            message, ended = candidate.child.message, f"its process ended with status {status}; see the log"
            self._drop(message.why if message.status == "failed" else ended)
        serving = self.serving
        if serving is not None and self.restart_at is None and (status := serving.process.poll()) is not None:
            serving.hear()
            self._forget(serving)
            if time.monotonic() - serving.began > SETTLED_S:
                self.restarts = 0
            self._start_again_later(f"the version that serves ended with status {status} {serving.message.why}")

    def _start_again_later(self, why: str) -> None:
        self.restarts += 1
        wait_s = min(RESTART_S[0] * 2 ** min(self.restarts - 1, 20), RESTART_S[1])
        _log(f"{why}; started again in {wait_s:g} s")
        self.restart_at = time.monotonic() + wait_s

    def _end(self, client: ControlClient | None) -> None:
        if self.ending is not None:
            return
        self.ending = client, time.monotonic() + DRAIN_S
        if self.candidate is not None:
            self._drop("the target is ended")
        if self.serving is not None:
            self.serving.end()
            if self.restart_at is None:
                self.leaving.append(self.serving)
            self.serving = None

    def _on_ending_signal(self, *_: object) -> None:
        self.asked_to_end = True

    def _ended(self) -> bool:
        moment = time.monotonic()
        if self.ending is None:
            if self.serving is None and self.candidate is None and moment - self.idle_since > IDLE_S:
                _log("nothing to serve")
                return True
            return False
        client, until = self.ending
        if self.leaving and moment < until:
            return False
        for child in self.leaving:
            child.end(signal.SIGKILL)
        if client is not None:
            self._answer(client, "stopped")
        _log("ended")
        return True

    def _busy(self) -> bool:
        """Whether something has to be looked at without being announced."""
        return any(one is not None for one in (self.restart_at, self.candidate, self.switched, self.ending))

    def _written(self, change: Deployment, start: Start | None, client: ControlClient) -> bool:
        plain = msgspec.structs.replace(start, token=None) if start is not None else None
        needs_token = bool(start.token) if start is not None else self._needs_token()
        if change.kind == "removed":
            change = msgspec.structs.replace(change, at=utc_text(), place=self.address.url)
        try:
            state = State(change=change, start=plain, address=self.address, needs_token=needs_token)
            atomic_write(Path(STATE), encode(state))
        except OSError as error:
            self._answer(client, "failed", why=f"its {STATE} cannot be written: {error.strerror}.")
            return False
        self.change = change
        return True

    def _needs_token(self) -> bool:
        return self.serving is not None and bool(self.serving.start.token)

    def _answer(self, client: ControlClient, status: Any, why: str = "") -> None:
        reply = ControlReply(
            status=status,
            why=why,
            change=self.change,
            address=self.address,
            needs_token=self._needs_token(),
            process=self.serving.process.pid if self.serving is not None and self.restart_at is None else None,
            restarts=self.restarts,
        )
        client.answer(reply)

    def _follow(self, child: VersionProcess) -> None:
        self._watch(child.channel, lambda: None if child.hear() else self._ignore(child))

    def _forget(self, child: VersionProcess) -> None:
        self._ignore(child)
        child.close()

    def _ignore(self, child: VersionProcess) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(child.channel)

    def _watch(self, file: Any, call: Callable[[], object]) -> None:
        self.selector.register(file, selectors.EVENT_READ, call)

    def _shorten_log(self) -> None:
        """All write at the file's end, so it can be emptied under them; lines of that moment may be lost."""
        log = Path(LOG)
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_BYTES:
                shutil.copyfile(log, log.with_name(f"{LOG}.1"))
                os.truncate(log, 0)


def main(folder: Path) -> None:
    """Take the address that is asked for on stdin, say on stdout whether it was available, and serve."""
    os.chdir(folder)  # and all paths from there, so that the project can be moved
    alive = open(ALIVE, "ab+", buffering=0)  # noqa: SIM115 - held until the end
    for attempt in range(50):  # somebody may just be looking whether it is held
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if attempt == 49:
                sys.exit(_report("failed", "another process serves this target."))
            time.sleep(0.02)
    alive.seek(0)
    died = bool(alive.read())  # the one before did, and its children may be about to
    with contextlib.suppress(OSError):  # a full disk has no room for it
        alive.truncate(0)
        alive.write(str(os.getpid()).encode())
    address = decode(Address, sys.stdin.buffer.readline(), where="the address")
    try:
        listening = _bound(address, wait_s=BIND_S if died else 0)
    except UsageError as error:
        sys.exit(_report("failed", f"{error} Free it, or write another `port` for this target in pipeline.toml."))
    Path(CONTROL).unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        control.bind(CONTROL)  # relative: a socket's path is 107 bytes at most
    except OSError as error:
        sys.exit(_report("failed", f"{folder / CONTROL} cannot be made: {error.strerror}."))
    os.umask(before)
    control.listen()
    control.setblocking(False)
    _report("ready")
    os.dup2(2, 1)
    _log(f"listening on {address.url}")
    with listening:
        TargetSupervisor(listening, address).run(control)
    Path(CONTROL).unlink(missing_ok=True)
    alive.truncate(0)


def _bound(address: Address, *, wait_s: float) -> socket.socket:
    from runner.serve.listening import bind

    until = time.monotonic() + wait_s
    while True:
        try:
            return bind(address.host, address.port)
        except UsageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _report(status: str, why: str = "") -> int:
    sys.stdout.write(msgspec.json.encode(VersionMessage(status=status, why=why)).decode() + "\n")
    sys.stdout.flush()
    return 0 if status == "ready" else 1


def _log(sentence: str) -> None:
    with contextlib.suppress(OSError):  # the disk is full: what serves goes on
        os.write(
            2, f'{{"at":"{utc_text()}","supervisor":{escape.json(msgspec.json.encode(sentence).decode())}}}\n'.encode()
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
