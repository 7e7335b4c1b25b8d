"""Which API call an HTTP request is: service, action, parameters and caller, read with botocore's service models."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import botocore.session
from botocore.model import OperationModel, ServiceModel

CLIENT_KEY = "CLIENTKEY"  # the tests and the programs they start
JOB_KEY = "JOBKEY"  # programs inside a container
SERVICE_KEY = "SERVICEKEY"  # the service itself: inputs, outputs, logs
ACCOUNT = "123456789012"

# signing name -> name of the model in botocore
MODELS = {"monitoring": "cloudwatch"}
RUNTIME_PATHS = re.compile(r"/endpoints/[^/]+/(invocations|async-invocations)")


@dataclass
class Call:
    """One recorded API call; `status` is 0 where the connection was closed without an answer."""

    service: str
    action: str
    parameters: dict[str, Any]
    access_key: str
    status: int = 0
    time: float = field(default_factory=time.time)
    error: str | None = None
    arn: str = ""  # the caller's
    identity: str = ""  # what comes after the access key's first point; "" for the account's administrator


@functools.cache
def load_model(service: str) -> ServiceModel | None:
    try:
        return botocore.session.get_session().get_service_model(MODELS.get(service, service))
    except Exception:  # a service botocore does not know is recorded without its action
        return None


@dataclass(frozen=True)
class Route:
    """How one operation of a REST service is recognised."""

    operation: OperationModel
    method: str
    path: re.Pattern[str]
    query: dict[str, str]
    needed: tuple[str, ...]  # names in the query or headers that only this operation has

    @property
    def weight(self) -> tuple[int, int, int]:
        return len(self.query), len(self.needed), len(self.path.pattern)


@functools.cache
def list_routes(service: str) -> tuple[Route, ...]:
    model = load_model(service)
    if model is None:
        return ()
    routes = []
    for name in model.operation_names:
        operation = model.operation_model(name)
        path, _, query = operation.http.get("requestUri", "/").partition("?")
        pattern = re.sub(r"\{(\w+)\+\}", r"(?P<\1>.+)", re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
        shape = operation.input_shape
        needed = []
        if shape is not None:
            for member in shape.required_members:
                place = shape.members[member].serialization
                if place.get("location") in ("header", "querystring"):
                    needed.append(place["name"].lower())
        routes.append(
            Route(
                operation,
                operation.http.get("method", "POST"),
                re.compile(pattern.rstrip("/") + "/?"),
                dict(parse_qsl(query, keep_blank_values=True)),
                tuple(needed),
            )
        )
    return tuple(sorted(routes, key=lambda route: route.weight, reverse=True))


def read_headers(environ: dict[str, Any]) -> dict[str, str]:
    headers = {key[5:].replace("_", "-").lower(): value for key, value in environ.items() if key.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        headers["content-type"] = environ["CONTENT_TYPE"]
    return headers


def read_call(environ: dict[str, Any]) -> Call | None:
    """The API call of a request, or None where it is not signed. Leaves the body readable."""
    call = parse_call(environ)
    if call is not None:
        call.access_key, _, call.identity = call.access_key.partition(".")
    return call


def parse_call(environ: dict[str, Any]) -> Call | None:
    headers = read_headers(environ)
    signed = re.search(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/aws4_request", headers.get("authorization", ""))
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    if signed is not None:
        access_key, service = signed.group(1), signed.group(2).lower()
    elif "X-Amz-Credential" in query:  # a presigned address
        access_key, service = query["X-Amz-Credential"].split("/")[0], "s3"
    else:
        return None
    if service == "sagemaker" and RUNTIME_PATHS.match(environ["PATH_INFO"]):
        service = "sagemaker-runtime"
    target = headers.get("x-amz-target")
    if target:
        return Call(service, target.rpartition(".")[2], read_json(read_body(environ)), access_key)
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        form = dict(parse_qsl(read_body(environ).decode(), keep_blank_values=True))
        action = form.pop("Action", "")
        form.pop("Version", None)
        return Call(service, action, form, access_key)
    action, parameters = match_route(service, environ["REQUEST_METHOD"], environ, headers, query)
    return Call(service, action, parameters, access_key)


def match_route(
    service: str, method: str, environ: dict[str, Any], headers: dict[str, str], query: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    path = unquote(environ.get("RAW_URI", "").partition("?")[0]) or environ["PATH_INFO"]
    if service == "s3":  # addresses are path-style here; the model leaves the bucket to the host name
        bucket, slash, key = path.lstrip("/").partition("/")
        path = f"/{bucket}{slash}{key}".rstrip("/") if not key else path
    present = {name.lower() for name in query} | set(headers)
    for route in list_routes(service):
        if route.method != method or any(query.get(name) != value for name, value in route.query.items()):
            continue
        found = route.path.fullmatch(path)
        if found is None or any(name not in present for name in route.needed):
            continue
        return route.operation.name, collect(route.operation, found, headers, query)
    return f"{method} {path}", dict(query)


def collect(
    operation: OperationModel, found: re.Match[str], headers: dict[str, str], query: dict[str, str]
) -> dict[str, Any]:
    shape = operation.input_shape
    if shape is None:
        return {}
    parameters: dict[str, Any] = {}
    groups = found.groupdict()
    for name, member in shape.members.items():
        place = member.serialization
        where, key = place.get("location"), place.get("name", name)
        if where == "uri" and groups.get(key):
            parameters[name] = groups[key]
        elif where == "querystring" and key in query:
            parameters[name] = query[key]
        elif where == "header" and key.lower() in headers:
            parameters[name] = headers[key.lower()]
    return parameters


def read_body(environ: dict[str, Any]) -> bytes:
    """The request's body, which stays readable for whoever comes next."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body: bytes = environ["wsgi.input"].read(length) if length else b""
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def read_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {"_body": base64.b64encode(body).decode()}
    return found if isinstance(found, dict) else {"_body": found}
