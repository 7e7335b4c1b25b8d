"""The one door of the server: each request is recorded, may be made to fail, is checked, and goes to its service.

SageMaker's actions that run something are answered here; everything else is moto's.
"""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from . import limits
from .calls import SERVICE_KEY, Call, read_call
from .errors import ServiceError, write_error
from .faults import CUT, LOST_REPLY, REFUSED, TRUNCATED, Fault, Faults
from .permissions import Permissions

Reply = tuple[int, list[tuple[str, str]], bytes]
Action = Callable[[Call, dict[str, Any]], dict[str, Any] | Reply | None]
CUT_SHORT = 0.5  # how much of a body arrives


class ConnectionLost(Exception):
    """Closes the connection without an answer."""


class Gateway:
    """A WSGI application. An action gets the call and the request's environment; None sends the request on to moto."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.actions: dict[tuple[str, str], Action] = {}
        self.calls: list[Call] = []
        self.service_calls: list[Call] = []
        self.permissions = Permissions()
        self.troubles: list[str] = []  # what went wrong in this double itself
        self._lock = threading.Lock()
        # by object: moto throws the one that is replaced away while the other's writer still reads it
        self._writing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        call = read_call(environ)
        if call is None:
            return self._send((403, [("Content-Type", "text/plain")], b"not signed"), environ, start_response, None)
        with self._lock:
            (self.service_calls if call.access_key == SERVICE_KEY else self.calls).append(call)
        fault = None if call.access_key == SERVICE_KEY else self.faults.pick(call)
        try:
            reply = self._answer(call, environ, fault)
        except ConnectionLost:
            close(environ)
            raise ConnectionAbortedError from None  # werkzeug then writes nothing
        except ServiceError as error:
            call.error = error.code
            reply = write_error(call.service, error)
        except NotImplementedError as error:
            call.error = "NotImplemented"
            reply = write_error(call.service, ServiceError("NotImplemented", str(error), status=501))
        except Exception:
            self.troubles.append(f"{call.service} {call.action}\n{traceback.format_exc()}")
            call.error = "InternalServerError"
            reply = write_error(call.service, ServiceError(call.error, traceback.format_exc()))
        call.status = reply[0]
        return self._send(reply, environ, start_response, fault)

    def _answer(self, call: Call, environ: dict[str, Any], fault: Fault | None) -> Reply:
        if fault is not None:
            if fault.delay_s:
                threading.Event().wait(fault.delay_s)
            if fault.error == REFUSED:
                raise ConnectionLost
            if fault.error not in ("", LOST_REPLY, TRUNCATED, CUT):
                drain(environ)
                raise ServiceError(fault.error, fault.message, status=fault.status)
        if call.service in ("sagemaker", "codebuild"):
            limits.check(call.service, call.action, call.parameters)
        try:
            self.permissions.check(call)
        except ServiceError:
            drain(environ)
            raise
        action = self.actions.get((call.service, call.action))
        answer = None if action is None else action(call, environ)
        if answer is None and call.action == "PutObject":
            with self._lock:
                writing = self._writing[environ["PATH_INFO"]]
            with writing:
                reply = self.ask_moto(environ)
        else:
            reply = self.ask_moto(environ) if answer is None else write_reply(answer)
        if call.service == "s3" and reply[0] == 404:
            self.permissions.check_absent(call)
        if fault is not None and fault.error == LOST_REPLY:
            raise ConnectionLost
        return reply

    def ask_moto(self, environ: dict[str, Any]) -> Reply:
        kept: list[Any] = []

        def keep(status: str, headers: list[tuple[str, str]], error: object = None) -> Callable[[bytes], object]:
            kept[:] = [int(status.split()[0]), headers]
            return lambda data: None

        chunks = self._moto(environ, keep)
        try:
            body = b"".join(chunks)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        return kept[0], kept[1], body

    def _send(
        self, reply: Reply, environ: dict[str, Any], start_response: Callable[..., Any], fault: Fault | None
    ) -> Iterable[bytes]:
        status, headers, body = reply
        length = len(body)
        short = fault is not None and fault.error in (TRUNCATED, CUT)
        if short:
            body = body[: int(len(body) * CUT_SHORT)]
        if environ["REQUEST_METHOD"] != "HEAD":
            if fault is None or fault.error != CUT:
                length = len(body)
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(length)))
        start_response(f"{status} -", headers)
        if fault is not None and fault.error == CUT:
            return cut_off(body, environ)
        return [body]


def write_reply(answer: dict[str, Any] | Reply) -> Reply:
    if isinstance(answer, tuple):
        return answer
    return 200, [("Content-Type", "application/x-amz-json-1.1")], json.dumps(answer).encode()


def cut_off(body: bytes, environ: dict[str, Any]) -> Iterable[bytes]:
    yield body
    close(environ)


def drain(environ: dict[str, Any]) -> None:
    """Reads what is left of the request, or its sender would see a reset connection and no answer."""
    if environ.get("wsgi.input_terminated"):
        environ["wsgi.input"].read()
    elif environ.get("CONTENT_LENGTH"):
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))


def close(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
