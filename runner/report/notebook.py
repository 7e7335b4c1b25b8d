"""One executed notebook as a page, through nbconvert with a template of ours."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from runner.content import atomic_write
from runner.lean import PAPERMILLS, without
from runner.manifest import RunManifest, StepState
from runner.report import clean
from runner.report.files import TEMPLATES, number, style, when

EXECUTED, PAGE = "executed.ipynb", "executed.html"


def converter() -> tuple[Any, Any, Any]:
    """nbconvert's exporter and highlighter, and nbformat's reader; importing them takes 0.7 s, once."""
    with without(*PAPERMILLS):  # nbconvert imports nbformat
        import nbconvert.exporters.templateexporter as exporters
        import nbconvert.filters.highlight as highlighters
        import nbformat.notebooknode as notebooks

    made: Any = (exporters.TemplateExporter, highlighters.Highlight2HTML, notebooks.from_dict)  # none has types
    return made  # type: ignore[no-any-return]


def write_notebook_page(step_folder: Path, *, manifest: RunManifest, state: StepState) -> Path:
    """Write `executed.html` beside the step's executed notebook, finished or not, and return its path."""
    document = json.loads((step_folder / EXECUTED).read_bytes())
    notebook = converter()[2](document)
    resources = {
        "cells": list(_cells(document, state)),
        "manifest": manifest,
        "state": state,
        "style": style(),
        "policy": clean.POLICY,
        "language": _language(document),
    }
    page, _ = _exporter().from_notebook_node(notebook, resources=resources)
    path = step_folder / PAGE
    atomic_write(path, page.encode())
    return path


@functools.cache
def _exporter() -> Any:
    """Its template is compiled once for all pages."""
    template_exporter, highlighter, _ = converter()
    exporter = template_exporter(
        template_name="page", template_file="notebook.html.j2", extra_template_basedirs=[str(TEMPLATES)]
    )
    exporter.register_filter("highlight", highlighter())
    exporter.register_filter("clean", clean.html)
    exporter.register_filter("plain", clean.plain)
    exporter.register_filter("when", when)
    exporter.register_filter("number", number)
    exporter.environment.autoescape = True
    return exporter


def _language(document: dict[str, Any]) -> str:
    """nbconvert writes it into the page as it stands, while the code itself is escaped: only a plain name passes."""
    found = (document.get("metadata", {}).get("language_info") or {}).get("name")
    return found if isinstance(found, str) and re.fullmatch(r"[A-Za-z0-9+#._-]{1,40}", found) else "python"


def _cells(document: dict[str, Any], state: StepState) -> Any:
    """The cells for the template: kind, source, number as after Run All, outputs that are worth showing."""
    error = state.result.error if state.result else None
    number_ = 0
    for cell in document.get("cells", []):
        tags = (cell.get("metadata") or {}).get("tags") or []
        marks = (cell.get("metadata") or {}).get("papermill") or {}
        source = _text(cell.get("source"))
        injected = "injected-parameters" in tags
        runs = cell.get("cell_type") == "code" and bool(source.strip()) and "skip-execution" not in tags
        if runs and not injected:
            number_ += 1
        yield {
            "kind": cell.get("cell_type"),
            "source": source,
            "number": number_ if runs and not injected else None,
            "injected": injected,
            "parameters": "parameters" in tags,
            "failed": runs and not injected and error is not None and error.cell == number_,
            "pending": runs and marks.get("status") == "pending",
            "seconds": marks.get("duration"),
            "outputs": [made for output in cell.get("outputs") or [] if (made := _output(output))],
        }


def _output(output: dict[str, Any]) -> dict[str, Any] | None:
    kind = output.get("output_type")
    if kind == "stream":
        return {"kind": "stream", "name": output.get("name"), "text": clean.plain(output.get("text", ""))}
    if kind == "error":
        lines = output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"]
        return {"kind": "error", "text": clean.plain("\n".join(lines))}
    data, metadata = output.get("data") or {}, output.get("metadata") or {}
    if any(key.startswith("application/scrapbook.") for key in data):
        return None
    for mime in clean.IMAGES:
        if mime in data and (address := clean.image(mime, data[mime])):
            own = metadata.get(mime)
            said = {**metadata, **(own if isinstance(own, dict) else {})}
            return {
                "kind": "image",
                "src": address,
                "alt": str(said.get("alt") or "a figure without a description"),
                "caption": str(said.get("caption") or ""),
                "width": clean.pixels(said.get("width")),
                "height": clean.pixels(said.get("height")),
            }
    if "text/html" in data:
        return {"kind": "html", "html": clean.html(_text(data["text/html"]))}
    if "text/markdown" in data:
        return {"kind": "markdown", "text": _text(data["text/markdown"])}
    if "text/plain" in data:
        return {"kind": "stream", "name": "result", "text": clean.plain(data["text/plain"])}
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(value or [])
