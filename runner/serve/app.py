"""The HTTP application: SageMaker's `/ping` and `/invocations`, a page, metrics and OpenAPI.

`/invocations` is answered before Starlette's router, which would take as long as all the rest of such an answer.
Knows nothing of sockets and processes; reads no more of a body than is allowed.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from runner.loopback import names_this_machine
from runner.model.versions import ModelVersion
from runner.scoring.inference import BadInput, Scorer, accepted
from runner.serve.capture import Exchange, RequestCapture
from runner.serve.describe import openapi, page
from runner.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

LARGE_BYTES = 64 * 1024  # from here on a body is read and scored beside the others, not before them
BODIES = 16  # of the largest size: what all that one process holds at a time may add up to
KNOWN = ("/invocations", "/ping", "/", "/metrics", "/openapi.json")
ELSEWHERE = b'{"error": "This server has no such name. Ask it by localhost, or serve with a token: RUNNER_TOKEN=..."}'
FAULT = b'{"error": "This is a fault of the server."}'
CHALLENGE = (b"www-authenticate", b'Basic realm="runner", charset="UTF-8"')


@dataclass(frozen=True)
class RequestLimits:
    """What one client may take."""

    body_bytes: int = 6 * 1024 * 1024
    timeout_s: float = 30.0
    connections: int = 512


class ClientLeft(Exception):
    """The connection closed before the request was whole."""


class Application:
    """Answers requests with one model. `draining`: connections are asked to close, and `/ping` says 503."""

    def __init__(
        self,
        scorer: Scorer,
        version: ModelVersion,
        *,
        limits: RequestLimits,
        metrics: Metrics,
        token: str | None = None,
        any_host: bool = False,
        capture: RequestCapture | None = None,
    ) -> None:
        """Without a token only names of this machine are answered, unless `any_host`: where nobody else gets here."""
        self.draining = False
        self.left: Callable[[], None] | None = None  # called when others accept connections instead of this process
        self.limits, self.metrics, self.capture = limits, metrics, capture
        self.log = AccessLog(scorer.model)
        self._scorer, self._token = scorer, token
        self._checks_host = token is None and not any_host
        self._held = 0  # bytes of bodies that are arriving, and of large ones that are being answered
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._model = (b"x-model", scorer.model.encode())
        self._other_routes = _other_routes(self, scorer, version)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        path, method = scope["path"], scope["method"]
        headers = dict(scope["headers"])
        scoring = path == "/invocations" and method == "POST"
        status, rows = 500, 0
        exchange: Exchange | None = None
        try:
            if self._checks_host and not names_this_machine(headers.get(b"host", b"")):
                status = 421
                await self._send(send, 421, ELSEWHERE, "application/json")
            elif self._token is not None and path != "/ping" and not self._allowed(headers.get(b"authorization", b"")):
                status = 401
                await self._send(send, 401, b'{"error": "This needs the token."}', "application/json", CHALLENGE)
            elif scoring:
                exchange = await self._score(headers, receive, send)
                status, rows = exchange.status, exchange.rows
            else:

                async def forward(message: Message) -> None:
                    nonlocal status
                    if message["type"] == "http.response.start":
                        status = message["status"]
                        message = {**message, "headers": [*message["headers"], *self._closing()]}
                    await send(message)

                await self._other_routes(scope, receive, forward)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.answered(scoring=scoring, status=status, seconds=seconds, rows=rows)
            self.log.write(method, path if path in KNOWN else "other", status, seconds, rows)
        if self.capture is not None and exchange is not None and exchange.id:
            if exchange.reserved:  # beside the others, as it was scored
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._aside, self._keep, self.capture.write_large, exchange, seconds)
            else:
                self._keep(self.capture.write, exchange, seconds)

    async def _score(self, headers: dict[bytes, bytes], receive: Receive, send: Send) -> Exchange:
        """The request with the answer that was sent."""
        named: tuple[tuple[bytes, bytes], ...] = (self._model,)
        request_id = ""
        if self.capture is not None:
            request_id = self.capture.id_of(headers)
            named = (self._model, (b"x-request-id", request_id.encode()))
        try:
            accept = headers.get(b"accept", b"").decode("latin-1")
            accepted(accept)
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise BadInput("Content-Encoding is not supported; send the body as it is.", status=415)
            body = await self._body(headers, receive)
            exchange = Exchange(200, 0, request_id, None, body, headers.get(b"content-type", b"").decode("latin-1"))
            if len(body) < LARGE_BYTES:
                content, kind = self._answer(exchange, accept)
            else:
                try:
                    loop = asyncio.get_running_loop()
                    content, kind = await loop.run_in_executor(self._aside, self._answer, exchange, accept)
                finally:
                    self._held -= len(body)
                if self.capture is None or not self.capture.reserve(exchange):
                    exchange.body, exchange.id = b"", ""  # as its client may read slowly, and nobody needs it
                del body
            try:
                await self._send(send, 200, content, kind, *named)
            except BaseException:
                if self.capture is not None:
                    self.capture.release(exchange)
                raise
            return exchange
        except BadInput as error:
            later = [(b"retry-after", b"1")] if error.status == 503 else []
            await self._send(send, error.status, error.body(), "application/json", *named, *later)
            return Exchange(error.status, 0, request_id, error)
        except ClientLeft:
            return Exchange(499)
        except Exception as error:  # a fault of ours; its message could have a customer's values
            self.log.fault(error)
            await self._send(send, 500, FAULT, "application/json", *named)
            return Exchange(500, 0, request_id, "This is a fault of the server.")

    def _answer(self, exchange: Exchange, accept: str) -> tuple[bytes, str]:
        exchange.table = self._scorer.table(exchange.body, exchange.content_type)
        exchange.scores = self._scorer.score(exchange.table)
        exchange.rows = len(exchange.scores)
        return self._scorer.reply(exchange.scores, accept)

    def _keep(self, write: Callable[[Exchange, float], None], exchange: Exchange, seconds: float) -> None:
        try:
            write(exchange, seconds)
        except Exception as error:  # a fault of ours, and the request was answered
            self.log.fault(error)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, held where it is a large one. Raises BadInput once it is too large or too slow, or there is
        no room for it, having read no more than that."""
        declared = headers.get(b"content-length", b"0")
        self._fits(int(declared[:18]))
        # where uvicorn has read all of it already, no clock need be set, which takes as long as the rest of this
        if not getattr(getattr(receive, "__self__", None), "more_body", True):
            message = await receive()
            if message["type"] == "http.request":
                body: bytes = message["body"]
                self._fits(len(body))
                if len(body) >= LARGE_BYTES:
                    self._room(len(body))
                    self._held += len(body)
                return body
            raise ClientLeft
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await self._parts(receive)
        except TimeoutError:
            reason = f"The body did not arrive within {self.limits.timeout_s:g} s."
            raise BadInput(reason, status=408) from None

    async def _parts(self, receive: Receive) -> bytes:
        parts, size, more, held = [], 0, True, False
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                parts.append(message.get("body", b""))
                more, length = message.get("more_body", False), len(parts[-1])
                self._fits(size + length)
                if size + length >= LARGE_BYTES:
                    self._room(length)
                size += length
                self._held += length
            held = size >= LARGE_BYTES
        finally:
            if not held:
                self._held -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fits(self, size: int) -> None:
        most = self.limits.body_bytes
        if size > most:
            raise BadInput(f"The body is larger than {most / 2**20:g} MB. Send fewer rows at once.", status=413)

    def _room(self, size: int) -> None:
        """Raises BadInput where large bodies under way leave none; small ones always have it."""
        if self._held + size > BODIES * self.limits.body_bytes:
            raise BadInput("Too many large requests are under way. Try again in a moment.", status=503)

    async def _send(self, send: Send, status: int, body: bytes, kind: str, *more: tuple[bytes, bytes]) -> None:
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *more, *self._closing()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _closing(self) -> list[tuple[bytes, bytes]]:
        return [(b"connection", b"close")] if self.draining else []

    def _allowed(self, authorization: bytes) -> bool:
        """`Bearer TOKEN`, or Basic with the token as its password, which is how a browser can ask for it."""
        assert self._token is not None
        kind, _, secret = authorization.partition(b" ")
        if kind.lower() == b"basic":
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(secret.strip(), self._token.encode())


