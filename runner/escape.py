"""Text from notebooks, tables and records, made inert for where it is shown: one function for each medium.

Names, values, errors, captions, tags, authors and cell outputs may hold anything. On a terminal they must not move the
cursor or set its title, in a page not become elements, in a pull request not mention anybody, in a spreadsheet not
compute.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
# control characters but tab and newline; characters that change the text's direction, or have no width; surrogates
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# what GitHub and GitLab act on wherever it stands in prose, escaped or not: mentions, addresses, issues, emoji
_LIVE = r"(?i)@|://|www\.|[#!]\d|\bGH-\d|:(?=[\d_-]*[a-z+])[\w+-]+:"
_SYNTAX = r"[\\`*_{}\[\]<&|~$]|^(?=[#>+=-])"
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # how a spreadsheet's formulas begin (OWASP, CSV injection)
_CELLS = r"([;\t\r\n])"  # where a spreadsheet may end a cell, beside our comma
_MARKS = (*(mark for mark in _FORMULA if mark not in "+-"), *(f"{end}{sign}" for end in ',"\n;\t\r' for sign in "+-"))
_SIGNED = (
    rf"(?:\A|[,\n])(?:[{_FORMULA[3:]}=]|[+-](?!(?:[\d. %]+(?:e[+-]?\d+)?)?(?:[,\n]|\Z)))"  # in text without quotes
)
_MAY = rf"\A[{_FORMULA[3:]}=+-]|{_CELLS}"
# a sign and digits with their separators, or signs alone: nothing that computes or calls
_NUMBER = r"[+-]+ *|[+-][\d.,' %$€£]+(?:[eE][+-]?\d+)?|[+-](?:inf|nan)"


def visible(text: str) -> str:
    """Control characters and those that change the text's direction as their escapes, `\\x1b`; tab and newline stay."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def terminal(text: str) -> str:
    """For a terminal or a log: without colours, and with nothing that a terminal would obey."""
    return visible(COLOUR.sub("", text))


def json(text: str) -> str:
    """JSON for a terminal: the same document, with what a terminal would obey as JSON's own escapes."""
    return _UNSEEN.sub(lambda match: _json_escape(match[0]), text)


def html(text: str) -> str:
    """For an element's text or a quoted attribute of a page. Templates escape by themselves, after `visible`."""
    from html import escape  # 2 ms, for the few that make a page by hand

    return escape(visible(text))


def markdown(text: str) -> str:
    """For a line of prose; as a code span where it holds something that escapes do not disable."""
    flat = _flat(text)
    if re.search(_LIVE, flat) or flat != visible(flat):
        return code(flat)
    return re.sub(_SYNTAX, r"\\\g<0>", flat)


def code(text: object) -> str:
    """As a Markdown code span, on one line, also inside a table."""
    flat = visible(_flat(str(text))) or " "
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}".replace("|", "\\|")


def message(text: str) -> str:
    """For a chat or an e-mail: one line that mentions nobody, leads nowhere and has no element.

    Services know no common escape, so what they would act on is spelled otherwise: `＠all`, `‹!here>`, `https: //`.
    """
    flat = re.sub(r"(?<![\w.+-])@(?=\w)", "＠", visible(_flat(text)))
    flat = re.sub(r"<(?=[\w!@#/?&])", "‹", flat)
    return re.sub(r"(?i)\b(www)\.", r"\1 .", flat.replace("://", ": //")).replace("](", "] (")


def csv_cell(text: str) -> str:
    """For a file that people open in a spreadsheet: an apostrophe before what it would compute; numbers stay.

    `;` or a tab in a cell may separate cells, so each part is escaped.
    """
    may_change, is_number = _patterns()
    if not may_change(text) or is_number(text):
        return text
    escaped = "".join(map(_guarded, re.split(_CELLS, text)))
    return text if escaped == text else escaped  # the same object, by which callers count changes


def may_compute(text: str) -> bool:
    """Whether `csv_cell` may change any cell of this CSV text; takes a fraction of the time of writing it."""
    if text[:1] not in ("+", "-") and not any(mark in text for mark in _MARKS):
        return False
    return any(mark in text for mark in '";\t') or re.search(_SIGNED, text) is not None


@functools.cache
def _patterns() -> tuple[Callable[[str], re.Match[str] | None], Callable[[str], re.Match[str] | None]]:
    """Whether a cell may be changed at all, and whether it is a number; compiled when a CSV file is written."""
    return re.compile(_MAY).search, re.compile(_NUMBER).fullmatch


def _guarded(part: str) -> str:
    return f"'{part}" if part and part[0] in _FORMULA and not _patterns()[1](part) else part


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", COLOUR.sub("", text)).strip()


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
