"""The errors this double answers with, and how each protocol of AWS writes them down."""

from __future__ import annotations

import json
from xml.sax.saxutils import escape

# what the services with XML answers call the same trouble
XML_NAMES = {
    "ThrottlingException": "Throttling",
    "InternalServerError": "InternalFailure",
    "ExpiredTokenException": "ExpiredToken",
    "AccessDeniedException": "AccessDenied",
}
S3_NAMES = {**XML_NAMES, "ThrottlingException": "SlowDown", "InternalServerError": "InternalError"}
STATUSES = {
    "AccessDeniedException": 403,
    "InternalServerError": 500,
    "InternalFailure": 500,
    "ServiceUnavailable": 503,
    "ModelError": 424,
}


class NotPermittedError(RuntimeError):
    """This machine refuses the namespaces and mounts which containers need; a fixture can skip on it."""


class ServiceError(Exception):
    """An answer of the service that is an error, as the client's SDK will raise it."""

    def __init__(self, code: str, message: str, *, status: int | None = None, **fields: object) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status or STATUSES.get(code, 400)
        self.fields = fields


def refuse(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def write_error(service: str, error: ServiceError) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of an error in the protocol of `service`."""
    status = error.status
    if service == "s3":
        code = S3_NAMES.get(error.code, error.code)
        if code == "SlowDown":
            status = 503
        text = f"<Error><Code>{code}</Code><Message>{escape(error.message)}</Message></Error>"
        return status, [("Content-Type", "application/xml")], text.encode()
    if service in ("iam", "sts"):
        code = XML_NAMES.get(error.code, error.code)
        text = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(error.message)}</Message></Error>"
        text = f"<ErrorResponse>{text}<RequestId>0</RequestId></ErrorResponse>"
        return status, [("Content-Type", "text/xml")], text.encode()
    body = {"__type": error.code, "message": error.message, "Message": error.message, **error.fields}
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("x-amzn-ErrorType", error.code)]
    return status, headers, json.dumps(body).encode()