class AccessLog:
    """The access log on stderr: a line of JSON an answer, with nothing of a request but its path where that is ours."""

    def __init__(self, model: str) -> None:
        self.worker = 0
        self._model = json.dumps(model)
        self._lines: list[str] = []
        self._second = (0, "")

    def write(self, method: str, path: str, status: int, seconds: float, rows: int) -> None:
        method = method if method.isalpha() and len(method) < 10 else "other"
        if not self._lines:
            asyncio.get_running_loop().call_later(0.1, self.flush)  # one write for all answers of a moment
        self._lines.append(
            f'{{"at":"{self._now()}","method":"{method}","path":"{path}","status":{status},"ms":{seconds * 1e3:.3f},'
            f'"rows":{rows},"model":{self._model},"worker":{self.worker}}}\n'
        )

    def fault(self, error: BaseException) -> None:
        """Where a fault was, without its message."""
        at = error.__traceback__
        places = []
        while at is not None:
            places.append(f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}")
            at = at.tb_next
        record = {"at": self._now(), "fault": type(error).__name__, "where": places[-6:], "worker": self.worker}
        self._lines.append(json.dumps(record) + "\n")

    def note(self, sentence: str) -> None:
        """Of a process that has no loop."""
        self._lines.append(json.dumps({"at": self._now(), "server": sentence}) + "\n")
        self.flush()

    def _now(self) -> str:
        now = time.time()
        if self._second[0] != int(now):
            self._second = (int(now), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)))
        return f"{self._second[1]}.{int(now % 1 * 1000):03d}Z"

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        with suppress(OSError):  # the disk is full, or nobody reads any more: requests are still answered
            sys.stderr.write("".join(lines))
            sys.stderr.flush()


def _other_routes(application: Application, scorer: Scorer, version: ModelVersion) -> Callable[..., Awaitable[None]]:
    described = openapi(scorer, version, application.limits.body_bytes)
    html, policy = page(scorer, version)

    async def ping(_: Request) -> Response:
        return Response(status_code=503 if application.draining else 200)

    async def index(_: Request) -> Response:
        return HTMLResponse(html, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})

    async def metrics(_: Request) -> Response:
        content = application.metrics.text(version)
        return PlainTextResponse(content, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def described_by(_: Request) -> Response:
        return JSONResponse(described)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = f"{error.detail}. There are {', '.join(KNOWN)}."
        return JSONResponse({"error": sentence}, error.status_code, headers=dict(error.headers or {}))

    routes: list[Any] = [
        Route("/ping", ping),
        Route("/", index),
        Route("/metrics", metrics),
        Route("/openapi.json", described_by),
        Route("/invocations", ping, methods=["POST"]),  # POST never gets here; others are 405
    ]
    application_of = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    application_of.router.redirect_slashes = False
    return application_of
