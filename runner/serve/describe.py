"""What is served, said to people and to programs: the page at `/`, and OpenAPI."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import __version__, escape
from runner.model.versions import ModelVersion
from runner.scoring.inference import CONTENT_TYPES

if TYPE_CHECKING:
    from runner.scoring.inference import Scorer

TEMPLATE = Path(__file__).with_name("page.html")
REFUSALS = {
    "400": "The records cannot be scored: what is wrong, in which row (from 1) and column.",
    "401": "The token is missing or wrong.",
    "406": "None of the accepted content types can be given.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The content type is not one that is read.",
    "421": "The Host is not a name of this machine, and no token is asked for.",
    "503": "Too many connections are open or too many large requests under way; try again after Retry-After seconds.",
}


def page(scorer: Scorer, version: ModelVersion) -> tuple[str, str]:
    """The HTML, and the policy that lets a browser load nothing but what is in it."""
    facts = {
        "run": version.run,
        "approved by": f"{version.decided_by or '–'}: {version.reason or '–'}",
        "registered": f"{version.created[:16].replace('T', ' ')} UTC, by {version.created_by}",
        "answer": _predicts(scorer),
        "bytes": f"sha256 {version.sha256}",
    }
    metrics = "".join(
        f"<tr><th scope=row>{escape.html(name)}</th><td>{metric.value:.4g}</td>"
        f"<td>{'–' if metric.low is None else f'{metric.low:.4g} to {metric.high:.4g}'}</td></tr>"
        for name, metric in sorted(version.metrics.items())
    )
    model = {
        "columns": [
            {"name": column.name, "kind": column.kind, "categories": column.known} for column in scorer.columns
        ],
        "sample": sample_of(scorer),
        "predicts": _predicts(scorer),
    }
    filled = TEMPLATE.read_text(encoding="utf-8")
    for name, value in {
        "name": escape.html(scorer.model),
        "description": escape.html(version.description),
        "facts": "".join(f"<dt>{escape.html(k)}</dt><dd>{escape.html(v)}</dd>" for k, v in facts.items()),
        "metrics": metrics,
        "model": json.dumps(model).replace("<", "\\u003c"),
    }.items():
        filled = filled.replace(f"[[{name}]]", value)
    hashes = {tag: _hash(filled.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]) for tag in ("script", "style")}
    policy = f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; img-src data:"
    return filled, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def sample_of(scorer: Scorer) -> dict[str, Any]:
    """The recorded record in the model's order, as an array of its values has to be."""
    return {name: scorer.signature["sample_request"][name] for name in scorer.names}


def openapi(scorer: Scorer, version: ModelVersion, body_bytes: int) -> dict[str, Any]:
    """OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.1.html"""
    sample = sample_of(scorer)
    records = {"type": "array", "items": {"$ref": "#/components/schemas/Record"}, "minItems": 1}
    instances = {"type": "object", "properties": {"instances": records}, "required": ["instances"]}
    single = {"$ref": "#/components/schemas/Record"}
    text = {"schema": {"type": "string"}, "example": _csv_line(scorer)}
    lines = {"schema": {"type": "string"}, "example": json.dumps(sample)}
    body = {kind: text if kind == "text/csv" else lines for kind in CONTENT_TYPES if kind != "application/json"}
    body["application/json"] = {"schema": {"anyOf": [instances, records, single]}, "example": {"instances": [sample]}}
    answer = {
        "application/json": {"schema": {"$ref": "#/components/schemas/Predictions"}},
        "text/csv": {"schema": {"type": "string", "description": f"{_csv_answer(scorer)}, a line a row."}},
        "application/jsonlines": {"schema": {"type": "string", "description": "A prediction a line."}},
    }
    refusals = {
        code: {"description": said, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
        for code, said in REFUSALS.items()
    }
    plain = {"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    scoring = {
        "summary": f"Score records, at most {body_bytes / 2**20:g} MB of them",
        "description": "CSV with or without a header (`text/csv; header=present` or `absent` where it cannot be told), "
        "then with one field per column in the model's order. Columns the model does not use are ignored.",
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "Scored, in the order of the rows", "content": answer}, **refusals},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{scorer.model}: {_predicts(scorer)}",
            "version": str(version.version),
            "description": f"{version.description}\n\nFrom run {version.run}. Served by runner {__version__}.".strip(),
        },
        "paths": {
            "/invocations": {"post": scoring},
            "/ping": {"get": {"summary": "200 when the model scored its sample", "responses": {"200": {"description": "Ready"}, "503": {"description": "Shutting down"}}}},
            "/metrics": {"get": {"summary": "Counters for Prometheus", "responses": plain}},
        },
        "components": {"schemas": {"Record": _record(scorer), "Predictions": _predictions(scorer), "Error": _ERROR}},
    }  # fmt: skip


_ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "string"},
        "row": {"type": ["integer", "null"], "minimum": 1},
        "column": {"type": ["string", "null"]},
    },
    "required": ["error"],
}


def _record(scorer: Scorer) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for column in scorer.columns:
        if column.kind == "category":
            known = {"enum": [*column.known, None]}
            properties[column.name] = {"description": f"One of {len(column.known)} categories, as text or number.", "anyOf": [known, {"type": ["string", "number"]}]}  # fmt: skip
        elif column.kind == "boolean":
            properties[column.name] = {"anyOf": [{"type": ["boolean", "null"]}, {"enum": [0, 1]}, {"type": "string"}]}
        elif column.kind == "text":
            properties[column.name] = {"type": ["string", "number", "null"], "description": "Any text."}
        else:
            properties[column.name] = {"type": ["number", "string", "null"], "description": f"A finite {column.kind}."}
    return {
        "type": "object",
        "properties": properties,
        "required": scorer.names,
        "additionalProperties": True,
        "example": sample_of(scorer),
        "description": "A raw record. null, or blank text, is a missing value.",
    }


def _predictions(scorer: Scorer) -> dict[str, Any]:
    several = {"enum": scorer.labels} if scorer.labels else {"type": "integer", "description": "The class's number."}
    number: dict[str, Any] = {"type": "number"}
    if isinstance(scorer.signature["sample_prediction"], list):
        number = {"type": "array", "items": number, "description": "The numbers that the model gives of one record."}
    prediction = several if scorer.several else {"type": "boolean"} if scorer.probable else number
    properties: dict[str, Any] = {"prediction": prediction}
    if scorer.probable or (scorer.several and isinstance(scorer.signature["sample_prediction"], list)):
        properties["probability"] = {"type": "number", "minimum": 0, "maximum": 1}
    one = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": one}, "model": {"type": "string"}},
        "required": ["predictions", "model"],
    }


def _predicts(scorer: Scorer) -> str:
    said = scorer.signature
    if scorer.labels:
        return f"Says which {said['target']} of {', '.join(map(str, scorer.labels))}."
    if scorer.several or not scorer.probable:
        return f"Predicts {said['target']} ({said['objective']})."
    label = "" if said.get("positive") is None else f" {said['positive']}"
    return f"Says ‘{said['target']}{label}’ from {100 * scorer.threshold:.4g} %."


def _csv_answer(scorer: Scorer) -> str:
    many = isinstance(scorer.signature["sample_prediction"], list)
    if scorer.several:
        return "The probability of each class, in their order" if many else "The class"
    return "The probability" if scorer.probable else "The numbers" if many else "The number"


def _csv_line(scorer: Scorer) -> str:
    sample = sample_of(scorer)
    fields = ["" if sample[name] is None else str(sample[name]) for name in scorer.names]
    return ",".join(f'"{field}"' if set(field) & set(',"\r\n') else field for field in fields)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
