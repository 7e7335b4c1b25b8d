"""What a step's cells printed, as lines of text: streams, results and errors by cell; a job's log as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.errors import Tampered
from runner.report import clean

EXECUTED, JOB_LOG = "executed.ipynb", "job.log"


def log_lines(step_folder: Path) -> Iterator[str]:
    """The lines of the step's executed notebook, finished or not, then its job's log. Raises Tampered where the file
    cannot be read; there are no lines where nothing was executed yet."""
    path = step_folder / EXECUTED
    if path.exists():
        try:
            cells = json.loads(path.read_bytes())["cells"]
            for number, cell in _numbered(cells):
                yield from _cell_lines(number, cell)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Tampered(f"{path} is not a readable notebook: {error}") from error
    job_log = step_folder / JOB_LOG
    if job_log.exists():
        yield f"log of the job, {job_log.name}"
        with job_log.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                yield f"  {line.rstrip()}"


def _numbered(cells: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Code cells with their number as after Run All, "" for the injected one."""
    number = 0
    for cell in cells:
        if cell.get("cell_type") != "code" or not clean.joined(cell.get("source")).strip():
            continue
        injected = "injected-parameters" in cell.get("metadata", {}).get("tags", [])
        number += not injected
        yield "" if injected else f"[{number}]", cell


def _cell_lines(number: str, cell: dict[str, Any]) -> Iterator[str]:
    texts = [text for output in cell.get("outputs", []) if (text := _text(output))]
    if not texts:
        return
    source = clean.joined(cell.get("source")).strip().splitlines()
    yield f"{number} {source[0]}".strip()
    for text in texts:
        yield from (f"  {line}" for line in clean.plain(text).splitlines())


def _text(output: dict[str, Any]) -> str:
    kind = output.get("output_type")
    if kind == "stream":
        return clean.joined(output.get("text"))
    if kind == "error":
        traceback = output.get("traceback") or []
        return "\n".join(map(clean.joined, traceback)) or f"{output.get('ename')}: {output.get('evalue')}"
    return clean.joined(output.get("data", {}).get("text/plain"))
