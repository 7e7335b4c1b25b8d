"""The report of a run: verdict first, then what led to it, from run.json and the executed notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.audit.compare import not_comparable
from runner.errors import RunnerError, counted
from runner.gate import describe
from runner.manifest import RunManifest, StepState, failures_first
from runner.notebook.recorded import read_figures
from runner.records import KeyResult, Mapped, Metric, RuleResult, read
from runner.report import clean
from runner.report.axis import axis
from runner.report.files import number, page, reason, write_page
from runner.run.contents import key_page
from runner.run.cost import cost
from runner.run.folder import KEYS
from runner.run.mapped import of_key
from runner.run.registration import not_registered
from runner.run.store import MANIFEST, Store

REPORT = "report.html"
# of a mapped step: keys that failed with a page of their own, keys in its table, keys of these that are not folded
MOST_PAGES, MOST_ROWS, UNFOLDED = 20, 2_000, 100
WORDS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive", "error": "in error"}
MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "error": "!", "not judged": "–"}
STATES = {
    "succeeded": "✓", "cached": "✓", "failed": "✗", "interrupted": "‖", "skipped": "–", "pruned": "–", "running": "▸",
    None: "·",
}  # fmt: skip


def write_report(run_folder: Path, manifest: RunManifest | None = None, path: Path | None = None) -> Path:
    """Write `report.html` of the run in the folder, in whatever state it is, or the page at `path`; its path.

    `manifest` is the run's with the present status of its model version, or another run's with files in the folder;
    without it, what run.json holds.
    """
    manifest = manifest or read(RunManifest, run_folder / "run.json")
    return write_page(path or run_folder / REPORT, report(run_folder, manifest))


def report(run_folder: Path, manifest: RunManifest, *, files: bool = True) -> bytes:
    """The page of the run, written nowhere; without `files` it links to pages alone."""
    failed = next((step for step in manifest.steps if step.status == "failed"), None)
    error = failed.result.error if failed and failed.result else None
    champion = _champion_metrics(run_folder.parent, manifest)
    return page(
        "run.html.j2",
        files=files,
        manifest=manifest,
        headline=headline(manifest),
        tone=tone(manifest),
        failed=failed,
        source=_failing_source(run_folder, failed),
        traceback=clean.plain("\n".join(error.traceback)) if error else "",
        rules=[_rule(result, champion.get(result.rule.metric)) for result in manifest.verdict.rules]
        if manifest.verdict
        else [],
        comparison=_comparison(manifest),
        steps=[_step(run_folder, step) for step in manifest.steps],
        mapped=[
            _keys(state) for state in manifest.steps if state.result is not None and state.result.mapped is not None
        ],
        paid=cost(manifest),
        not_registered=not_registered(manifest),
        metrics=sorted(manifest.metrics.items()),
        problems=sorted(manifest.problems.items()),
        shown=[part for step in manifest.steps if (part := _shown(run_folder, step))],
        marks=MARKS,
    )


def write_step(run_folder: Path, manifest: RunManifest, state: StepState) -> None:
    """Write the page of one step, where it has an executed notebook."""
    from runner.report.notebook import notebook_page, write_notebook_page

    folder = run_folder / "steps" / state.name
    if (folder / "executed.ipynb").exists():
        write_notebook_page(folder, manifest=manifest, state=state)
    for key in _with_page(state):
        with contextlib.suppress(RunnerError, FileNotFoundError):  # `verify` says what is gone
            one = of_key(state, key.folder, Store(run_folder.parent))
            content = notebook_page(folder / KEYS / key.folder, manifest=manifest, state=one, up="../../../")
            write_page(folder / key_page(key.folder), content)


def write_all(run_folder: Path, manifest: RunManifest) -> Path:
    """Write the pages of the run's steps and its report; the report's path."""
    for state in manifest.steps:
        write_step(run_folder, manifest, state)
    return write_report(run_folder, manifest)


def headline(manifest: RunManifest) -> str:
    """What became of the run, in a sentence."""
    failed = next((step for step in manifest.steps if step.status == "failed"), None)
    if manifest.status == "running":
        return "This run is still going on."
    if manifest.status == "interrupted":
        return "Interrupted: this run was stopped before its end."
    if failed is not None:
        error = failed.result.error if failed.result else None
        if error is None:
            return f"Failed: step {failed.name} did not succeed."
        where = f" at cell [{error.cell}]" if error.cell is not None else ""
        return f"Failed: {failed.name} stopped{where}. {error.ename}: {(error.evalue.splitlines() or [''])[0]}"
    if manifest.verdict is None:
        return f"Done, without a verdict: {manifest.why_not_judged}."
    judged = [rule for rule in manifest.verdict.rules if rule.outcome != "not judged"]
    good = sum(rule.outcome == "pass" for rule in judged)
    count = f"{good} of {len(judged)} judged rules hold"
    if len(judged) == 1:
        count = f"the rule {'holds' if good else 'does not hold'}"
    unsure = dict.fromkeys(rule.rule.metric for rule in judged if rule.outcome == "inconclusive")
    words = {
        "pass": f"Passed: {count}.",
        "fail": f"Not passed: {_failing([rule for rule in judged if rule.outcome == 'fail'])}.",
        "inconclusive": f"Inconclusive: not enough test rows to judge {' and '.join(unsure)}.",
        "error": f"No verdict could be given: {count}.",
    }[manifest.verdict.outcome]
    version = manifest.model_version
    return words if version is None else f"{words} {version.label} is registered, {version.words}."


def _failing(rules: Sequence[RuleResult]) -> str:
    """The first of the rules that do not hold, and how many more: "evaluate.accuracy 0.78 is below 0.8"."""
    if not rules:  # of a record that contradicts itself
        return "a rule does not hold"
    result = rules[0]
    if result.rule.by_key is not None:
        return result.sentence.rstrip(".")
    threshold, side = (result.rule.min, "below") if result.rule.min is not None else (result.rule.max, "above")
    value = "" if result.value is None else f" {number(result.value)}"
    end = result.high if side == "below" else result.low
    confident = f", even at {number(end)}," if result.rule.confident and end is not None and end != result.value else ""
    more = f", and {counted(len(rules) - 1, 'more rule')} {'does' if len(rules) == 2 else 'do'} not hold"
    return f"{result.rule.metric}{value}{confident} is {side} {number(threshold)}{more if len(rules) > 1 else ''}"


def tone(manifest: RunManifest) -> str:
    """good, bad, unsure or plain: the colour of the headline."""
    if manifest.status in ("running", "interrupted"):
        return "unsure"
    if manifest.status == "failed":
        return "bad"
    outcome = manifest.verdict.outcome if manifest.verdict else None
    return {"pass": "good", "fail": "bad", "error": "bad", "inconclusive": "unsure", None: "plain"}[outcome]


def _champion_metrics(runs: Path, manifest: RunManifest) -> dict[str, Metric]:
    """What the champion's own run recorded, of the metrics that were measured on the same data."""
    if manifest.champion is None or manifest.champion.run == manifest.run:
        return {}
    with contextlib.suppress(OSError, RunnerError):
        champion = read(RunManifest, runs / manifest.champion.run / MANIFEST)
        return {
            name: metric
            for name, metric in champion.metrics.items()
            if name in manifest.metrics and not not_comparable(name, champion, manifest)
        }
    return {}


