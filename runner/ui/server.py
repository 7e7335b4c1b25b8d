"""Serving the pages: the address, the process, its end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import uvicorn

from runner import escape
from runner.errors import UsageError
from runner.loopback import is_loopback
from runner.project import LOOK_S
from runner.run.provenance import who
from runner.ui.access import USERS, OneTimeToken, Passwords, users
from runner.ui.app import Pages
from runner.ui.guard import TOKEN, Access
from runner.ui.several import Several

if TYPE_CHECKING:
    from starlette.types import ASGIApp

END_S = 5  # for requests under way
THREADS = 8  # that make pages
CONNECTIONS = 500


def access(
    host: str,
    port: int,
    *,
    header: str = "",
    hosts: tuple[str, ...] = (),
    users_text: str = "",
    on_sign_in: Callable[[], None] = lambda: None,
) -> Access:
    """Who may come in. Raises UsageError where others can reach the host and nothing says who they are."""
    if header and users_text:
        raise UsageError(f"Either {USERS} or --trust-user-header says who somebody is, not both.")
    if not is_loopback(host) and not header and not users_text:
        raise UsageError(
            f"{host} can be reached from other machines, so it has to be known who comes: {USERS}=FILE with a line "
            "NAME:HASH for each (`runner ui --user NAME` makes one), or behind a proxy --trust-user-header NAME."
        )
    return Access(
        account=who(),
        cookie=f"runner-ui-{port}",  # cookies know no ports, and two projects' pages may be open
        token=None if header or users_text else OneTimeToken(),
        passwords=Passwords(users(users_text)) if users_text else None,
        header=header,
        hosts=frozenset(name.lower().rstrip(".") for name in hosts),
        on_sign_in=on_sign_in,
    )


def jupyter_access(path: Path) -> Access:
    """Of pages that only Jupyter of this account reaches, at the socket in the file. Raises UsageError where others
    could: the file's folder has to be closed to them."""
    mode = path.absolute().parent.stat()
    if mode.st_uid != os.getuid() or mode.st_mode & 0o077:
        raise UsageError(f"{path.parent} can be entered by other accounts, so nothing is served there: chmod 700 it.")
    folder = hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()  # two Jupyters of this machine share cookies
    return Access(account=who(), cookie=f"runner-ui-{folder[:8]}", jupyter=True)


def address(host: str, port: int, access: Access) -> str:
    """Where the pages are, with the token that lets one browser in."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?{TOKEN}={access.token.now}" if access.token is not None else "")


def serve(file: Path, access: Access, listening: socket.socket, *, prefix: str, on_ready: Callable[[], None]) -> None:
    """Answer until SIGTERM or SIGINT; see `server`."""
    _run(server(file, access, prefix=prefix, on_ready=on_ready), listening)


def serve_several(folder: Path, access: Access, listening: socket.socket) -> None:
    """Answer for all projects in the folder until SIGTERM or SIGINT."""
    several = Several(folder, access)
    serving = _Server(_configured(several), lambda: None)
    several.is_ending = lambda: serving.should_exit
    _run(serving, listening)


def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    _escape_log()
    server.run(sockets=[listening])


def server(
    file: Path,
    access: Access,
    *,
    prefix: str = "",
    patience_s: float = LOOK_S,
    on_ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """The server of a project's pages. `prefix` is the path under which a proxy shows them, if it does not take it
    away itself; `patience_s` is how long a page waits for AWS where that does not answer."""
    pages = Pages(file, access, patience_s=patience_s)
    threading.Thread(target=pages.warm, name="warm", daemon=True).start()
    serving = _Server(_configured(pages.application(prefix=prefix)), on_ready)
    pages.is_ending = lambda: serving.should_exit
    return serving


def _configured(application: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=END_S,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal has been obeyed then and is not raised again."""
        if threading.current_thread() is threading.main_thread():
            for ending in (signal.SIGTERM, signal.SIGINT):
                signal.signal(ending, self.handle_exit)
        yield


class _Inert(logging.Formatter):
    """A fault's traceback may quote a notebook."""

    def format(self, record: logging.LogRecord) -> str:
        return escape.terminal(super().format(record))


def _escape_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Inert("%(message)s"))
    log = logging.getLogger("uvicorn.error")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.ERROR)


@contextlib.contextmanager
def opened(where: str) -> Iterator[None]:
    """The browser at the address, by a file that others cannot read: a program's arguments they could."""
    handle, name = tempfile.mkstemp(suffix=".html", prefix="runner-ui-")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(
                '<!DOCTYPE html><meta charset="utf-8"><title>runner</title>'
                f'<meta http-equiv="refresh" content="0; url={escape.html(where)}">'
                f'<p><a href="{escape.html(where)}">Open the pages</a></p>'
            )
        webbrowser.open(path.as_uri())
        yield
    finally:
        path.unlink(missing_ok=True)
