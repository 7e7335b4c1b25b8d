"""columns.toml: what was seen in a table, a line a column, for people to correct and for notebooks to read."""

from __future__ import annotations

import json
import re

from runner.errors import counted
from runner.escape import visible
from runner.init.guess import Guess
from runner.init.look import Column

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
WIDEST = 28  # of a name, up to which the equals signs stand below each other
ABOUT = {
    "format": "csv, parquet or jsonl",
    "encoding": "of the file's text: utf-8, utf-16, cp1252, latin-1, …",
    "delimiter": "between two values",
    "decimal": '"." or ","',
    "missing": "these words are no number, but a missing one",
    "target": "what is to be predicted",
    "task": "binary, multiclass or regression",
    "positive": "the answer that a probability is of",
    "key": "tells the rows apart; the split goes by it",
}


def text(guess: Guess, file_name: str) -> str:
    """The file's whole text, in TOML. Names and comments may hold anything."""
    sample = guess.sample
    rows = counted(sample.rows, "row")
    seen = rows if sample.whole else f"{'' if sample.counted else 'about '}{rows}, some of which were looked at"
    lines = [
        f"# What was seen in {_comment(file_name)}: {seen}. Each line is a guess: change what is wrong, and run again.",
        *(f"# {_comment(remark)}" for remark in guess.remarks),
        "", "[table]",
    ]  # fmt: skip
    lines += _lines([(key, _toml(value), ABOUT[key]) for key, value in _table(guess).items()])
    lines += ["", "[columns]  # number, category, boolean, date, text (left out), key, target, ignore"]
    lines += _lines([(_key(one.name), _toml(one.kind), _comment(one.comment)) for one in guess.columns])
    dates = [column for column in guess.columns if column.kind == "date"]
    if dates:
        lines += ["", "[dates]  # how each is written: https://docs.python.org/3/library/datetime.html#format-codes"]
        lines += [f"{_key(column.name)} = {_toml(column.date_format)}" for column in dates]
    return "\n".join([*lines, ""])


def line(column: Column, width: int) -> str:
    """The column for a terminal: its name, kind, and what was seen."""
    return f"{_comment(column.name):{width}}  {column.kind:9} {_comment(column.comment)}"


def shown_width(columns: list[Column]) -> int:
    """Characters that the names take in `line`."""
    return min(max(len(_comment(column.name)) for column in columns), WIDEST)


def _table(guess: Guess) -> dict[str, str | list[str]]:
    sample = guess.sample
    values: dict[str, str | list[str]] = {"format": "csv" if sample.format == "excel" else sample.format}
    if values["format"] == "csv":
        decimal = "," if guess.decimal_comma else "."
        values |= {"encoding": sample.encoding, "delimiter": sample.delimiter, "decimal": decimal}
    if guess.markers:
        values["missing"] = guess.markers
    values |= {"target": guess.target, "task": guess.answer.task}
    if guess.answer.task == "binary":
        values["positive"] = guess.answer.positive
    return {**values, "key": guess.key}


def _lines(entries: list[tuple[str, str, str]]) -> list[str]:
    """`name = value  # comment`, the signs below each other where the names are short."""
    starts = [f"{name} = {value}" for name, value, _ in entries]
    width = min(max(map(len, starts)), WIDEST + 16)
    return [f"{start:{width}}  # {comment}" for start, (*_, comment) in zip(starts, entries, strict=True)]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _toml(name)


def _toml(value: str | list[str]) -> str:
    """As TOML has it: JSON's text, with DEL as an escape too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(words: str) -> str:
    return visible(" ".join(words.split()))
