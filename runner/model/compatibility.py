"""Whether a version answers the callers of another one: their signatures, compared.

Knows neither who calls nor what follows from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner.errors import Refused, RunnerError, Tampered
from runner.model.files import SIGNATURE
from runner.model.signature import Column, Signature, Unknown
from runner.model.versions import ModelVersion
from runner.records import checked, decode

FLAG = "--allow-schema-change"
NUMBERS = ("number", "integer")
SOME = 5  # categories that are named


@dataclass(frozen=True)
class Callers:
    """A version that is asked, and where."""

    version: ModelVersion
    where: str  # "serves at staging"
    unknown: Unknown = "error"


@dataclass(frozen=True)
class SchemaComparison:
    """`lost`: by the version that is asked, what those who ask it lose; `noted`: what few will notice."""

    label: str
    callers: Sequence[Callers]
    lost: dict[str, list[str]]
    noted: list[str]

    def permitted(self, *, allow: bool, say: Callable[[str], None]) -> dict[str, list[str]]:
        """What is lost, for the history, after `say` was told. Raises Refused where that is not allowed."""
        parts = []
        for asked, sentences in self.lost.items():
            where = " and ".join(callers.where for callers in self.callers if callers.version.label == asked)
            head = f"{self.label} does not answer all that {asked} answers, which {where}:"
            parts.append("\n  ".join([head, *sentences]))
        if parts and not allow:
            end = f"Tell those who call first. {FLAG} goes on all the same; the history says so."
            raise Refused("\n".join([*parts, end]))
        for sentence in (*parts, *self.noted):
            say(sentence)
        return self.lost


def compare(
    version: ModelVersion, callers: Iterable[Callers], signature_of: Callable[[ModelVersion], Signature]
) -> SchemaComparison:
    """What the version takes from those who call other versions."""
    others = [one for one in callers if one.version.label != version.label]
    lost: dict[str, list[str]] = {}
    noted: list[str] = []
    for other in others:
        sentences = lost.setdefault(other.version.label, [])
        try:
            before = signature_of(other.version)
        except RunnerError as error:
            sentences.append(f"What it answers is not known: {error}")
            continue
        after = signature_of(version)
        sentences += [one for one in differences(before, after, unknown=other.unknown) if one not in sentences]
        noted += [one for one in left_out(before, after) if one not in noted]
    return SchemaComparison(version.label, others, {asked: some for asked, some in lost.items() if some}, noted)


def differences(before: Signature, after: Signature, *, unknown: Unknown = "error") -> list[str]:
    """What callers of `before` send that `after` refuses or reads differently, and answers that mean something else.

    A removed column is no difference, as further columns are ignored; an added category is none either.
    """
    old, new = ({column.name: column for column in one.columns} for one in (before, after))
    sentences = [f"{name}: the column is needed now; requests without it get 400." for name in new if name not in old]
    for name, column in new.items():
        if name in old:
            sentences += _narrowed(old[name], column, unknown)
    if [name for name in old if name in new] != [name for name in new if name in old]:
        sentences.append(
            "The columns are in another order: CSV without a header and JSON arrays are read into wrong ones."
        )
    return sentences + _answers(before, after)


def left_out(before: Signature, after: Signature) -> list[str]:
    """What callers notice who send values without names."""
    names = {column.name for column in after.columns}
    gone = [column.name for column in before.columns if column.name not in names]
    verb, them = ("is", "it") if len(gone) == 1 else ("are", "them")
    sentence = (
        f"{_listed(gone)} {verb} not used any more: CSV without a header and JSON arrays that have {them} get 400."
    )
    return [sentence] if gone else []


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
        return _removed(old, new, unknown)
    if was == now or now == "text" or (was, now) == ("integer", "number"):
        return []
    if (was, now) == ("number", "integer"):
        return [f"{name}: is an integer, was a number; 12.5 is scored by a model that has seen whole numbers alone."]
    refused = {
        "category": f"other values than {_listed(new.categories or [])}",
        "boolean": "anything but true, false, 1 and 0",
    }.get(now, "true and false" if was == "boolean" else "what is not a number")
    if was == "category" and now in NUMBERS:
        refused = _listed(_refused(new, old.categories or [])) or refused
    end = "are scored as missing" if now == "category" and unknown == "missing" else "get 400"
    is_, was_ = (f"{'an' if kind == 'integer' else 'a'} {kind}" for kind in (now, was))
    return [f"{name}: is {is_}, was {was_}; requests with {refused} {end}."]


def _removed(old: Column, new: Column, unknown: Unknown) -> list[str]:
    gone = _refused(new, old.categories or [])
    if not gone:
        return []
    end = "scored as missing" if unknown == "missing" else "refused with 400"
    many, verb = ("is not a category", "is") if len(gone) == 1 else ("are not categories", "are")
    return [f"{new.name}: {_listed(gone)} {many} any more and {verb} {end}."]


def _refused(column: Column, texts: Iterable[str]) -> list[str]:
    """Those that the column does not take, by the code that reads requests."""
    from runner.scoring import inference  # numpy

    reader = inference.ColumnReader(msgspec.to_builtins(column), "error")
    refused = []
    for text in texts:
        try:
            reader.number(text, 1)
        except inference.BadInput:
            refused.append(text)
    return refused


def _answers(before: Signature, after: Signature) -> list[str]:
    was, now = _answer(before), _answer(after)
    if was != now:
        return [f"Answers are {now}; they were {was}."]
    if before.target != after.target:
        return [f"Answers are about {after.target}; they were about {before.target}."]
    return []


def _answer(signature: Signature) -> str:
    if isinstance(signature.sample_prediction, list):
        count, labels = len(signature.sample_prediction), signature.labels
        return f"one of {f'{count} classes' if labels is None else _listed([repr(one) for one in labels], count)}"
    if signature.positive is not None:
        return f"the probability of {signature.positive!r}"
    return "a probability" if signature.objective == "binary:logistic" else "a number"


def _listed(texts: Sequence[str], most: int = SOME) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
