"""The pages of a project served for a test, and people who visit them over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import uvicorn

from runner.project import LOOK_S
from runner.serve.listening import bind
from runner.ui.guard import Access
from runner.ui.server import access, address, server

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def form(self, action: str) -> dict[str, str]:
        """The hidden fields of the form that is sent to this address."""
        found = re.search(rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', self.text, re.DOTALL)
        assert found, f"no form {action} in {self.text}"
        hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', found[1])
        return {name: unescape(value) for name, value in hidden}

    def has_form(self, action: str) -> bool:
        return f'action="{action}"' in self.text


@dataclass
class Visitor:
    """A browser as far as HTTP goes: keeps cookies, and says where its forms come from."""

    port: int
    prefix: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def get(self, path: str = "/", **headers: str) -> Reply:
        return self.ask("GET", path, None, {name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {"content-type": "application/x-www-form-urlencoded", "origin": f"http://127.0.0.1:{self.port}"}
        return self.ask("POST", path, urlencode(fields).encode(), {**kind, **named})

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {**({"cookie": cookie} if cookie else {}), **self.headers, **headers}
        with contextlib.closing(connection):
            connection.request(method, self.prefix + path, body, {name: value for name, value in sent.items() if value})
            answer = connection.getresponse()
            reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        for line in answer.headers.get_all("set-cookie") or ():
            name, _, rest = line.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return reply

    def decide(self, version: str, action: str, reason: str, **more: str) -> Reply:
        """Look at the version's page, fill in the form and send it."""
        page = self.get(f"/model/{version}/")
        return self.post(f"/model/{version}/{action}", {**page.form(action), "reason": reason, **more})


@dataclass
class Pages:
    """`told` has what the command would print each time somebody has come in by the token."""

    port: int
    access: Access
    told: list[str]
    prefix: str = ""

    @property
    def address(self) -> str:
        return address("127.0.0.1", self.port, self.access)

    def visitor(self, **headers: str) -> Visitor:
        """Somebody who has not come in yet."""
        return Visitor(self.port, self.prefix, {name.replace("_", "-"): value for name, value in headers.items()})

    def by_address(self) -> Visitor:
        """Who has opened the printed address."""
        came = self.visitor()
        assert came.get(f"/?{urlsplit(self.address).query}").status == 200
        return came

    def by_password(self, name: str, password: str) -> Visitor:
        came = self.visitor()
        assert came.post("/sign-in", {"name": name, "password": password}).status == 303
        return came


@contextlib.contextmanager
def pages_of(file: Path, *, prefix: str = "", patience_s: float = LOOK_S, **who: Any) -> Iterator[Pages]:
    """The pages of the pipeline file, served by a thread of this process on a free port."""
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    told: list[str] = []
    entry = access("127.0.0.1", port, on_sign_in=lambda: told.append("signed in"), **who)
    ready = threading.Event()
    with _at_work(server(file.absolute(), entry, prefix=prefix, patience_s=patience_s, on_ready=ready.set), listening):
        assert ready.wait(30)
        yield Pages(port, entry, told, prefix)


@contextlib.contextmanager
def answering(application: ASGIApp) -> Iterator[int]:
    """The application at a free port, which is given back."""
    listening = bind("127.0.0.1", 0)
    serving = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None, access_log=False))
    with _at_work(serving, listening):
        yield listening.getsockname()[1]


@contextlib.contextmanager
def _at_work(serving: uvicorn.Server, listening: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield
    finally:
        serving.should_exit = True
        thread.join(30)
        listening.close()
