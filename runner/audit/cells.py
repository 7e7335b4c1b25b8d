"""What became of a notebook's cells between two states of it.

Cells are matched by content, then by their id and how much they resemble each other. Prose is counted, never mixed
with code.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal

from runner.notebook.source import Cell
from runner.records import Record

RESEMBLES = 0.6  # of 1: below it, two cells without a common id are one removed and one added

How = Literal["changed", "added", "removed", "moved"]


class CellChange(Record, frozen=True, kw_only=True):
    """One code cell. `before` and `after` are the n of [n]; `diff` has unified lines, without file names."""

    how: How
    before: int | None
    after: int | None
    first_line: str
    diff: list[str]


def cell_changes(before: Sequence[tuple[Cell, str]], now: Sequence[tuple[Cell, str]]) -> list[CellChange]:
    """What became of each code cell, given with its id ("" where it has none), in the order of `now`."""
    texts = [[cell.source.strip() for cell, _ in side] for side in (before, now)]
    blocks = difflib.SequenceMatcher(None, texts[0], texts[1], autojunk=False).get_matching_blocks()
    old = sorted(set(range(len(before))) - {block.a + n for block in blocks for n in range(block.size)})
    new = sorted(set(range(len(now))) - {block.b + n for block in blocks for n in range(block.size)})
    scored = [
        (score, -abs(a - b), a, b) for a in old for b in new if (score := _resemblance(before[a], now[b])) >= RESEMBLES
    ]
    found: list[CellChange] = []
    for _, _, a, b in sorted(scored, reverse=True):
        if a in old and b in new:
            old.remove(a)
            new.remove(b)
            found.append(_cell(before[a][0], now[b][0]))
    found += [_cell(before[a][0], None) for a in old] + [_cell(None, now[b][0]) for b in new]
    return sorted(found, key=lambda change: (change.after or change.before or 0, change.how))


def edits(before: Sequence[str], now: Sequence[str]) -> int:
    """How many texts were changed, added or removed."""
    codes = difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in codes if tag != "equal")


def unified(before: str, now: str) -> list[str]:
    """Unified lines; `@@` lines only between parts."""
    return list(difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm="", n=3))[3:]


def _resemblance(before: tuple[Cell, str], now: tuple[Cell, str]) -> float:
    """From 0 to 1 by their tokens; more where both have the same id, which notebooks lose when cells are pasted."""
    parts = [re.findall(r"\w+|[^\w\s]", cell.source) for cell, _ in (before, now)]
    same_id = RESEMBLES if before[1] and before[1] == now[1] else 0.0
    return difflib.SequenceMatcher(None, parts[0], parts[1], autojunk=False).ratio() + same_id


def _cell(before: Cell | None, now: Cell | None) -> CellChange:
    sources = [cell.source.strip() if cell else "" for cell in (before, now)]
    how: How = "added" if before is None else "removed" if now is None else "changed"
    return CellChange(
        how="moved" if sources[0] == sources[1] else how,
        before=before.number if before else None,
        after=now.number if now else None,
        first_line=(now or before or Cell("code", "")).first_line,
        diff=unified(*sources),
    )
