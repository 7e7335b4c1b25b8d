"""What a column of a table holds, guessed from its values: a kind, and in a few words what was seen.

Knows nothing of files, and nothing of the other columns but the decimal mark that they share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal

from runner.errors import counted
from runner.init.delimited import NUMBER

Kind = Literal["number", "category", "boolean", "date", "text", "key", "target", "ignore"]
COMMA_NUMBER = re.compile(r"[+-]?(\d+(,\d*)?|,\d+)([eE][+-]?\d+)?", re.ASCII)
GROUPED_NUMBER = re.compile(r"[^\d\s]?\s?[+-]?\d{1,3}([,. ']\d{3})+([.,]\d+)?|[$€£]\s?\d+([.,]\d+)?|[\d.,]+\s?[%€$£]")
CODE = re.compile(r"0\d+", re.ASCII)  # a post code, an account: its zeros count
MARKERS = (
    "NA",
    "N/A",
    "n/a",
    "na",
    "#N/A",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
    "none",
    "?",
    "-",
    ".",
    "--",
    "(null)",
)
DATE_FORMATS = (
    "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S%z", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
    "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%d/%m/%Y", "%m/%d/%Y",
    "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y",
    "%d/%m/%y", "%m/%d/%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y",
)  # fmt: skip
COMPACT_DATE, COMPACT_NAME = "%Y%m%d", re.compile(r"date|day|dt\b|tag|datum", re.I)
FEW, MANY = 50, 1_000  # values that are categories; that are where each has rows enough
ROWS_EACH = 20
LONG = 64  # characters, from which a text names nothing


@dataclass(frozen=True)
class Column:
    """`comment` says what was seen. `distinct` counts the values, without what is missing."""

    name: str
    kind: Kind
    comment: str
    distinct: int
    missing: int
    date_format: str = ""
    markers: tuple[str, ...] = ()  # words that stand for a missing number
    present: int = 0  # values that are not missing
    all_different: bool = False
    one_word: bool = False  # each is short, and without a blank
    counts_rows: bool = False


def decimal_comma(columns: Collection[Sequence[Any]]) -> bool:
    """Whether the numbers of these columns are written as 12,5."""
    comma = dot = 0
    for values in columns:
        texts = {value for value in values if isinstance(value, str) and value not in MARKERS}
        if texts and all(COMMA_NUMBER.fullmatch(text) for text in texts):
            comma += any("," in text for text in texts)
        elif texts and all(NUMBER.fullmatch(text) for text in texts):
            dot += any("." in text for text in texts)
    return comma > dot


def column(name: str, values: Sequence[Any], *, comma: bool = False) -> Column:
    """The column's kind; `comma`: decimal comma. A key and a target are for who knows the table."""
    present = [value for value in values if value is not None and value == value]
    missing = len(values) - len(present)
    if not present:
        return Column(name, "ignore", "all blank", 0, missing)
    types = {type(value) for value in present}
    if not types <= {str, bool, int, float, Decimal, date, datetime}:
        kind_name = next(kind.__name__ for kind in types - {str, bool, int, float, Decimal, date, datetime})
        return Column(name, "ignore", f"holds values of type {kind_name}, which no record has", 0, missing)
    counts = Counter(present)
    facts = _Facts(name, present, counts, missing)
    if len(counts) == 1 and not missing:
        return facts.column("ignore", f"always {_shown(present[0])}")
    if types == {bool}:
        return facts.column("boolean", _values(counts))
    if types <= {int, float, Decimal}:
        return _number(facts, [float(value) for value in present], ())
    if types <= {date, datetime}:
        return facts.column("date", f"{min(present)} to {max(present)}", date_format=_typed_format(types))
    return _text(facts, comma)


def number(text: Any, *, comma: bool = False) -> float | None:
    """The value as a number; None where it is none, or no value."""
    if isinstance(text, str):
        pattern = COMMA_NUMBER if comma else NUMBER
        return float(text.replace(",", ".") if comma else text) if pattern.fullmatch(text) else None
    return float(text) if isinstance(text, int | float | Decimal) and text == text else None


