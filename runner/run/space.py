"""What a search draws its values from: ranges of numbers and lists of choices, as `-p` has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.errors import UsageError
from runner.notebook.parameters import Declared

Method = Literal["tpe", "random"]
MOST = 1000  # combinations of a sweep
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*(?P<low>{_NUMBER})\s*:\s*(?P<high>{_NUMBER})\s*(?P<log>:\s*log)?\s*\Z")
_WHOLE = re.compile(r"[+-]?\d+\Z")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; with `log` as many from 0.01 to 0.1 as from 0.1 to 1."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def text(self, value: float) -> str:
        """The value as `-p` takes it: to four digits where it is not whole, and never outside."""
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.4g}"), self.low), self.high))

    @property
    def ends(self) -> tuple[str, ...]:
        return self.text(self.low), self.text(self.high)


@dataclass(frozen=True)
class Choices:
    """Values without an order, as `-p` takes them."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them."""
        return self.values


@dataclass(frozen=True)
class Search:
    """`trials` combinations of values from `space`, each drawn by what the ones before it came to."""

    space: Mapping[str, Range | Choices]
    trials: int
    method: Method = "tpe"
    seed: int = 0
    prune: bool = True

    def corners(self) -> list[dict[str, str]]:
        """Few combinations that have each end of each range, and each choice."""
        most = max(len(drawn.ends) for drawn in self.space.values())
        return [
            {name: drawn.ends[min(number, len(drawn.ends) - 1)] for name, drawn in self.space.items()}
            for number in range(most)
        ]


def values_in(text: str) -> list[str]:
    r"""The values in a list with commas, in which `\\,` is a comma of a value. Raises ValueError for a value twice."""
    values = [part.replace("\0", ",").strip() for part in text.replace("\\,", "\0").split(",")]
    if len(values) != len(set(values)):
        raise ValueError(f"{text!r} has a value twice")
    return values


def range_in(name: str, text: str, declared: Declared | None) -> Range | None:
    """The range that the text is, for a parameter that takes numbers; None for any other text or parameter.

    Raises UsageError for a range that cannot be drawn from.
    """
    match = _RANGE.match(text)
    type_ = declared.type if declared is not None else None
    kinds = {type_.kind, *(item.kind for item in type_.items)} if type_ is not None else {"int", "float"}
    if match is None or not kinds & {"int", "float"}:
        return None
    written = [match["low"], match["high"]]
    whole = all(map(_WHOLE.match, written))
    if "float" not in kinds and not whole:
        raise UsageError(f"-p {name}={text}: {name.rpartition('.')[2]} takes whole numbers ({type_}).")
    low, high = map(float, written)
    is_float = "int" not in kinds or not whole
    if not low < high:
        raise UsageError(f"-p {name}={text}: the range has nothing in it; write the lower end first.")
    if match["log"] and low <= 0:
        raise UsageError(f"-p {name}={text}: a range by `log` begins above 0.")
    return Range(low, high, log=match["log"] is not None, whole=not is_float)


def drawn_from(
    parameters: Mapping[str, str], step: str, declared: Mapping[str, Declared]
) -> tuple[dict[str, str], dict[str, Range | Choices]]:
    """What holds for all trials, and what each trial draws its values from; `declared` are the step's parameters.

    Raises UsageError where there is nothing to draw, and for ranges and lists of what is not the step's own.
    """
    fixed: dict[str, str] = {}
    space: dict[str, Range | Choices] = {}
    for name, text in parameters.items():
        values = checked_values(name, text)
        owner, _, own = name.rpartition(".")
        numbers = range_in(name, text, declared.get(own))
        if numbers is None and len(values) == 1:
            fixed[name] = values[0]
            continue
        if owner != step:
            raise UsageError(
                f"-p {name}={text}: a search of {step} varies what {step} itself takes: write {step}.NAME, "
                "or one value. What the steps before it do is done once."
            )
        space[name] = numbers or Choices(tuple(values))
    if not space:
        raise UsageError(f"There is nothing to search: give a range or several values, as in -p {step}.NAME=0.01:0.3.")
    return fixed, space


def checked_values(name: str, text: str) -> list[str]:
    """As `values_in`; raises UsageError naming the parameter."""
    try:
        return values_in(text)
    except ValueError as error:
        raise UsageError(f"-p {name}: {error}.") from None
