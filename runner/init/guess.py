"""A table as a whole: each column's part in the model, the target's task, the key, and what looks wrong."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from runner.errors import UsageError, counted
from runner.init import look
from runner.init.answer import Answer, answer, as_text, refuse_blank
from runner.init.look import Column
from runner.init.sample import Sample
from runner.pipeline.file import nearest

ID_NAME = re.compile(
    r"(?i:(?:^|[\W_])(?:id|key|uuid|guid|nr|no|number|phone|email|account|code|pid)$|^id[\W_])"
    r"|(?<=[a-z])(?:ID|Id|No|Nr|Key|Number|Code)$"
)
INDEX_NAMES = ("", "#", "index", "unnamed: 0", "rownames", "row", "rownumber", "row_number", "rowid", "nr", "no", "x")
SHARED = 0.01  # of a key's values may be shared; rows with the same one stay on one side of the split
FEWEST_LEAKING = 30  # rows, below which a column may part the answers by chance
PURE = 0.999


@dataclass(frozen=True)
class Guess:
    """`columns` in the table's order; `remarks` are sentences about what a person should look at."""

    sample: Sample
    columns: list[Column]
    target: str
    answer: Answer
    key: str
    decimal_comma: bool
    remarks: list[str]

    @property
    def markers(self) -> list[str]:
        """The words that stand for a missing number, where the inspector found them."""
        return sorted({marker for column in self.columns for marker in column.markers})


def guess(
    sample: Sample, *, target: str, key: str | None = None, positive: str | None = None,
    ask_positive: Callable[[list[str], str], str] | None = None,
) -> Guess:  # fmt: skip
    """The table with `target` to be predicted. `ask_positive` is asked where words do not say which answer is positive.

    Raises UsageError for a column that is not there, and for a target that nothing can predict.
    """
    names = list(sample.columns)
    target = existing(names, target, "--target")
    if sample.counted and target in sample.blanks:
        refuse_blank(target, *sample.blanks[target], sample.rows)
    comma = sample.format == "csv" and look.decimal_comma(list(sample.columns.values()))
    asked = _positive(answer(target, sample.values(target), comma=comma), sample.values(target), positive, ask_positive)
    looked = {name: look.column(name, sample.values(name), comma=comma) for name in sample.columns}
    key = _key(looked, target) if key is None else existing(names, key, "--key")
    if key == target:
        raise UsageError(f"{target} cannot be both target and key.")
    columns = [_part(column, target, key, asked) for column in looked.values()]
    if not any(column.kind in ("number", "category", "boolean", "date") for column in columns):
        raise UsageError(
            f"Beside the target {target} no column is left to learn from: each is constant, blank or a name."
        )
    leaking = [column.name for column in columns if _leaks(column, sample, target, asked, comma=comma)]
    columns = [
        dataclasses.replace(column, comment=f"{column.comment}; CAREFUL: repeats the target") if column.name in leaking
        else column for column in columns
    ]  # fmt: skip
    remarks = [*_remarks(sample, asked, key), *(_leak_sentence(name, target) for name in leaking)]
    return Guess(sample, columns, target, asked, key, comma, remarks)


def existing(names: Sequence[str], name: str, option: str) -> str:
    """The column of that name, whatever blanks stand around it. Raises UsageError with the nearest one."""
    for one in (name, *(other for other in names if other.strip() == name.strip())):
        if one in names:
            return one
    raise UsageError(f"{option} {name!r}: the table has no such column{nearest(name, names)}")


def _positive(
    found: Answer, values: Sequence[Any], positive: str | None, ask: Callable[[list[str], str], str] | None
) -> Answer:
    if found.task != "binary":
        if positive is not None:
            raise UsageError(f"--positive {positive!r}: the target has more than two answers, so none is positive.")
        return found
    answers = sorted(set(map(as_text, values)))
    if positive is None and not found.sure and ask is not None:
        positive = ask(answers, found.positive)
    if positive is None:
        return found
    if positive not in answers:
        raise UsageError(f"--positive {positive!r}: the target has the answers {answers[0]!r} and {answers[1]!r}.")
    return dataclasses.replace(found, positive=positive, sure=True)


