"""The function behind the REST API of infra/rest.yaml: one raw record in, the endpoint's prediction out.

It knows no column and keeps no state: the record goes to the endpoint as it came, whose container reads it by the
model's own signature. Needs the standard library and boto3. The environment says ENDPOINT (its name), ALLOW_ORIGIN
(for CORS; "" for none), LARGEST_BODY_BYTES and TIMEOUT_S.
Its log has no byte of a record, and no answer has a fault's text.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

ENDPOINT = os.environ["ENDPOINT"]
ALLOW_ORIGIN = os.environ.get("ALLOW_ORIGIN", "")
LARGEST_BODY_BYTES = int(os.environ.get("LARGEST_BODY_BYTES", "65536"))
TIMEOUT_S = float(os.environ.get("TIMEOUT_S", "20"))
RETRY_AFTER_S = 2
LONGEST_SENTENCE = 1000
# once per container, not per request; whoever calls decides whether to ask again, within a time-out of their own
RUNTIME = boto3.client(
    "sagemaker-runtime",
    config=Config(connect_timeout=2, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1}),
)
BUSY = {  # of which asking again is the cure
    "InternalDependencyException",
    "InternalFailure",
    "ModelNotReadyException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}


class Refusal(Exception):
    """An answer other than a prediction. `reason` is one word for the log."""

    def __init__(self, status: int, said: str, reason: str, row: int | None = None, column: str | None = None) -> None:
        super().__init__(said)
        self.status, self.said, self.reason, self.row, self.column = status, said, reason, row, column


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Called with a request of API Gateway's proxy integration; never raises."""
    began = time.perf_counter()
    request = str((event.get("requestContext") or {}).get("requestId") or getattr(context, "aws_request_id", ""))
    line: dict[str, Any] = {"request": request, "status": 200}
    try:
        made = score(record(event))
        line["model"] = made.get("model")
        return answer(200, made, request)
    except Refusal as refusal:
        line |= {"status": refusal.status, "reason": refusal.reason}
        body = {"error": refusal.said, "row": refusal.row, "column": refusal.column, "request": request}
        return answer(refusal.status, body, request)
    except Exception as error:  # of ours; what it says could have a customer's values, so only its place is told
        line |= {"status": 500, "reason": type(error).__name__, "where": places(error)}
        return answer(500, {"error": "This is a fault of the service.", "request": request}, request)
    finally:
        line["ms"] = round((time.perf_counter() - began) * 1000, 1)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def record(event: dict[str, Any]) -> str:
    """The record as JSON text, exactly as it came. Raises Refusal."""
    if event.get("httpMethod", "POST") != "POST":
        raise Refusal(405, "Send a record with POST.", "method")
    headers = {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "Send a record as application/json.", "content-type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "Content-Encoding is not supported; send the body as it is.", "content-encoding")
    body = event.get("body") or ""
    if len(body) > 2 * LARGEST_BODY_BYTES:  # as base64 it is a third longer than its bytes
        raise too_large()
    try:
        content = base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else body.encode()
        text = content.decode("utf-8-sig")
    except (binascii.Error, UnicodeError):
        raise Refusal(400, "The body is not UTF-8.", "not-utf8") from None
    if len(content) > LARGEST_BODY_BYTES:
        raise too_large()
    if not text.strip():
        raise Refusal(400, "The body is empty; send a record, a JSON object.", "empty")
    try:
        found = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON.", "not-json") from None
    if not isinstance(found, dict):
        what = "a list" if isinstance(found, list) else "not an object"
        raise Refusal(400, f"The body is {what}; send one record, a JSON object.", "not-a-record")
    return text


def score(text: str) -> dict[str, Any]:
    """The endpoint's prediction of the record, with `probability` for a class. Raises Refusal."""
    try:
        reply = RUNTIME.invoke_endpoint(
            EndpointName=ENDPOINT,
            # a list of one: as it is, an object with the key "instances" would be several records
            Body=f"[{text}]".encode(),
            ContentType="application/json",
            Accept="application/json",
        )
        content = reply["Body"].read()
    except (ReadTimeoutError, ConnectTimeoutError):
        raise Refusal(504, "The model did not answer in time.", "time-out") from None
    except ClientError as error:
        raise refusal_of(error) from None
    except BotoCoreError as error:  # no connection, or one that broke
        raise busy(type(error).__name__) from None
    try:
        said = json.loads(content)
        (first,) = said["predictions"]
        made = {name: first[name] for name in ("prediction", "probability") if name in first}
        return {"prediction": made.pop("prediction"), **made, "model": str(said["model"])}
    except (ValueError, KeyError, TypeError):
        raise Refusal(502, "The model's answer could not be read.", "bad-answer") from None


def refusal_of(error: ClientError) -> Refusal:
    """What InvokeEndpoint's error means for who asked."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "ModelError":
        return refusal_of_model(error.response)
    if code == "ValidationError":  # the endpoint is not there, or not yet
        return busy("no-endpoint")
    if code in BUSY or status >= 500:
        return busy(code)
    return Refusal(500, "This is a fault of the service.", code)


def refusal_of_model(response: Any) -> Refusal:
    """Of the container's own answer: its sentence about the record is passed on, and nothing else."""
    status = int(response.get("OriginalStatusCode") or 0)
    if not 400 <= status < 500 or status in (408, 429):
        return busy(f"model-{status}")
    reason = f"model-{status}"
    if status == 413:
        return Refusal(413, "The record is larger than the model takes.", reason)
    try:
        said = json.loads(response.get("OriginalMessage") or "")
        sentence, row, column = said["error"], said.get("row"), said.get("column")
        if not isinstance(sentence, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):  # a container that is not ours
        return Refusal(400, "The model refuses the record.", reason)
    row, column = row if isinstance(row, int) else None, column if isinstance(column, str) else None
    return Refusal(400, sentence[:LONGEST_SENTENCE], reason, row, column)


def busy(reason: str) -> Refusal:
    return Refusal(503, "The model cannot answer now; ask again.", reason)


def too_large() -> Refusal:
    return Refusal(413, f"The body is larger than {LARGEST_BODY_BYTES} bytes.", "too-large")


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def answer(status: int, body: dict[str, Any], request: str) -> dict[str, Any]:
    """What API Gateway sends."""
    headers = {"content-type": "application/json", "cache-control": "no-store", "x-request-id": request}
    if status == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if status == 405:
        headers["allow"] = "POST"
    if ALLOW_ORIGIN:
        headers["access-control-allow-origin"] = ALLOW_ORIGIN
        headers["access-control-expose-headers"] = "x-request-id, retry-after"
        if ALLOW_ORIGIN != "*":
            headers["vary"] = "origin"
    return {"statusCode": status, "headers": headers, "body": json.dumps(body), "isBase64Encoded": False}


def places(error: BaseException) -> list[str]:
    """The last lines of code it went through."""
    found, at = [], error.__traceback__
    while at is not None:
        found.append(f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}")  # noqa: PTH119 - pathlib takes longer to import than all of this
        at = at.tb_next
    return found[-4:]
