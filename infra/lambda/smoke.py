"""What infra/deploy.yaml asks of an endpoint after a deployment; leaves with 1 where an answer is not as it has to be.

    python infra/lambda/smoke.py ENDPOINT NAME/VERSION openapi.json

The OpenAPI file of `runner rest` has the model's sample record and what it scored when it was saved. The endpoint must
score it alike whatever the order of its keys, and say which version it is; and refuse a record that lacks a column.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any


def smoke(endpoint: str, model: str, described: dict[str, Any]) -> list[str]:
    """What is wrong, in sentences."""
    os.environ["ENDPOINT"] = endpoint
    import rest  # the very code that will stand in front of the endpoint; it reads ENDPOINT when imported

    scoring = described["paths"]["/predict"]["post"]
    sample = scoring["requestBody"]["content"]["application/json"]["example"]
    expected = scoring["responses"]["200"]["content"]["application/json"]["example"]
    found: list[str] = []
    records = {
        "the sample": sample,
        "the sample with its keys the other way round": dict(reversed(sample.items())),
        "the sample with a further column": {**sample, "no column of the model": [1]},
    }
    for name, record in records.items():
        status, said = ask(rest.handler, record)
        if status != 200:
            found.append(f"{name}: status {status}, {said.get('error')}")
        elif said["model"] != model:
            found.append(f"{name}: {said['model']} answers instead of {model}")
        elif not alike(said, expected):
            found.append(f"{name}: {said} instead of {expected}")
    status, said = ask(rest.handler, dict(list(sample.items())[1:]))
    if status != 400:
        found.append(f"a record that lacks a column: status {status} instead of 400")
    return found


def ask(handler: Any, record: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    event = {"httpMethod": "POST", "headers": {"content-type": "application/json"}, "body": json.dumps(record)}
    reply = handler(event, None)
    return reply["statusCode"], json.loads(reply["body"])


def alike(said: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Equal, but for the last digits of numbers."""
    return said.keys() == expected.keys() and all(
        math.isclose(value, expected[name], rel_tol=1e-5, abs_tol=1e-6)
        if isinstance(value, float)
        else value == expected[name]
        for name, value in said.items()
    )


if __name__ == "__main__":
    endpoint, model, file = sys.argv[1:]
    wrong = smoke(endpoint, model, json.loads(Path(file).read_text(encoding="utf-8")))
    sys.stderr.write("".join(f"{one}\n" for one in wrong) or f"{endpoint} serves {model} as it should\n")
    sys.exit(1 if wrong else 0)
