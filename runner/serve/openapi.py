"""The REST front of infra/rest.yaml, said to programs: the schema by which it takes a record, and its OpenAPI file.

Pure: a signature and a version in, plain data out. What `runner serve` answers itself is in runner/serve/describe.py.
"""

from __future__ import annotations

from typing import Any, Literal

from runner.model.signature import Column, Signature
from runner.model.versions import ModelVersion

Authentication = Literal["api-key", "iam", "none"]
# what runner/scoring/inference.py reads as a number, or as missing; in the words that every dialect of patterns has
NUMBER = r"^[ \t]*([+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?)?[ \t]*$"
BOOLEAN = r"^[ \t]*([tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|[01](\.0*)?)?[ \t]*$"
REFUSALS = {
    "400": "No record, or one that the model cannot score: what is wrong, and in which column.",
    "403": "The key or signature is missing or wrong.",
    "413": "The body is larger than a record can be.",
    "415": "The content type is not application/json.",
    "429": "More requests than the plan allows. Ask again later.",
    "500": "A fault of the service.",
    "502": "The model's answer could not be read.",
    "503": "The model cannot answer now. Ask again after Retry-After seconds.",
    "504": "The model did not answer in time.",
}


def record_schema(signature: Signature) -> dict[str, Any]:
    """JSON schema of one raw record, in the draft that API Gateway reads.

    It refuses what no model would take: a missing column, a list in a column, text in a number's place. Categories are
    any text or number, so that a new one gets the model's sentence that names it; further columns are ignored. There is
    nothing but text in it, as CloudFormation makes text of numbers and truth values in an included file.
    """
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "title": "Record",
        "type": "object",
        "properties": {column.name: _property(column) for column in signature.columns},
        "required": [column.name for column in signature.columns],
    }


def outdated(schema: dict[str, Any], signature: Signature) -> str:
    """What of the schema is not as `record_schema` would have it; "" where it is the same."""
    wanted, said = record_schema(signature), []
    asked, asks = schema.get("required", []), wanted["required"]
    if lacking := [name for name in asks if name not in asked]:
        said.append(f"it lets {', '.join(lacking)} be left out")
    if more := [name for name in asked if name not in asks]:
        said.append(f"it asks for {', '.join(more)}")
    now = schema.get("properties", {})
    if other := [name for name in asks if name in now and now[name] != wanted["properties"][name]]:
        said.append(f"it takes other values for {', '.join(other)}")
    return " and ".join(said)


def openapi(
    signature: Signature, version: ModelVersion, *, url: str, authentication: Authentication = "api-key"
) -> dict[str, Any]:
    """OpenAPI 3.1 of the API at `url`: https://spec.openapis.org/oas/v3.1.1.html"""
    label = version.label
    record = {name: value for name, value in record_schema(signature).items() if name not in ("$schema", "title")}
    for column in signature.columns:
        record["properties"][column.name] |= _described(column)
    described = "A raw record. null, or blank text, is a missing value; columns the model does not use are ignored."
    sample = {column.name: signature.sample_request[column.name] for column in signature.columns}
    record |= {"description": described, "examples": [sample]}
    scored = {"description": "Scored", "headers": _HEADERS, "content": _json("Prediction", _sample(signature, label))}
    scoring: dict[str, Any] = {
        "operationId": "predict",
        "summary": "Score one record",
        "requestBody": {"required": True, "content": _json("Record", sample)},
        "responses": {"200": scored, **{code: _refusal(code, said) for code, said in REFUSALS.items()}},
    }
    schemes = {} if authentication == "none" else {"caller": _SCHEMES[authentication]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": _title(signature, label),
            "version": str(version.version),
            "description": version.description,
        },
        "servers": [{"url": url.rstrip("/")}],
        "security": [{name: []} for name in schemes],
        "paths": {"/predict": {"post": scoring}},
        "components": {
            "schemas": {"Record": record, "Prediction": _prediction(signature), "Error": _ERROR},
            **({"securitySchemes": schemes} if schemes else {}),
        },
    }


_HEADERS = {"x-request-id": {"description": "Quote it when you ask about an answer.", "schema": {"type": "string"}}}
_RETRY = {"retry-after": {"description": "Seconds.", "schema": {"type": "integer"}}}
_SCHEMES = {
    "api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "iam": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "AWS Signature Version 4, of the service execute-api.",
        "x-amazon-apigateway-authtype": "awsSigv4",
    },
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "A sentence that can be shown to people."},
        "row": {"type": ["integer", "null"]},
        "column": {"type": ["string", "null"], "description": "The record's column that is wrong."},
        "request": {"type": "string"},
    },
    "required": ["error"],
}


def _property(column: Column) -> dict[str, Any]:
    match column.kind:
        case "category" | "text":
            return {"type": ["string", "number", "boolean", "null"]}
        case "boolean":
            return {"type": ["boolean", "number", "string", "null"], "pattern": BOOLEAN}
        case _:
            return {"type": ["number", "string", "null"], "pattern": NUMBER}


def _described(column: Column) -> dict[str, Any]:
    known = column.categories or []
    if column.kind == "category":
        return {"description": f"One of {len(known)} categories, as text or number.", "examples": known}
    said = {"boolean": "True or false.", "integer": "A whole number.", "text": "Any text."}
    return {"description": said.get(column.kind, "A number.")}


def _prediction(signature: Signature) -> dict[str, Any]:
    """As an answer has it: `prediction` is a truth value, a class by its name or number, or what numbers there are."""
    kind: dict[str, Any] = {"type": "number"}
    if _is_several(signature):
        kind = {"enum": signature.labels} if signature.labels else {"type": "integer"}
    elif _is_binary(signature):
        kind = {"type": "boolean"}
    elif isinstance(signature.sample_prediction, list):
        kind = {"type": "array", "items": kind}
    probable = _is_binary(signature) or (_is_several(signature) and isinstance(signature.sample_prediction, list))
    chance = {"probability": {"type": "number", "minimum": 0, "maximum": 1}} if probable else {}
    properties = {"prediction": kind, **chance, "model": {"type": "string", "description": "NAME/VERSION"}}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _sample(signature: Signature, label: str) -> dict[str, Any]:
    """The answer that the sample record gets."""
    scored = signature.sample_prediction
    if _is_several(signature):
        best = max(range(len(scored)), key=scored.__getitem__) if isinstance(scored, list) else int(scored)
        chance = {"probability": scored[best]} if isinstance(scored, list) else {}
        return {"prediction": signature.labels[best] if signature.labels else best, **chance, "model": label}
    if _is_binary(signature) and not isinstance(scored, list):
        threshold = 0.5 if signature.threshold is None else signature.threshold
        return {"prediction": scored >= threshold, "probability": scored, "model": label}
    return {"prediction": scored, "model": label}


def _is_binary(signature: Signature) -> bool:
    return signature.positive is not None or signature.objective == "binary:logistic"


def _is_several(signature: Signature) -> bool:
    return signature.objective.startswith("multi:")


def _title(signature: Signature, label: str) -> str:
    positive = "" if signature.positive is None else f" = {signature.positive}"
    return f"{label}: {signature.target}{positive}"


def _json(schema: str, example: Any) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}}


def _refusal(code: str, said: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": said, "headers": _HEADERS | (_RETRY if code == "503" else {}), "content": content}
