"""Whether a version answers those who call another one: their signatures, compared.

Knows neither who calls nor what follows from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import Refused, RunnerError, Tampered
from runner.model.signature import Column, Signature, Unknown
from runner.model.versions import ModelVersion
from runner.records import checked, decode

SIGNATURE = "signature.json"
FLAG = "--allow-schema-change"
NUMBERS = ("number", "integer")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
SOME = 5  # categories that are named


@dataclass(frozen=True)
class Callers:
    """A version that is asked, and where."""

    version: ModelVersion
    where: str  # "serves at staging"
    unknown: Unknown = "error"

    @property
    def label(self) -> str:
        return f"{self.version.name}/{self.version.version}"


@dataclass(frozen=True)
class SchemaComparison:
    """`lost`: by the version that is asked, what those who ask it lose; `noted`: what few will notice."""

    label: str
    callers: Sequence[Callers]
    lost: dict[str, list[str]]
    noted: list[str]

    def permitted(self, *, allow: bool, say: Callable[[str], None]) -> dict[str, list[str]]:
        """What is lost, for the history, once it was said. Raises Refused where something is and that is not allowed."""
        parts = []
        for asked, sentences in self.lost.items():
            where = " and ".join(one.where for one in self.callers if one.label == asked)
            head = f"{self.label} does not answer all that {asked} answers, which {where}:"
            parts.append("\n  ".join([head, *sentences]))
        if parts and not allow:
            end = f"Tell those who call first. {FLAG} goes on all the same; the history says so."
            raise Refused("\n".join([*parts, end]))
        for said in (*parts, *self.noted):
            say(said)
        return self.lost


def compare(
    found: ModelVersion, callers: Iterable[Callers], signature_of: Callable[[ModelVersion], Signature]
) -> SchemaComparison:
    """What `found` takes from those who call other versions."""
    label = found.label
    others = [one for one in callers if one.label != label]
    lost: dict[str, list[str]] = {}
    noted: list[str] = []
    for one in others:
        try:
            before = signature_of(one.version)
        except RunnerError as error:
            lost.setdefault(one.label, []).append(f"What it answers is not known: {error}")
            continue
        after = signature_of(found)
        kept = lost.setdefault(one.label, [])
        kept += [said for said in differences(before, after, unknown=one.unknown) if said not in kept]
        noted += [said for said in left_out(before, after) if said not in noted]
    return SchemaComparison(label, others, {asked: said for asked, said in lost.items() if said}, noted)


def differences(before: Signature, after: Signature, *, unknown: Unknown = "error") -> list[str]:
    """What callers of `before` send that `after` refuses or reads otherwise, and answers that mean something else.

    A column that is left out is nothing, as further columns are ignored; a category more is nothing either.
    """
    old, new = ({column.name: column for column in one.columns} for one in (before, after))
    found = [f"{name}: the column is needed now; requests without it get 400." for name in new if name not in old]
    for name, column in new.items():
        if name in old:
            found += _narrowed(old[name], column, unknown)
    if [name for name in old if name in new] != [name for name in new if name in old]:
        found.append("The columns are in another order: CSV without a header and JSON arrays are read into wrong ones.")
    return found + _answers(before, after)


def left_out(before: Signature, after: Signature) -> list[str]:
    """What callers notice who send values without names."""
    names = {column.name for column in after.columns}
    gone = [column.name for column in before.columns if column.name not in names]
    one = len(gone) == 1
    said = f"{_listed(gone)} {'is' if one else 'are'} not used any more: CSV without a header and JSON arrays that have"
    return [f"{said} {'it' if one else 'them'} get 400."] if gone else []


def signature_in(folder: Path, version: ModelVersion) -> Signature:
    """The signature in the version's folder. Raises Tampered where it is not the one that was registered."""
    try:
        content = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise Tampered(f"{folder / SIGNATURE} cannot be read: {error.strerror}.") from error
    return registered(content, version, where=folder / SIGNATURE)


def registered(content: bytes, version: ModelVersion, *, where: str | Path) -> Signature:
    """The signature, if these are the bytes that were registered. Raises Tampered."""
    fact = (version.artifact.files or {}).get(SIGNATURE)
    if fact is None or hashlib.sha256(content).hexdigest() != fact.sha256:
        raise Tampered(f"{where} is not the signature that {version.label} was registered with.")
    return checked(decode(Signature, content, where=where), where=where)


def _narrowed(old: Column, new: Column, unknown: Unknown) -> list[str]:
    """What a column takes no more."""
    name, was, now = new.name, str(old.kind), str(new.kind)
    if was == now == "category":
        return _removed(name, old.categories or [], new.categories or [], unknown)
    if was == now or now == "text" or (was, now) == ("integer", "number"):
        return []
    if (was, now) == ("number", "integer"):
        return [f"{name}: is an integer, was a number; 12.5 is scored by a model that has seen whole numbers alone."]
    refused = {
        "category": f"other values than {_listed(new.categories or [])}",
        "boolean": "anything but true, false, 1 and 0",
    }.get(now, "true and false" if was == "boolean" else "what is not a number")
    if was == "category" and now in NUMBERS:
        refused = _listed([text for text in old.categories or [] if not NUMBER.fullmatch(text)]) or refused
    end = "are scored as missing" if now == "category" and unknown == "missing" else "get 400"
    is_, was_ = (f"{'an' if kind == 'integer' else 'a'} {kind}" for kind in (now, was))
    return [f"{name}: is {is_}, was {was_}; requests with {refused} {end}."]


def _removed(name: str, old: Sequence[str], new: Sequence[str], unknown: Unknown) -> list[str]:
    numbers = {float(text) for text in new if NUMBER.fullmatch(text)}  # 657, 657.0 and "657" are one
    gone = [text for text in old if text not in new and not (NUMBER.fullmatch(text) and float(text) in numbers)]
    if not gone:
        return []
    end = "scored as missing" if unknown == "missing" else "refused with 400"
    many = "is not a category" if len(gone) == 1 else "are not categories"
    return [f"{name}: {_listed(gone)} {many} any more and {'is' if len(gone) == 1 else 'are'} {end}."]


def _answers(before: Signature, after: Signature) -> list[str]:
    was, now = _answer(before), _answer(after)
    if was != now:
        return [f"Answers are {now}; they were {was}."]
    if before.target != after.target:
        return [f"Answers are about {after.target}; they were about {before.target}."]
    return []


def _answer(signature: Signature) -> str:
    labels = getattr(signature, "labels", None)
    if isinstance(signature.sample_prediction, list):
        count = len(signature.sample_prediction)
        return (
            f"one of {count} classes" if labels is None else f"one of {_listed([repr(one) for one in labels], count)}"
        )
    if signature.positive is not None:
        return f"the probability of {signature.positive!r}"
    return "a probability" if signature.objective == "binary:logistic" else "a number"


def _listed(texts: Sequence[str], most: int = SOME) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
