"""What is to be predicted: from the target's values whether it has two answers, several, or is a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from runner.errors import UsageError
from runner.init.look import MARKERS, number

Task = Literal["binary", "multiclass", "regression"]
MOST_CLASSES = 50
FEWEST = 5  # rows of an answer
CODES = 20  # whole numbers up to so many different ones, which may be names of classes
PAIRS = (  # (positive, negative), in small letters
    ("yes", "no"), ("y", "n"), ("true", "false"), ("true.", "false."), ("t", "f"), ("1", "0"), ("1", "-1"),
    ("+", "-"), ("positive", "negative"), ("pos", "neg"), ("ja", "nein"), ("oui", "non"), ("si", "no"), ("sí", "no"),
    ("bad", "good"), ("malignant", "benign"), ("m", "b"), ("fraud", "normal"), ("spam", "ham"), ("lost", "kept"),
    ("left", "stayed"), ("default", "paid"), (">50k", "<=50k"), (">50k.", "<=50k."), ("abnormal", "normal"),
)  # fmt: skip
MISSING = ("na", "n/a", "#n/a", "nan", "null", "(null)", "?")  # of MARKERS those that hardly name an answer
TARGET_NAMES = ("target", "label", "class", "outcome", "y")


@dataclass(frozen=True)
class Answer:
    """`positive` is the answer that a probability is of; `sure`: whether it follows from the words."""

    task: Task
    positive: str = ""
    sure: bool = True
    seen: str = ""


def answer(name: str, values: Sequence[Any], *, comma: bool) -> Answer:
    """What the target's values ask for. Raises UsageError where no model could learn it."""
    blank = [row for row, value in enumerate(values, start=1) if value is None or value != value]
    if len(blank) == len(values):
        raise UsageError(f"The target {name} is blank in every row. Name another column with --target.")
    if blank:
        refuse_blank(name, len(blank), blank[0], len(values))
    texts = [as_text(value) for value in values]
    counts = Counter(texts)
    numbers = [number(value, comma=comma) for value in counts]
    _refuse_missing(name, texts, [one for one, value in zip(counts, numbers, strict=True) if value is None])
    seen = ", ".join(f"{text} {count:,}" for text, count in counts.most_common(4))
    if len(counts) == 1:
        raise UsageError(f"The target {name} is {seen.partition(' ')[0]!r} in every row; there is nothing to predict.")
    if None in numbers:
        _refuse_alike(name, counts)
    if len(counts) == 2:
        _refuse_rare(name, counts)
        positive, sure = _positive(counts)
        return Answer("binary", positive, sure, seen)
    if None not in numbers and not (_whole(numbers) and len(counts) <= CODES and _are_codes(numbers)):
        plain = [value for value in numbers if value is not None]
        return Answer("regression", seen=f"{min(plain):.10g} to {max(plain):.10g}")
    if None in numbers and len(counts) > MOST_CLASSES:
        many = "all different texts" if len(counts) == len(values) else f"{len(counts):,} different texts"
        raise UsageError(
            f"The target {name} has {many}, for example {texts[0][:40]!r}: neither a number nor one of at most "
            f"{MOST_CLASSES} classes. Name another column with --target."
        )
    _refuse_rare(name, counts)
    return Answer("multiclass", seen=f"{len(counts)} classes: {seen}{', …' if len(counts) > 4 else ''}")


def refuse_blank(name: str, count: int, first: int, rows: int) -> NoReturn:
    """Raises UsageError for a target that is blank in so many of the rows; `first` counts from 1."""
    raise UsageError(
        f"The target {name} is blank in {count:,} of {rows:,} rows, first in row {first:,}. "
        "Leave those rows out of the table, or fill them in."
    )


def guessed_target(names: Sequence[str]) -> str:
    """The column that a person is asked about first: one named like a target, else the last."""
    for name in names:
        if name.strip().lower().rstrip("?") in TARGET_NAMES:
            return name
    return names[-1]


def as_text(value: Any) -> str:
    """An answer as it stands in columns.toml: 1 for 1.0, true for True."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_missing(name: str, texts: Sequence[str], words: Sequence[str]) -> None:
    """Raises UsageError for words such as NA, and for `-` or `none` beside numbers. `words` are no numbers."""
    beside_numbers = len(set(texts)) - len(words) > 1 and set(words) <= set(MARKERS)
    missing = [word for word in words if beside_numbers or word.lower() in MISSING]
    if missing:
        rows = [row for row, text in enumerate(texts, start=1) if text in missing]
        raise UsageError(
            f"The target {name} has {' and '.join(map(repr, missing))} in {len(rows):,} of {len(texts):,} rows, first "
            f"in row {rows[0]:,}: no value. Fill it in or leave those rows out; if it is an answer, use another word."
        )


def _refuse_alike(name: str, counts: Counter[str]) -> None:
    """Raises UsageError for answers that differ by capital letters alone; single letters may, where they are many."""
    folded: dict[str, list[str]] = {}
    for text in counts:
        folded.setdefault(text.casefold(), []).append(text)
    for alike in folded.values():
        if len(alike) > 1 and (len(alike[0]) > 1 or len(folded) <= 2):
            raise UsageError(
                f"The target {name} has {alike[0][:40]!r} in {counts[alike[0]]:,} rows and {alike[1][:40]!r} in "
                f"{counts[alike[1]]:,}. Write one answer in one way."
            )


def _refuse_rare(name: str, counts: Counter[str]) -> None:
    """Raises UsageError where fewer than two answers have rows enough; 01_data leaves rarer ones of several out."""
    enough = [text for text, count in counts.items() if count >= FEWEST]
    if len(enough) < 2:
        text, count = min(counts.items(), key=lambda item: item[1])
        raise UsageError(
            f"The target {name} has the answer {text[:40]!r} in {count} of {counts.total():,} rows; two answers need "
            f"{FEWEST} rows each, to learn from and to judge by. Bring more rows, or join answers."
        )


def _positive(counts: Counter[str]) -> tuple[str, bool]:
    """The answer by its word; where no word says it, the rarer one."""
    lowered = {text.strip().lower(): text for text in counts}
    for positive, negative in PAIRS:
        if set(lowered) == {positive, negative}:
            return lowered[positive], True
    return min(sorted(counts, reverse=True), key=lambda text: counts[text]), False


def _whole(numbers: Sequence[float | None]) -> bool:
    return all(value is not None and value.is_integer() for value in numbers)


def _are_codes(numbers: Sequence[float | None]) -> bool:
    """Whether a few whole numbers are names: 0, 1, 2 … or 1, 2, 3 … without a gap."""
    ordered = sorted(value for value in numbers if value is not None)
    return ordered[0] in (0, 1) and ordered == [ordered[0] + step for step in range(len(ordered))]