def _rule(result: RuleResult, champion: Metric | None) -> dict[str, Any]:
    threshold = result.rule.min if result.rule.min is not None else result.rule.max
    return {
        "result": result,
        "text": describe(result.rule),
        "threshold": threshold,
        "word": WORDS.get(result.outcome, result.outcome),
        "champion": champion,
        "plot": _interval(result, threshold, champion),
    }


def _interval(result: RuleResult, threshold: float | None, champion: Metric | None) -> dict[str, Any] | None:
    """Where threshold, value, interval and the champion's value lie on a line from 0 to 100, with its numbers."""
    if result.value is None or threshold is None:
        return None
    points = [result.value, threshold, *(end for end in (result.low, result.high) if end is not None)]
    try:
        scale = axis([*points, *([champion.value] if champion else [])], most=4, margin=0.12)
    except (OverflowError, ValueError):
        return None

    def at(value: float | None) -> float | None:
        return None if value is None else scale.at(value)

    text = f"value {number(result.value)}"
    if result.low is not None:
        text += f", interval {number(result.low)} to {number(result.high)}"
    if champion is not None:
        text += f", the champion's {number(champion.value)}"
    side = "right" if result.rule.min is not None else "left"
    return {
        "value": at(result.value),
        "low": at(result.low),
        "high": at(result.high),
        "threshold": at(threshold),
        "champion": at(champion.value) if champion else None,
        "ticks": [(at(value), label) for value, label in scale.ticks],
        "side": side,
        "text": f"{text}; the threshold is {number(threshold)}, good is {side} of it",
    }