def _key(looked: Mapping[str, Column], target: str) -> str:
    """The column that tells the rows apart; "" for none. A column that counts the rows only by its name."""
    best, best_score = "", 0
    for column in looked.values():
        if column.name == target or column.kind not in ("text", "number", "category") or column.missing:
            continue
        named = ID_NAME.search(column.name.strip()) is not None
        plain = column.kind == "text" and column.one_word
        enough = column.all_different or (named and plain and column.distinct >= (1 - SHARED) * column.present)
        index = column.counts_rows and column.name.strip().lower() in INDEX_NAMES
        score = 2 * named + plain - column.counts_rows
        if enough and not index and score > best_score:
            best, best_score = column.name, score
    return best


def _part(column: Column, target: str, key: str, asked: Answer) -> Column:
    """The column with its part in the model."""
    if column.name == target:
        return dataclasses.replace(column, kind="target", comment=asked.seen, date_format="", markers=())
    if key and column.name == key:
        values = f"{column.present:,} values, all different"
        shared = f"{column.distinct:,} values in {counted(column.present, 'row')}: rows that share one stay together"
        comment = values if column.all_different else shared
        return dataclasses.replace(column, kind="key", comment=comment, date_format="", markers=())
    if column.counts_rows:
        return dataclasses.replace(column, kind="ignore", comment="counts the rows")
    names_rows = column.all_different and ID_NAME.search(column.name.strip()) and column.kind in ("number", "text")
    if names_rows:
        return dataclasses.replace(column, kind="ignore", comment=f"tells the rows apart, as a name; {column.comment}")
    return column


def _leaks(column: Column, sample: Sample, target: str, asked: Answer, *, comma: bool) -> bool:
    """Whether this column alone gives the answer."""
    if column.kind not in ("number", "category", "boolean"):
        return False
    values = sample.columns[column.name]
    if column.kind == "number":
        values = [look.number(value, comma=comma) for value in values]
    truths = sample.columns[target]
    pairs = [
        (value, truth) for value, truth in zip(values, truths, strict=True) if value is not None and value == value
    ]
    if len(pairs) < max(FEWEST_LEAKING, 0.9 * sample.rows_read):
        return False
    if asked.task == "regression":
        return column.kind == "number" and _repeats(
            [(value, look.number(truth, comma=comma)) for value, truth in pairs]
        )
    if column.kind == "number" and column.distinct > look.FEW:
        ordered = [truth for _, truth in sorted((value, str(truth)) for value, truth in pairs)]
        return sum(before != after for before, after in pairwise(ordered)) < len(set(ordered))
    return _purity(pairs) > PURE


def _repeats(pairs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether one number is the other one, in another unit."""
    try:
        return abs(statistics.correlation(*zip(*pairs, strict=True))) > 0.99999
    except (statistics.StatisticsError, OverflowError):
        return False


def _purity(pairs: Sequence[tuple[Any, Any]]) -> float:
    """The part of the rows that have their value's most frequent answer; 0 where hardly any row has another answer."""
    groups: dict[Any, Counter[str]] = {}
    for value, truth in pairs:
        groups.setdefault(value, Counter())[str(truth)] += 1
    answers = Counter(str(truth) for _, truth in pairs)
    if answers.most_common(1)[0][1] > 0.99 * len(pairs) or 2 * len(groups) > len(pairs):
        return 0.0
    return sum(group.most_common(1)[0][1] for group in groups.values()) / len(pairs)


def _leak_sentence(name: str, target: str) -> str:
    return (
        f"{name} alone gives {target}. If it is known only afterwards, write \"ignore\" for it in columns.toml; "
        "01_data stops at such a column."
    )  # fmt: skip


def _remarks(sample: Sample, asked: Answer, key: str) -> list[str]:
    remarks = []
    if not sample.whole:
        remarks.append(
            f"The file is large: {sample.rows_read:,} of {'' if sample.counted else 'about '}{sample.rows:,} rows were "
            "looked at, from its beginning to its end"
            + ("; the others for values that these have not." if sample.counted else ". What is rare may be missing.")
        )
    padded = ["names"] * any(name.startswith(" ") for name in sample.columns) + ["values"] * sample.padded
    if padded:
        remarks.append(f"{' and '.join(padded).capitalize()} begin with a blank, as the file has them.")
    if not asked.sure:
        remarks.append(f"Which answer is positive was guessed: {asked.positive}, the rarer one. --positive says it.")
    if not key:
        remarks.append("No column tells the rows apart, so the split goes by a hash of each row. --key names one.")
    copies = sample.rows_read - len({hash(tuple(map(str, row))) for row in zip(*sample.columns.values(), strict=True)})
    if copies:
        remarks.append(f"{counted(copies, 'row')} {'is a copy' if copies == 1 else 'are copies'} of another one.")
    return remarks
