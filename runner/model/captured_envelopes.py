"""SageMaker's data capture, read as `Captured`: envelopes that have request and answer as CSV, JSON or base64.

{"captureData": {"endpointInput": {"observedContentType": …, "mode": "INPUT", "data": …, "encoding": "CSV"},
                 "endpointOutput": {…}},
 "eventMetadata": {"eventId": …, "inferenceTime": "2026-11-29T12:00:00Z"}, "eventVersion": "0"}

https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html. An envelope says neither
version nor seconds. The request is read by the version's own reader, as when it was answered.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.model.captured import Captured, time_text
from runner.model.served import at_target, since
from runner.model.versions import ModelVersion, Registry

if TYPE_CHECKING:
    from runner.scoring.inference import Scorer


class Envelopes:
    """Implements `runner.model.captured.EnvelopeReader` for one target, whose versions are those of its history."""

    def __init__(self, registry: Registry, target: str, model_folder: Callable[[ModelVersion], Path]) -> None:
        self._registry, self._target, self._model_folder = registry, target, model_folder
        self._scorers: dict[str, Scorer] = {}

    def read(self, envelope: dict[str, Any]) -> Captured:
        """Raises ValueError where it is not an envelope, or no version served at its time."""
        try:
            data, event = envelope["captureData"], envelope["eventMetadata"]
            time = time_text(str(event["inferenceTime"]))
            event_id = str(event.get("inferenceId") or event["eventId"])
            body, kind = _content(data["endpointInput"])
            answer, answer_kind = _content(data["endpointOutput"]) if "endpointOutput" in data else (b"", "")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The envelope lacks {error}.") from error
        label = _label(answer) or self._served(time)
        scorer = self._scorer(label)
        return _captured(scorer, body, kind, answer, answer_kind, facts=(time, label, event_id))

    @cached_property
    def _history(self) -> list[tuple[str, str]]:
        """(since when, NAME/VERSION or "" for nothing), oldest first."""
        events = at_target(self._registry, self._target)
        return [(since(one), "" if one.kind == "removed" else f"{one.name}/{one.version}") for one in events]

    def _served(self, time: str) -> str:
        """The version by the history. Before a change is in it, the new version has answered its sample already."""
        second = f"{time[:19]}.999Z"  # an envelope's time has no fractions
        now, later = "", ""
        for began, label in self._history:
            if began <= second:
                now = label
            elif label and not later:
                later = label
        if not now and not later:
            raise ValueError(f"Nothing was served at {self._target} at {time}.")
        return now or later

    def _scorer(self, label: str) -> Scorer:
        from runner.model.files import check_bytes
        from runner.scoring.inference import Scorer  # numpy

        if label not in self._scorers:
            name, _, number = label.partition("/")
            version = self._registry.get(name, int(number))
            files = check_bytes(version, self._model_folder(version))
            self._scorers[label] = Scorer(files, unknown="missing", model=label)
        return self._scorers[label]


def _captured(
    scorer: Scorer, body: bytes, kind: str, answer: bytes, answer_kind: str, *, facts: tuple[str, str, str]
) -> Captured:
    from runner.scoring.inference import BadInput

    refusal = _refusal(answer)
    try:
        table = scorer.table(body, kind)
    except BadInput as error:
        return Captured(*facts, status=error.status, error=refusal or str(error))
    if refusal or not answer:
        # the sentence stands in the answer; without one the container failed
        return Captured(*facts, status=400 if refusal else 500, error=refusal or "No answer was captured.")
    rows = [list(row) for row in table]
    scores = _scores(scorer, answer, answer_kind)
    if scores is None:
        scores = scorer.score(table).tolist()
    if len(scores) != len(rows):
        raise ValueError(f"The answer has {len(scores)} scores of {len(rows)} records.")
    return Captured(*facts, status=200, columns=tuple(scorer.names), rows=rows, scores=scores)


def _content(part: dict[str, Any]) -> tuple[bytes, str]:
    """The bytes of a request or an answer, and their content type."""
    kind = str(part.get("observedContentType") or "application/json")  # as an endpoint takes a request without one
    data = part["data"]
    if not isinstance(data, str):
        raise ValueError("An envelope's data is text.")
    return base64.b64decode(data, validate=True) if part["encoding"] == "BASE64" else data.encode(), kind


def _label(answer: bytes) -> str:
    """NAME/VERSION, where the answer says it."""
    read = _read(answer)
    label = read.get("model") if isinstance(read, dict) else None
    name, _, number = label.partition("/") if isinstance(label, str) else ("", "", "")
    return f"{name}/{number}" if name and number.isdecimal() else ""


def _refusal(answer: bytes) -> str:
    read = _read(answer)
    return str(read["error"]) if isinstance(read, dict) and "error" in read and "predictions" not in read else ""


def _read(answer: bytes) -> Any:
    try:
        return json.loads(answer) if answer[:1] == b"{" else None
    except ValueError:  # JSON lines
        return None


def _scores(scorer: Scorer, answer: bytes, kind: str) -> list[Any] | None:
    """What was answered; None where that does not say each class's, so that the request is scored again."""
    text = answer.decode()
    if kind.startswith("text/csv"):
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        if scorer.several:
            return [[float(one) for one in row] for row in rows] if rows and len(rows[0]) > 1 else None
        return [float(row[0]) for row in rows]
    if scorer.several:
        return None
    if "jsonlines" in kind:
        items = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        items = json.loads(text)["predictions"]
    return [float(item["probability"] if scorer.probable else item["prediction"]) for item in items]
