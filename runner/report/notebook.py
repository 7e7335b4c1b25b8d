"""One executed notebook as a page. It is always written: what cannot be shown is replaced by a sentence."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner.manifest import RunManifest, StepState
from runner.report import clean, markup
from runner.report.files import page, reason, write_page

EXECUTED, PAGE = "executed.ipynb", "executed.html"
PAGE_S = 20.0  # of processor time for laying out one page; what is left then stays text
HIDDEN = ("application/scrapbook.", "application/papermill.")


def write_notebook_page(step_folder: Path, *, manifest: RunManifest, state: StepState) -> Path:
    """Write `executed.html` beside the step's executed notebook, finished or not, and return its path."""
    return write_page(step_folder / PAGE, notebook_page(step_folder, manifest=manifest, state=state))


def notebook_page(
    step_folder: Path, *, manifest: RunManifest, state: StepState, code: bool = True, up: str = "../../"
) -> bytes:
    """The page of the step's executed notebook, written nowhere; without `code` its cells show what they made alone.

    `up` leads from the page to the run's folder.
    """
    content = (step_folder / EXECUTED).read_bytes()
    problem, language, cells = "", "python", list[dict[str, Any]]()
    try:
        document = json.loads(content)
        language = _language(document)
        if not isinstance(document.get("cells"), list):
            raise ValueError("it has no list of cells")
        cells = list(_cells(document, state, _Layout()))
    except Exception as error:
        problem = f"This notebook cannot be shown: {reason(error)}."
    return page(
        "notebook.html.j2",
        code=code,
        up=up,
        cells=cells,
        problem=problem,
        manifest=manifest,
        state=state,
        highlighted=lambda source: markup.highlighted(source, language),
    )


class _Layout:
    """Lays out parts of a page until its time is over. Each is a dictionary for the template."""

    def __init__(self) -> None:
        self._deadline = _processor_s() + PAGE_S

    def prose(self, text: str, attachments: Any = None) -> dict[str, Any]:
        pictures = attachments if isinstance(attachments, dict) else None
        return self._part("prose", lambda: (markup.markdown(text, pictures), ""), text)

    def html(self, text: str, instead: str) -> dict[str, Any]:
        """`instead` is the output as text, for markup without visible content."""
        part = self._part("html", lambda: clean.html(text), instead)
        if part["kind"] == "html" and "<img" not in part["html"] and not re.sub(r"<[^>]*>", "", part["html"]).strip():
            scripted = "<script" in text.lower()
            why = "is shown by JavaScript, which a report does not run" if scripted else "has no text and no picture"
            note = {"kind": "note", "note": f"This output {why}; executed.ipynb has it."}
            return _text("result", instead) if instead else note
        return part

    def _part(self, kind: str, make: Callable[[], tuple[str, str]], text: str) -> dict[str, Any]:
        try:
            if _processor_s() > self._deadline:
                raise clean.TooMuch("The notebook is too long for all of it to be laid out.")
            html, note = make()
            return {"kind": kind, "html": html, "note": note}
        except clean.TooMuch as why:
            return {**_text("result", text), "note": f"{why} It is in executed.ipynb."}


def _processor_s() -> float:
    """Processor time so far, with that of the processes that clean markup."""
    return sum(os.times()[:4])


def _language(document: dict[str, Any]) -> str:
    language = (document.get("metadata", {}).get("language_info") or {}).get("name")
    return language if isinstance(language, str) else "python"


def _cells(document: dict[str, Any], state: StepState, layout: _Layout) -> Iterator[dict[str, Any]]:
    """The cells for the template: kind, source, number as after Run All, outputs that can be shown."""
    error = state.result.error if state.result else None
    number = 0
    for cell in document["cells"]:
        cell = _table(cell)
        metadata = _table(cell.get("metadata"))
        tags, marks = _list(metadata.get("tags")), _table(metadata.get("papermill"))
        kind, source = cell.get("cell_type"), clean.joined(cell.get("source"))
        injected = "injected-parameters" in tags
        runs = kind == "code" and bool(source.strip()) and "skip-execution" not in tags
        if runs and not injected:
            number += 1
        if kind == "markdown":
            yield {"kind": kind, "parts": [_or_note(layout.prose, source, cell.get("attachments"))]}
        elif kind == "code":
            parts = [_or_note(_output, output, layout) for output in _list(cell.get("outputs"))]
            yield {
                "kind": kind,
                "source": source,
                "number": number if runs and not injected else None,
                "injected": injected,
                "parameters": "parameters" in tags,
                "failed": runs and not injected and error is not None and error.cell == number,
                "pending": runs and marks.get("status") == "pending",
                "seconds": marks.get("duration") if isinstance(marks.get("duration"), int | float) else None,
                "parts": [part for part in parts if part is not None],
            }


def _or_note(make: Callable[..., dict[str, Any] | None], *arguments: Any) -> dict[str, Any] | None:
    try:
        return make(*arguments)
    except Exception as error:
        return {"kind": "note", "note": f"This cannot be shown: {reason(error)}. It is in executed.ipynb."}


def _output(output: Any, layout: _Layout) -> dict[str, Any] | None:
    """None for the runner's and papermill's own records."""
    kind = output.get("output_type")
    if kind == "stream":
        return _text("stderr" if output.get("name") == "stderr" else "stdout", clean.plain(output.get("text")))
    if kind == "error":
        text = "\n".join(map(clean.joined, _list(output.get("traceback"))))
        return _text("error", clean.plain(text or f"{output.get('ename')}: {output.get('evalue')}"))
    data, metadata = _table(output.get("data")), _table(output.get("metadata"))
    if any(key.startswith(HIDDEN) for key in data):
        return None
    for mime in clean.IMAGES:
        if mime in data and (address := clean.image(mime, data[mime])):
            return _image(address, {**metadata, **_table(metadata.get(mime))})
    plain = clean.plain(data.get("text/plain"))
    if html := clean.joined(data.get("text/html")):
        return layout.html(html, "" if re.fullmatch(r"<[^<>]*>", plain) else plain)
    if prose := clean.joined(data.get("text/markdown")):
        return layout.prose(prose)
    if formula := clean.joined(data.get("text/latex")):
        return _text("result", formula)
    if "application/json" in data and (not plain or plain.startswith("<IPython")):
        return _text("result", json.dumps(data["application/json"], indent=1, ensure_ascii=False))
    if plain or not data:
        return _text("result", plain)
    return {"kind": "note", "note": f"Not shown: {', '.join(sorted(data))}. It is in executed.ipynb."}


def _image(address: str, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "image",
        "src": address,
        "alt": str(metadata.get("alt") or "a figure without a description"),
        "caption": str(metadata.get("caption") or ""),
        "width": clean.pixels(metadata.get("width")),
        "height": clean.pixels(metadata.get("height")),
    }


def _text(name: str, text: str) -> dict[str, Any]:
    """`name` is the stream it comes from, "result" or "error": the template's class for it."""
    most = clean.MOST_CHARACTERS
    note = f"The first {most:,} of {len(text):,} characters are shown." if len(text) > most else ""
    return {"kind": "text", "name": name, "text": text[:most], "note": note}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