@dataclass(frozen=True)
class _Facts:
    name: str
    present: list[Any]
    counts: Counter[Any]
    missing: int

    @property
    def all_different(self) -> bool:
        return len(self.counts) == len(self.present) and not self.missing

    def column(self, kind: Kind, comment: str, **more: Any) -> Column:
        blank = f"; {self.missing:,} blank" if self.missing else ""
        return Column(
            self.name, kind, comment + blank, len(self.counts), self.missing, present=len(self.present),
            all_different=self.all_different, **more,
        )  # fmt: skip


def _text(facts: _Facts, comma: bool) -> Column:
    texts = {value: str(value) for value in facts.counts}
    pattern = COMMA_NUMBER if comma else NUMBER
    others = {text for text in texts.values() if not pattern.fullmatch(text)}
    marked = {text for text in others if text in MARKERS}
    if others == marked and len(marked) < len(texts) and not any(map(CODE.fullmatch, texts.values())):
        date_format = _date_format(texts.values(), (COMPACT_DATE,)) if COMPACT_NAME.search(facts.name) else ""
        if not date_format:
            markers = tuple(sorted(marked))
            numbers = [float(texts[value].replace(",", ".")) for value in facts.present if texts[value] not in marked]
            return _number(facts, numbers, markers)
        return facts.column("date", f"format {date_format}", date_format=date_format)
    date_format = _date_format(texts.values(), DATE_FORMATS)
    if date_format:
        return facts.column(
            "date", f"format {date_format}{_also(date_format, texts.values())}", date_format=date_format
        )
    distinct, rows = len(facts.counts), len(facts.present)
    few = distinct <= FEW or (distinct <= MANY and distinct * ROWS_EACH <= rows)
    if few and (distinct <= 2 or 2 * distinct <= rows):
        return facts.column("category", _values(facts.counts))
    grouped = all(map(GROUPED_NUMBER.fullmatch, texts.values()))
    remark = "numbers with signs; write them plain" if grouped else f"e.g. {_shown(facts.present[0])}"
    many = "all different" if facts.all_different else f"{distinct:,} different"
    one_word = all(len(text) <= LONG and not any(map(str.isspace, text)) for text in texts.values())
    return facts.column("text", f"{many}, too many values; {remark}", one_word=one_word)


def _number(facts: _Facts, numbers: list[float], markers: tuple[str, ...]) -> Column:
    said = f"; {' and '.join(markers)} for missing" if markers else ""
    whole = all(value.is_integer() for value in numbers)
    counts_rows = whole and facts.all_different and not markers and _counts(numbers)
    shown = f"{min(numbers):.10g} to {max(numbers):.10g}{said}"
    return facts.column("number", shown, markers=markers, counts_rows=counts_rows)


def _counts(numbers: list[float]) -> bool:
    """Whether it is 0, 1, 2 … or 1, 2, 3 …; of a sample there are parts, each of which counts on."""
    steps = [after - before for before, after in pairwise(numbers)]
    return numbers[0] in (0, 1) and all(step >= 1 for step in steps) and sum(step > 1 for step in steps) < 8


def _date_format(texts: Collection[str], formats: Sequence[str]) -> str:
    """The first format by which all texts are dates of our days; "" for none."""
    some = list(texts)[:50]
    if not all(any(map(str.isdigit, text)) and 6 <= len(text) <= 40 for text in some):
        return ""
    return next((one for one in formats if _all_dates(some, one) and _all_dates(texts, one)), "")


def _all_dates(texts: Collection[str], date_format: str) -> bool:
    try:
        return all(1800 <= datetime.strptime(text, date_format).year <= 2200 for text in texts)
    except ValueError:
        return False


def _also(date_format: str, texts: Collection[str]) -> str:
    """A remark where day and month could be the other way round."""
    start = date_format[:5]
    other = {"%d/%m": "%m/%d", "%m/%d": "%d/%m", "%d-%m": "%m-%d"}.get(start)
    if other is None or not _all_dates(texts, other + date_format[5:]):
        return ""
    return f"; {other}{date_format[5:]} would fit too"


def _typed_format(types: set[type]) -> str:
    return "%Y-%m-%dT%H:%M:%S" if datetime in types else "%Y-%m-%d"


def _values(counts: Counter[Any]) -> str:
    shown = ", ".join(_shown(value) for value, _ in counts.most_common(4))
    return f"{counted(len(counts), 'value')}: {shown}{', …' if len(counts) > 4 else ''}"


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 30 else f"{text[:29]}…"
