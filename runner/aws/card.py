"""A version's model card as a model package has it: what the notebook wrote, by its headings, and the run's metrics.

Keys and lengths are those of "Model package model card schema" in the service's guide. It knows fewer than the cards
that CreateModelCard makes: of the overview only who made the model, and its files.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, TypeVar

from runner.model.versions import NewVersion
from runner.records import Metric

Part = TypeVar("Part")
LONGEST_CARD = 100_000  # characters of its JSON; botocore: ModelCardContent
LONGEST_TEXT, LONGEST_DETAIL, LONGEST_METRIC, LONGEST_NAME = 2048, 1024, 255, 63
MOST_DATASETS = 15
MARGIN = 80  # characters that a metric or a text of the card may need around itself
HEADING = re.compile(r"#{1,2} +(.+?)[ #]*")
FENCES = ("```", "~~~")
# a heading, in small letters, and the key of the service for what stands below it; all others are details
USES, MORE = "intended_uses", "additional_information"
PLACES = {
    "purpose": (USES, "purpose_of_model"),
    "intended use": (USES, "intended_uses"),
    "intended uses": (USES, "intended_uses"),
    "factors": (USES, "factors_affecting_model_efficiency"),
    "risks": (USES, "explanations_for_risk_rating"),
    "business problem": ("business_details", "business_problem"),
    "stakeholders": ("business_details", "business_stakeholders"),
    "limits": (MORE, "caveats_and_recommendations"),
    "limitations": (MORE, "caveats_and_recommendations"),
    "caveats and recommendations": (MORE, "caveats_and_recommendations"),
    "ethical considerations": (MORE, "ethical_considerations"),
}


def card(new: NewVersion, *, archive: str) -> str:
    """The card's JSON on one line. `archive` is the address of the model; equal versions give equal text.

    Text that is too long for its key continues in details; what is too much for a card is left out, and the card says
    so.
    """
    content: dict[str, Any] = {
        "model_overview": {"model_creator": printable(new.created_by)[:LONGEST_DETAIL], "model_artifact": [archive]}
    }
    if new.sources:
        datasets = [f"{key} sha256:{sha256}"[:LONGEST_DETAIL] for key, sha256 in sorted(new.sources.items())]
        content["training_details"] = {"training_job_details": {"training_datasets": datasets[:MOST_DATASETS]}}
    details = {"Run": new.run, "Model": f"sha256:{new.sha256}", **({"Commit": new.commit} if new.commit else {})}
    rest: list[tuple[str, str]] = []
    for title, text in _sections(printable(new.card)):
        group, key = PLACES.get(title.lower(), ("", ""))
        if key and key not in content.get(group, {}):
            first, *text_left = _pieces(text, LONGEST_TEXT)
            content.setdefault(group, {})[key] = first
            text = "".join(text_left)
        rest += [(title[:LONGEST_NAME], piece) for piece in _pieces(text, LONGEST_DETAIL)]
    content.setdefault(MORE, {})["custom_details"] = details
    left_out = (
        f"SageMaker keeps {LONGEST_CARD:,} characters of a card. All of it is in the executed notebook of {new.run}."
    )
    room = LONGEST_CARD - len(json.dumps(content)) - len(left_out) - MARGIN
    metrics, room = _fitting([_metric(*item) for item in sorted(new.metrics.items())], room)
    if metrics:  # an evaluation for each step that has recorded something
        content["evaluation_details"] = [
            {"name": step, "metric_groups": [{"name": "metrics", "metric_data": [entry for _, entry in of_step]}]}
            for step, of_step in groupby(metrics, key=lambda item: item[0])
        ]
    texts, room = _fitting(rest, room)
    for title, piece in texts:
        names = (title, *(f"{title} ({n})" for n in range(2, len(details) + 3)))
        details[next(name for name in names if name not in details)] = piece
    if room < 0:
        details["Left out"] = left_out
    return json.dumps(content)


def _fitting(parts: Sequence[Part], room: int) -> tuple[list[Part], int]:
    """The first parts that fit into so many characters, and how many are left: negative where something did not fit."""
    fitting = []
    for part in parts:
        room -= len(json.dumps(part)) + MARGIN
        if room < 0:
            break
        fitting.append(part)
    return fitting, room


def _metric(name: str, metric: Metric) -> tuple[str, dict[str, Any]]:
    """The step that has recorded it, and the metric."""
    step, _, in_step = name.partition(".")
    notes = [] if metric.better is None else [f"{metric.better} is better"]
    if metric.low is not None and metric.high is not None:
        notes.insert(0, f"between {metric.low:.6g} and {metric.high:.6g}")
    finite = math.isfinite(metric.value)  # JSON has no other numbers
    entry = {
        "name": (in_step or name)[:LONGEST_METRIC],
        "type": "number" if finite else "string",
        "value": metric.value if finite else str(metric.value),
        **({"notes": ", ".join(notes)} if notes else {}),
    }
    return step[:LONGEST_NAME] or "run", entry


def _sections(markdown: str) -> Iterator[tuple[str, str]]:
    """(heading, what stands below it) of the first two levels, without those that have nothing below."""
    title, lines, fenced = "Card", list[str](), False
    for line in markdown.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith(FENCES)
        heading = None if fenced else HEADING.fullmatch(line.rstrip())
        if heading is None:
            lines.append(line)
            continue
        if text := "".join(lines).strip():
            yield title, text
        title, lines = heading[1], []
    if text := "".join(lines).strip():
        yield title, text


def _pieces(text: str, longest: int) -> list[str]:
    """The text in parts of at most so many characters, broken between lines where that can be."""
    pieces = [""]
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), longest):
            part = line[start : start + longest]
            if len(pieces[-1]) + len(part) > longest:
                pieces.append("")
            pieces[-1] += part
    return [piece for piece in pieces if piece]


def printable(text: str) -> str:
    """The text's lines without what cannot be printed or takes two UTF-16 units, by which some count."""
    return "".join(c if c == "\n" or (unicodedata.category(c)[0] != "C" and c <= "\uffff") else " " for c in text)
