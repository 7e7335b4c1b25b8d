"""A run in words: the summary on stdout, the next command, the exit code."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from runner.cli.options import metric_text
from runner.errors import AnswerIsNo, GateUndecided, KernelDied, Refused, RemoteError, StepFailed, counted
from runner.manifest import RunManifest, StepState
from runner.run.cost import cost
from runner.run.registration import not_registered

OUTCOMES = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive", "error": "in error"}
CODES = {  # by the kind of the error that ended a step
    **dict.fromkeys(("kernel died", "cluster lost", "timeout", "out of memory"), KernelDied.exit_code),
    "remote": RemoteError.exit_code,
    "refused": Refused.exit_code,
}
MESSAGE_LINES = 20
RULE_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "error": "!", "not judged": "–"}


def summary(manifest: RunManifest, folder: Path, *, pages: bool = True) -> str:
    """Verdict with its rules, the registered version, where the report is (or, without `pages`, how to have one)."""
    lines: list[str] = []
    if manifest.verdict is not None:
        lines.append(f"gate {OUTCOMES[manifest.verdict.outcome]}")
        lines += [f"  {RULE_MARKS[rule.outcome]} {rule.sentence}" for rule in manifest.verdict.rules]
    elif manifest.status == "succeeded":
        lines.append(f"no verdict: {manifest.why_not_judged}")
        lines += [f"  {name} = {metric_text(metric)}" for name, metric in manifest.metrics.items()]
    if manifest.status != "succeeded":
        lines.append(f"run {manifest.status}")
    lines += failures(manifest)
    if manifest.model_version is not None:
        lines.append(f"model {manifest.model_version.label} {manifest.model_version.words}")
    if missing := not_registered(manifest):
        lines.append(missing)
    if (paid := cost(manifest)) is not None:
        lines.append(f"SageMaker: {paid}")
    lines.append(f"report {_near(folder / 'report.html')}" if pages else f"report: runner report {manifest.run}")
    return "\n".join(lines)


def failures(manifest: RunManifest) -> Iterator[str]:
    """The exception of each step that failed, with its whole message, then its cell."""
    for step in manifest.steps:
        error = step.result.error if step.result else None
        if error is None or step.status == "pruned":
            continue
        lines = f"{error.ename}: {error.evalue}".strip().splitlines()
        yield f"  ✗ {step.name}: {lines[0]}"
        yield from (f"      {line}" for line in lines[1:MESSAGE_LINES])
        if len(lines) > MESSAGE_LINES:
            yield f"      and {counted(len(lines) - MESSAGE_LINES, 'more line')}, in the report"
        if error.cell is not None:
            yield f"    in cell [{error.cell}] of {step.notebook}: {error.first_line}"


def hint(manifest: RunManifest) -> Iterator[str]:
    """The next command, by cause."""
    short = manifest.run.rpartition("-")[2]
    for step in manifest.steps:
        for place in step.result.redacted if step.result and step.status != "cached" else ():
            yield f"  redacted in {step.notebook}, {place}; change that credential if it was real"
    failed = _failed_step(manifest)
    if failed is not None and failed.result is not None and failed.result.error is not None:
        kind = failed.result.error.kind
        page = f"runs/{manifest.run}/steps/{failed.name}/executed.html"
        if kind in ("exception", "stopped early", "output missing"):
            yield f"  look: runner debug {short} {failed.name}   then edit {failed.notebook} and `runner run`"
        else:
            yield f"  look: {page}   then `runner resume {short}`"
    elif manifest.status == "interrupted":
        yield f"  stopped; `runner resume {short}` goes on from the first unfinished step"
    elif manifest.model_version is not None and manifest.model_version.status == "pending":
        yield approval_hint(manifest.model_version.label, short)


def approval_hint(version: str, run: str) -> str:
    return f'  next: runner approve {version} --reason "…"   (look first: runner report {run})'


def exit_code(manifest: RunManifest, signals: Sequence[int] = ()) -> int:
    """The exit code of a command that ended with this run."""
    if manifest.status == "interrupted":
        return 143 if signals and signals[0] == signal.SIGTERM else 130
    if (failed := _failed_step(manifest)) is not None:
        kind = failed.result.error.kind if failed.result and failed.result.error else "exception"
        return CODES.get(kind, StepFailed.exit_code)
    outcome = manifest.verdict.outcome if manifest.verdict else None
    if outcome == "fail":
        return AnswerIsNo.exit_code
    return GateUndecided.exit_code if outcome in ("inconclusive", "error") else 0


def _failed_step(manifest: RunManifest) -> StepState | None:
    return next((step for step in manifest.steps if step.status == "failed"), None)


def _near(path: Path) -> Path:
    """Relative to the working folder where it is below it."""
    try:
        return path.absolute().relative_to(Path.cwd())
    except ValueError:
        return path
