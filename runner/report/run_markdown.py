"""One run as Markdown that fits a CI job's page: the verdict or the error first, then what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.escape import code, markdown
from runner.manifest import RunManifest, StepState, failures_first
from runner.notebook.source import read_notebook
from runner.report import clean
from runner.report.files import number
from runner.report.pull_request import fence, table
from runner.run.cost import cost
from runner.run.registration import not_registered

MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "error": "⚠️", "not judged": "–"}
OUTCOMES = {"pass": "passed", "fail": "failed", "inconclusive": "is inconclusive", "error": "is in error"}
TRACEBACK_LINES = 15
MOST_KEYS = 20  # of a mapped step, that have not succeeded


def run_markdown(manifest: RunManifest, folder: Path, hints: list[str]) -> str:
    """`hints` are the next commands, `folder` the run's."""
    return "\n\n".join(_blocks(manifest, folder, hints)) + "\n"


def _blocks(manifest: RunManifest, folder: Path, hints: list[str]) -> Iterator[str]:
    failed = next((step for step in manifest.steps if step.status == "failed"), None)
    yield f"## {_headline(manifest, failed)}"
    if failed is not None:
        yield from _failure(failed, folder)
    yield from (f"→ {code(line.strip())}" for line in hints)
    if manifest.verdict is not None:
        rows = [
            [
                MARKS[rule.outcome],
                code(rule.rule.metric),
                "–" if rule.value is None else number(rule.value),
                "–" if rule.low is None or rule.high is None else f"{number(rule.low)} to {number(rule.high)}",
                markdown(rule.sentence),
            ]
            for rule in manifest.verdict.rules
        ]
        yield table(["", "metric", "value", "interval", ""], rows)
    yield table(
        ["step", "status", "seconds", "why"],
        [
            [code(step.name), step.status or "–", f"{step.result.seconds:.1f}" if step.result else "–", _why(step)]
            for step in manifest.steps
        ],
    )
    for step, keys in manifest.keyed().items():
        shown = [key for key in failures_first(keys) if not key.complete][:MOST_KEYS]
        failed_keys = [[code(str(key.key)), key.status, markdown(key.error)] for key in shown]
        good = sum(key.complete for key in keys)
        yield f"{code(step)}: {good:,} of {len(keys):,} keys succeeded"
        if failed_keys:
            yield table(["key", "status", ""], failed_keys)
    if (paid := cost(manifest)) is not None:
        yield f"SageMaker: {markdown(str(paid))}."
    if manifest.model_version is not None:
        yield f"Model {code(manifest.model_version.label)} {manifest.model_version.words}."
    if missing := not_registered(manifest):
        yield missing
    commit = f", commit {code(manifest.git.commit[:8])}" if manifest.git else ""
    started = markdown(manifest.started[:19].replace("T", " "))
    yield f"Run {code(manifest.run)}{commit}, {started} UTC, by {code(manifest.started_by)}"


def _headline(manifest: RunManifest, failed: StepState | None) -> str:
    name = code(manifest.pipeline.name)
    if failed is not None:
        return f"❌ {name}: step {code(failed.name)} failed"
    if manifest.status != "succeeded":
        return f"⏸ {name}: {manifest.status}"
    if manifest.verdict is None:
        return f"{name}: succeeded, not judged"
    return f"{MARKS[manifest.verdict.outcome]} {name}: the gate {OUTCOMES[manifest.verdict.outcome]}"


def _failure(step: StepState, folder: Path) -> Iterator[str]:
    """The error, the source of its cell, and the traceback's end."""
    error = step.result.error if step.result else None
    if error is None:
        return
    where = f" in cell [{error.cell}]" if error.cell is not None else ""
    yield f"{code(f'{error.ename}: {error.evalue}')}{where} of {code(step.notebook)}"
    notebook = read_notebook(folder / "steps" / step.name / "notebook.ipynb")
    cell = next((cell for cell in notebook.code if cell.number == error.cell), None)
    if cell is not None:
        yield fence(cell.source.splitlines(), language=notebook.language)
    if error.traceback:
        lines = clean.plain("\n".join(error.traceback)).splitlines()[-TRACEBACK_LINES:]
        yield f"<details><summary>Traceback</summary>\n\n{fence(lines, language='text')}\n\n</details>"


def _why(step: StepState) -> str:
    if step.status == "cached":
        return f"from {code(step.from_run)}"
    return code(step.why) if step.why else ""
