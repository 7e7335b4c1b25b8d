"""Options that several commands share, and how a result becomes text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from runner.cli.terminal import say
from runner.errors import UsageError
from runner.escape import json as escape_json
from runner.escape import terminal
from runner.manifest import ModelVersionRef, RunManifest
from runner.records import Metric, StepError, utc_text

pipeline_option = click.option(
    "--pipeline",
    "pipeline",
    type=click.Path(path_type=Path),
    default="pipeline.toml",
    metavar="FILE",
    help="The pipeline file; runs land beside it.  [default: pipeline.toml]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
schema_option = click.option(
    "--allow-schema-change", is_flag=True, help="Also where requests that are answered now would be refused."
)


def note(said: str) -> None:
    """What somebody should know, beside the result."""
    say(f"note: {said}", err=True)


def json_text(value: Any) -> str:
    """The result as `--json` prints it."""
    return escape_json(json.dumps(value, indent=2, ensure_ascii=False))


def print_json(value: Any) -> None:
    click.echo(json_text(value))  # escaped already, as JSON has it


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two spaces apart."""
    lines = [[terminal(cell) for cell in line] for line in (headers, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def parse_overrides(values: Sequence[str]) -> dict[str, str]:
    """`name=value` texts of -p. Raises UsageError for one without `=`, or given twice."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"-p {text!r}: write -p name=value, or -p step.name=value.")
        if name.strip() in found:
            raise UsageError(f"-p {name.strip()}: given twice.")
        found[name.strip()] = value
    return found


def parse_version(text: str) -> tuple[str, int]:
    """`NAME/VERSION`. Raises UsageError."""
    name, slash, number = text.partition("/")
    if not slash or not name or not number.isdecimal():
        raise UsageError(f"{text!r} is not a model version; write NAME/VERSION, for example {name or 'NAME'}/1.")
    return name, int(number)


def parse_time(text: str) -> str:
    """The moment as this project writes it: ISO 8601 in UTC with milliseconds. Raises UsageError."""
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a time; write it like 2027-03-03T12:00Z.") from None
    return utc_text(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)


def metric_json(metric: Metric) -> dict[str, float | None]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def metric_text(metric: Metric) -> str:
    interval = "" if metric.low is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
    return f"{metric.value:.4g}{interval}"


def _error_json(error: StepError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in ("kind", "ename", "evalue", "cell", "first_line")}


def run_json(manifest: RunManifest, folder: Path) -> dict[str, Any]:
    """The JSON of `run --json` and `show --json`; paths are absolute. A step that failed has its `error`."""
    from runner.run.registration import not_registered

    folder, missing = folder.absolute(), not_registered(manifest)
    return {
        "run": manifest.run,
        "status": manifest.status,
        "verdict": manifest.verdict.outcome if manifest.verdict else None,
        "steps": [
            {
                "name": step.name,
                "status": step.status,
                "seconds": step.result.seconds if step.result else None,
                "executed": str(folder / "steps" / step.name / "executed.ipynb")
                if step.result and step.result.executed
                else None,
                **({"error": _error_json(step.result.error)} if step.result and step.result.error else {}),
            }
            for step in manifest.steps
        ],
        "metrics": {name: metric_json(metric) for name, metric in manifest.metrics.items()},
        "model_version": None if manifest.model_version is None else _version_json(manifest.model_version),
        **({"not_registered": missing} if missing else {}),
        "report": str(folder / "report.html"),
    }


def _version_json(version: ModelVersionRef) -> dict[str, Any]:
    """As the run left it; where what it is now was looked up, that and both."""
    made: dict[str, Any] = {"name": version.name, "version": version.version, "status": version.status}
    if version.status_at_end is not None:
        made |= {name: getattr(version, name) for name in ("status_at_end", "decided_by", "decided")}
    return made
