"""What a commit keeps of a notebook: its cells and their order, without what executing it left there.

git calls this for every notebook it looks at, so it is standard library only. Bytes in, bytes out; knows nothing of git.
"""

from __future__ import annotations

import json
from typing import Any

# written by a kernel or a front end while executing and looking, never by the author
CELL_NOISE = ("ExecuteTime", "collapsed", "execution", "papermill", "scrolled", "trusted")
NOTEBOOK_NOISE = ("orig_nbformat", "orig_nbformat_minor", "papermill", "signature", "widgets")
INJECTED = "injected-parameters"  # papermill's cell with one run's values: a source has none


def cleaned(content: bytes) -> bytes:
    """The notebook as it is committed, laid out as Jupyter saves it; cleaning twice changes nothing more.

    Ids, sources, tags, attachments and the author's metadata stay. Anything that is not a complete notebook of
    nbformat 4 (half-written, with conflict markers, in another encoding) comes back byte for byte.
    """
    document = _notebook(content)
    if document is None:
        return content
    kept = {
        **document,
        "metadata": _notebook_metadata(document.get("metadata") or {}),
        "cells": [_cell(cell) for cell in document["cells"] if INJECTED not in _tags(cell)],
    }
    text = json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    # half of a surrogate pair has no UTF-8; its escape is JSON's too
    return text.encode("utf-8", "backslashreplace")


def _notebook(content: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("nbformat") != 4:
        return None
    cells = document.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        return None
    parts = [document, *cells]
    return document if all(isinstance(part.get("metadata", {}), dict) for part in parts) else None


def _tags(cell: dict[str, Any]) -> list[Any]:
    tags = (cell.get("metadata") or {}).get("tags")
    return tags if isinstance(tags, list) else []


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {**cell, "metadata": _cell_metadata(cell.get("metadata") or {}), "source": _lines(cell.get("source"))}
    if cell.get("cell_type") == "code":
        kept |= {"execution_count": None, "outputs": []}
    return kept


def _cell_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in metadata.items() if name not in CELL_NOISE}
    jupyter = kept.get("jupyter")
    if isinstance(jupyter, dict) and "outputs_hidden" in jupyter:  # the twin of `collapsed`
        rest = {name: value for name, value in jupyter.items() if name != "outputs_hidden"}
        kept = {**kept, "jupyter": rest} if rest else {name: kept[name] for name in kept if name != "jupyter"}
    return kept


def _lines(source: Any) -> Any:
    """The source as Jupyter stores it: a list of lines with their ends, also where a tool wrote one string."""
    if source is None:
        return []
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return source.splitlines(keepends=True) if isinstance(source, str) else source


def _notebook_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the machine: the interpreter's version, and the name its kernel shows.

    The language's own name stays, or comes from the kernelspec where no kernel has added it yet.
    """
    kept = {name: value for name, value in metadata.items() if name not in (*NOTEBOOK_NOISE, "language_info")}
    kernelspec = _table(metadata.get("kernelspec"))
    language = _table(metadata.get("language_info")).get("name") or kernelspec.get("language")
    if language:
        kept["language_info"] = {"name": language}
    if language == "python" and kernelspec.get("name"):
        # "Python 3 (ipykernel)", ".venv (3.11.2)": nbformat wants a name to show; the kernel's own one finds it
        kept["kernelspec"] = {**kernelspec, "display_name": f"Python ({kernelspec['name']})"}
    return kept


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
