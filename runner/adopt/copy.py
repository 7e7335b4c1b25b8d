"""The copy of a notebook with its literals replaced by parameters: what is written, the original stays.

Lines keep their form. A literal that is a path becomes the parameter's name; the assignment of a constant moves into
the parameters cell, with its comment.
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.adopt.found import File, Found
from runner.adopt.source import CodeCell, Span
from runner.notebook.source import PARAMETERS
from runner.notebook.strip_outputs import INJECTED, cleaned

METRIC = "metric"


@dataclass(frozen=True)
class Edit:
    span: Span
    text: str


@dataclass(frozen=True)
class Copy:
    """The copy as it is written, without outputs.

    `origins` has the place in the original of each of its cells, None for a new one.
    """

    content: bytes
    origins: tuple[int | None, ...]


def copied(found: Found, defaults: Mapping[str, str]) -> Copy:
    """The copy of the notebook; `defaults` are the paths that it reads and writes by hand, by parameter."""
    source = found.source
    document = copy.deepcopy(source.document)
    edits = [edit for file in found.files for edit in _path_edits(file, defaults[file.name])]
    moved = {constant.lines for constant in found.constants} | {
        lines for file in found.files if (lines := _declaring_lines(file, found)) is not None
    }
    texts = _moved_texts(found, moved, edits)
    home = source.declaring or _home(found, moved, edits)
    edits = _without_overlaps([*edits, *(Edit(span, "") for span in moved if home is None or span.cell != home.place)])
    new = [f"{file.name}: str = {json.dumps(defaults[file.name], ensure_ascii=False)}" + _remark(file)
           for file in found.files if file.declared is None]  # fmt: skip
    added = [text for span, text in texts.items() if home is None or span.cell != home.place] + new
    emptied = set[int]()
    for cell in source.cells:
        text = _edited(cell, edits)
        if home is not None and cell.place == home.place and added:
            text = "\n".join([text.rstrip("\n"), *added])
        if text != cell.cell.source:
            document["cells"][cell.place]["source"] = text
            emptied |= {cell.place} if not text.strip() else set()
    cells: list[dict[str, Any]] = document["cells"]
    if home is not None:
        _tag(cells[home.place])
    _insert(document, found, home, added)
    left_out = emptied | {place for place, cell in enumerate(cells) if INJECTED in _tags(cell)}
    placed = [(place, cell) for place, cell in _placed(cells, document["cells"]) if place not in left_out]
    document["cells"] = [cell for _, cell in placed]
    return Copy(cleaned(json.dumps(document).encode()), tuple(place for place, _ in placed))


def _placed(before: Sequence[Any], now: Sequence[Any]) -> Iterable[tuple[int | None, Any]]:
    """Each cell of `now` with its place in `before`, None for a new one."""
    places = {id(cell): place for place, cell in enumerate(before)}
    return ((places.get(id(cell)), cell) for cell in now)


def _insert(document: dict[str, Any], found: Found, home: CodeCell | None, added: Sequence[str]) -> None:
    """Put the cells in that the notebook did not have: parameters, folders of outputs, metrics."""
    cells = list(document["cells"])
    first = home.place if home is not None else found.source.cells[0].place
    new: list[dict[str, Any]] = []
    if home is None and added:
        new.append(_cell(document, PARAMETERS, "\n".join(added), PARAMETERS))
    if found.outputs:
        lines = [f"pathlib.Path({file.name}).parent.mkdir(parents=True, exist_ok=True)" for file in found.outputs]
        new.append(_cell(document, "output-folders", "\n".join(["import pathlib", "", *lines])))
    at = first + 1 if home is not None else first
    cells[at:at] = new
    if found.metrics:
        cells.append(_cell(document, "metrics", _metrics_source(found)))
    document["cells"] = cells


def _metrics_source(found: Found) -> str:
    function, line = METRIC, f"from runner.scraps import {METRIC}"
    if METRIC in found.names.used:
        function, line = f"runner.scraps.{METRIC}", "import runner.scraps"
    calls = [
        f'{function}("{metric.name}", {metric.name}' + (f', better="{metric.better}")' if metric.better else ")")
        for metric in found.metrics
    ]
    return "\n".join([line, "", *calls])


def _cell(document: Mapping[str, Any], id_: str, source: str, *tags: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": [],
        "source": source,
    }
    if (document.get("nbformat_minor") or 0) >= 5:
        known = {other.get("id") for other in document["cells"]}
        cell["id"] = next(
            name for name in (id_, *(f"{id_}-{n}" for n in range(2, len(known) + 3))) if name not in known
        )
    return cell


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return list((cell.get("metadata") or {}).get("tags") or ())


def _tag(cell: dict[str, Any]) -> None:
    if PARAMETERS not in (tags := _tags(cell)):
        cell["metadata"] = {**(cell.get("metadata") or {}), "tags": [*tags, PARAMETERS]}


def _path_edits(file: File, default: str) -> list[Edit]:
    """The file's literals replaced by its parameter; where its own declaration has the literal, by the default."""
    edits = {}
    for use in file.uses:
        span = use.cell.span(use.place)
        if span is None or span in edits:
            continue
        if file.declared is not None and use.binding is not None and use.binding.name == file.name:
            edits[span] = _literal(use.place, default, use.cell, span)
        else:
            constructor = use.found.constructor
            edits[span] = f"{constructor}({file.name})" if constructor else file.name
    return [Edit(span, text) for span, text in edits.items()]


