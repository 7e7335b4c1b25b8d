"""What must be known of a whole table before its first row can be written: answers, categories, numbers in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.tabular.columns import Columns
from runner.tabular.table import as_label, as_number

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Survey:
    """`answers` has each answer with its rows; of a number that is predicted, only the least and the greatest.

    `blank` rows have no answer, the first of them is row `first_blank`, counted from 1. `categories` are those of each
    column, in the order of their text. `as_text` are the columns of numbers that the file writes as no program reads
    them: with a decimal comma, or a word for what is missing.
    """

    rows: int
    blank: int
    first_blank: int
    answers: dict[Any, int]
    categories: dict[str, pd.CategoricalDtype]
    as_text: frozenset[str]


def survey(blocks: Iterable[pd.DataFrame], columns: Columns) -> Survey:
    """Of the table whose rows `read_rows` gives. Raises UsageError for a target that should be a number and is none."""
    import pandas as pd

    from runner.model import as_category

    target, rows, blank, first_blank = columns.target, 0, 0, 0
    answers: Counter[Any] = Counter()
    known: dict[str, set[str]] = {name: set() for name in columns.categories}
    as_text = set(columns.numbers) if columns.table.decimal == "," else set()
    for raw in blocks:
        number = columns.task == "regression"
        answer = as_number(raw[target], columns) if number else as_category(raw[target])
        gone = answer.isna()
        if gone.any() and not blank:
            first_blank = int(gone.idxmax()) + 1
        rows, blank = rows + len(raw), blank + int(gone.sum())
        answers.update(answer.value_counts().to_dict())
        if number:
            answers = Counter({one: answers[one] for one in {min(answers), max(answers)}}) if answers else answers
        for name, texts in known.items():
            texts.update(as_label(raw[name]).cat.categories)
        as_text |= {name for name in columns.numbers if name not in as_text and _has(raw[name], columns.table.missing)}
    categories = {name: pd.CategoricalDtype(pd.Index(sorted(texts), dtype="str")) for name, texts in known.items()}
    return Survey(rows, blank, first_blank, dict(answers), categories, frozenset(as_text))


def _has(column: pd.Series, words: Iterable[str]) -> bool:
    return bool(column.isin(list(words)).any())