def _comparison(manifest: RunManifest) -> list[tuple[str, Metric]]:
    """Metrics of the steps that had a champion, about the comparison with it."""
    if manifest.champion is None:
        return []
    steps = {key.partition(".")[0] for key, fact in manifest.sources.items() if fact.source.startswith("approved:")}
    return [
        (name, metric)
        for name, metric in sorted(manifest.metrics.items())
        if name.partition(".")[0] in steps and ("champion" in name or "gain" in name or "unseen" in name)
    ]


def _step(run_folder: Path, state: StepState) -> dict[str, Any]:
    executed = (run_folder / "steps" / state.name / "executed.ipynb").exists()
    inputs = state.job.inputs if state.job else {}
    return {
        "state": state,
        "mark": STATES[state.status],
        "page": f"steps/{state.name}/executed.html" if executed else None,
        "notebook": f"steps/{state.name}/executed.ipynb" if executed else None,
        "inputs": [(name, fact) for name, fact in inputs.items() if fact.present],
    }


def _with_page(state: StepState) -> list[KeyResult]:
    """The keys of a mapped step that have a page: the first of those that failed."""
    mapped = state.result.mapped if state.result is not None else None
    failed = [key for key in mapped.failed if _executed(mapped, key)] if mapped is not None else []
    return failed[:MOST_PAGES]


def _executed(mapped: Mapped, key: KeyResult) -> bool:
    """Whether the key has an executed notebook; a cluster that did not start has executed none."""
    return f"{key.folder}/executed.ipynb" in (mapped.files.files or {})


def _keys(state: StepState) -> dict[str, Any]:
    """The table of a mapped step's keys, failures first."""
    assert state.result is not None
    assert state.result.mapped is not None
    mapped, pages = state.result.mapped, {key.folder for key in _with_page(state)}
    at = f"steps/{state.name}"
    return {
        "step": state.name,
        "parameter": mapped.parameter,
        "total": len(mapped.keys),
        "unfolded": UNFOLDED,
        "failed": len(mapped.failed),
        "metrics": list(dict.fromkeys(name for key in mapped.keys for name in key.metrics)),
        "rows": [
            {
                "key": key,
                "mark": STATES[key.status],
                "page": f"{at}/{key_page(key.folder)}" if key.folder in pages else None,
                "notebook": f"{at}/{KEYS}/{key.folder}/executed.ipynb" if _executed(mapped, key) else None,
            }
            for key in failures_first(mapped.keys)[:MOST_ROWS]
        ],
    }


def _shown(run_folder: Path, state: StepState) -> dict[str, Any] | None:
    """The figures and tables of a step's notebook."""
    executed = run_folder / "steps" / state.name / "executed.ipynb"
    if not executed.exists():
        return None
    try:
        figures, tables = read_figures(executed)
    except Exception as error:  # a notebook may hold anything
        note = f"Its figures cannot be read: {reason(error)}."
        return {"name": state.name, "figures": [], "tables": [], "note": note}
    images = [(figure, clean.image(figure.mime, figure.data)) for figure in figures]
    if not images and not tables:
        return None
    return {"name": state.name, "figures": [pair for pair in images if pair[1]], "tables": tables}


def _failing_source(run_folder: Path, failed: StepState | None) -> str:
    """The source of the cell that failed."""
    from runner.notebook.source import read_notebook

    error = failed.result.error if failed and failed.result else None
    if failed is None or error is None or error.cell is None:
        return ""
    with contextlib.suppress(OSError, RunnerError):
        notebook = read_notebook(run_folder / "steps" / failed.name / "notebook.ipynb")
        return next((cell.source for cell in notebook.code if cell.number == error.cell), "")
    return ""