def _literal(place: ast.expr, default: str, cell: CodeCell, span: Span) -> str:
    """The default in the quotes that the literal has."""
    if isinstance(place, ast.Constant) and place.value == default:
        return cell.cell.source.encode()[span.start : span.end].decode()
    text = json.dumps(default, ensure_ascii=False)
    single = cell.cell.source.encode()[span.start : span.start + 1] == b"'"
    return repr(default) if single else text


def _declaring_lines(file: File, found: Found) -> Span | None:
    if file.declared is None or found.source.declaring is not None:
        return None
    return file.declared.cell.own_lines(file.declared.statement)


def _moved_texts(found: Found, moved: Iterable[Span], edits: Sequence[Edit]) -> dict[Span, str]:
    """The lines that move, with the literals in them replaced, in the order of the code."""
    by_place = {cell.place: cell for cell in found.source.cells}
    ordered = sorted(moved, key=lambda span: (span.cell, span.start))
    return {span: _replaced(by_place[span.cell], span, edits).rstrip("\n") for span in ordered}


def _home(found: Found, moved: Iterable[Span], edits: Sequence[Edit]) -> CodeCell | None:
    """The cell that can be tagged as the parameters cell: it only assigns constants, and nothing before it changes."""
    spans = set(moved)
    touched = [span.cell for span in spans] + [edit.span.cell for edit in edits]
    first = min(touched, default=None)
    cell = next((cell for cell in found.source.cells if cell.place == first), None)
    if cell is None or not cell.tree.body or cell.cell.source.lstrip().startswith("%"):
        return None
    own = [cell.own_lines(statement) for statement in cell.tree.body]
    return cell if all(lines in spans for lines in own) else None


def _without_overlaps(edits: Sequence[Edit]) -> list[Edit]:
    """The edits, each without those that lie in a larger one."""
    kept: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.span.cell, edit.span.start, -edit.span.end)):
        if not kept or kept[-1].span.cell != edit.span.cell or edit.span.start >= kept[-1].span.end:
            kept.append(edit)
    return kept


def _edited(cell: CodeCell, edits: Sequence[Edit]) -> str:
    whole = Span(cell.place, 0, len(cell.cell.source.encode()))
    return _replaced(cell, whole, edits)


def _replaced(cell: CodeCell, part: Span, edits: Sequence[Edit]) -> str:
    """The part of the cell's source with the edits that lie in it."""
    source = cell.cell.source.encode()[part.start : part.end]
    inside = [edit for edit in _without_overlaps([edit for edit in edits if edit.span.cell == cell.place])
              if edit.span.start >= part.start and edit.span.end <= part.end]  # fmt: skip
    for edit in reversed(inside):
        start, end = edit.span.start - part.start, edit.span.end - part.start
        source = source[:start] + edit.text.encode() + source[end:]
    return source.decode()


def _remark(file: File) -> str:
    return f"  # what is {'read' if file.role == 'input' else 'written'}"
