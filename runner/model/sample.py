"""A model folder's sample record as a request, and the answer that it has on record."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from runner.errors import Refused


def sample_body(signature: Mapping[str, Any]) -> bytes:
    """The request whose answer the model folder has on record, as JSON."""
    return json.dumps([signature["sample_request"]]).encode()


def check_answer(signature: Mapping[str, Any], answer: bytes, where: str) -> None:
    """Raises Refused where the answer to `sample_body`, as text/csv, is not the recorded prediction."""
    expected = signature["sample_prediction"]
    expected_numbers = expected if isinstance(expected, list) else [expected]
    names = [] if isinstance(expected, list) else [str(label) for label in signature.get("labels") or ()]
    try:
        fields = next(csv.reader(io.StringIO(answer.decode(), newline="")), [])
        numbers = [float(names.index(field) if field in names else field) for field in fields]
    except (ValueError, csv.Error):
        numbers = []
    if len(numbers) != len(expected_numbers) or not all(
        math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
        for one, other in zip(numbers, expected_numbers, strict=True)
    ):
        raise Refused(f"{where} answers {answer[:80]!r} to its sample record; {expected} is recorded.")
