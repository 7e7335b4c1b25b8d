"""The REST front's function in a process of its own, behind an imitation of API Gateway."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from account import identities, key
from iam import Stack
from small_sagemaker import SmallSageMaker

from support.commands import environment
from support.projects import ROOT
from support.served import JSON, ROW

INFRA = ROOT / "infra"
LAMBDA = INFRA / "lambda"
ENDPOINT = "tiny-production"
# API Gateway in front of the function: events in, replies out. POST /event takes an event as it is.
GATEWAY = """
import json, sys, uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
sys.path.insert(0, sys.argv[1])
preflight = json.loads(sys.argv[2])
import rest

class Gateway(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        context = {"requestId": str(uuid.uuid4())}
        if self.path == "/event":
            event = json.loads(body)
        else:
            event = {"httpMethod": "POST", "path": self.path, "headers": dict(self.headers), "body": body,
                     "isBase64Encoded": False, "requestContext": context}
        reply = rest.handler(event, None)
        self.answer(reply["statusCode"], reply["headers"], reply["body"].encode())

    def do_OPTIONS(self):
        self.answer(204, preflight, b"")

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    json: Any


@dataclass
class Front:
    """The function in a process of its own, as Lambda has it."""

    url: str
    process: subprocess.Popen[str]

    def ask(self, body: Any, **headers: str) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return post(f"{self.url}/predict", content, {"content-type": JSON, **headers})

    def event(self, **changed: Any) -> Reply:
        event = {"httpMethod": "POST", "headers": {"Content-Type": JSON}, "body": json.dumps(ROW), **changed}
        return post(f"{self.url}/event", json.dumps(event).encode(), {})

    def line(self) -> dict[str, Any]:
        """The next line of the log."""
        assert self.process.stdout is not None
        made: dict[str, Any] = json.loads(self.process.stdout.readline())
        return made


class Refuse(urllib.request.HTTPErrorProcessor):
    """Answers of any status are answers."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response


def post(url: str, content: bytes, headers: dict[str, str]) -> Reply:
    named = {"content-type": "", **headers}
    with urllib.request.build_opener(Refuse).open(urllib.request.Request(url, content, named), timeout=30) as answer:
        return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(answer.read()))


def called_by(cloud: SmallSageMaker, endpoint: str, role: str) -> dict[str, str]:
    """The environment of a role of infra/ that is for this endpoint; here each has a project of its name."""
    cloud.attach(identities(Project=endpoint, Endpoint=endpoint, StagingEndpoint=endpoint))
    return {**cloud.environment, **key(f"{endpoint}-{role}")}


@contextmanager
def front(cloud: SmallSageMaker, endpoint: str = ENDPOINT, **settings: str) -> Iterator[Front]:
    names = Stack(INFRA / "rest.yaml", AllowOrigin=settings.get("ALLOW_ORIGIN", "*"))
    parameters = names.template["Resources"]["Preflight"]["Properties"]["Integration"]["IntegrationResponses"][0]
    preflight = {k.removeprefix("method.response.header."): v.strip("'") for k, v in names.render(parameters["ResponseParameters"]).items()}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", GATEWAY, str(LAMBDA), json.dumps(preflight)],
        env=environment({**called_by(cloud, endpoint, "rest"), "ENDPOINT": endpoint, **settings}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Front(f"http://127.0.0.1:{int(process.stdout.readline())}", process)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
