"""Places that a notice is sent to: a web server and a mail server of this machine, which keep what they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Inbox:
    """`address` is apprise's. `messages` are JSON bodies, or e-mails as they were sent."""

    address: str
    messages: list[Any] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)  # cleared: requests are not answered

    def take(self) -> list[Any]:
        """The messages since the last call."""
        taken, self.messages = self.messages, []
        return taken


@contextlib.contextmanager
def web_inbox() -> Iterator[Inbox]:
    """apprise's json://, with a password in the address."""
    inbox = Inbox("")
    inbox.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            inbox.open.wait(30)
            inbox.messages.append(json.loads(body))
            with contextlib.suppress(OSError):  # the sender may have given up
                self.send_response(200)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        inbox.address = f"json://somebody:hush-hush-4711@127.0.0.1:{server.server_port}/hook/T0K3N-in-the-path"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield inbox
        inbox.open.set()
        server.shutdown()


@contextlib.contextmanager
def mail_inbox() -> Iterator[Inbox]:
    """apprise's mailto://, without encryption on the way."""
    from aiosmtpd.smtp import SMTP

    inbox = Inbox("")

    class Keeper:
        async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
            inbox.messages.append(envelope.content)
            return "250 OK"

    loop = asyncio.new_event_loop()
    listening = socket.create_server(("127.0.0.1", 0))
    server = loop.run_until_complete(loop.create_server(lambda: SMTP(Keeper(), loop=loop), sock=listening))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    inbox.address = f"mailto://127.0.0.1:{port}?from=runner@example.org&to=ana@example.org&mode=insecure"
    yield inbox
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
