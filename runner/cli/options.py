"""Options that several commands share, and how a result becomes text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from runner.cli.terminal import say
from runner.errors import UsageError
from runner.escape import json as escape_json
from runner.escape import terminal
from runner.manifest import ModelVersionRef, RunManifest, StepState
from runner.project import Project
from runner.records import KeyResult, Metric, utc_text

F = TypeVar("F", bound=Callable[..., Any])
project_option = click.option(
    "--pipeline",
    "project",
    type=click.Path(path_type=Path),
    default="pipeline.toml",
    callback=lambda _context, _option, file: Project(file),
    metavar="FILE",
    help="The pipeline file; runs land beside it.  [default: pipeline.toml]",
)
profile_option = click.option("--profile", metavar="NAME", help="Apply [profiles.NAME] of the pipeline file.")
on_option = click.option(
    "--on", type=click.Choice(["local", "sagemaker"]), default="local", show_default=True, help="Where the steps run."
)
no_open_option = click.option("--no-open", is_flag=True, help="Print the notebook's path instead of opening Jupyter.")
no_report_option = click.option(
    "--no-report", is_flag=True, envvar="RUNNER_NO_REPORT", help="Write no pages; `runner report` does it later."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
schema_option = click.option(
    "--allow-schema-change", is_flag=True, help="Also where requests that are answered now would be refused."
)


def result_options(command: F) -> F:
    """--json and --pipeline, of every command with a result."""
    return json_option(project_option(command))


def note(*sentences: str) -> None:
    """Print sentences that a person should know, beside the result."""
    for sentence in sentences:
        say(f"note: {sentence}", err=True)


def json_text(value: Any) -> str:
    """The result as `--json` prints it."""
    return escape_json(json.dumps(value, indent=2, ensure_ascii=False))


def print_json(value: Any) -> None:
    click.echo(json_text(value))  # escaped already, as JSON has it


def fields(record: Any, *names: str) -> dict[str, Any]:
    """These attributes of a record, as JSON has them."""
    return {name: getattr(record, name) for name in names}


def table_lines(rows: Iterable[Sequence[str | None]]) -> list[str]:
    """Columns as wide as their widest cell, two spaces apart; a dash for None."""
    lines = [[terminal("–" if cell is None else cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str | None]]) -> None:
    for line in table_lines([headers, *rows]):
        say(line)


def parse_overrides(values: Sequence[str]) -> dict[str, str]:
    """`name=value` texts of -p. Raises UsageError for one without `=`, or given twice."""
    overrides: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"-p {text!r}: write -p name=value, or -p step.name=value.")
        if name.strip() in overrides:
            raise UsageError(f"-p {name.strip()}: given twice.")
        overrides[name.strip()] = value
    return overrides


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


def time_text(moment: str) -> str:
    """A recorded time to the second, as tables show it."""
    return moment[:19].replace("T", " ")


def metrics_json(metrics: Mapping[str, Metric]) -> dict[str, dict[str, float | None]]:
    return {name: fields(metric, "value", "low", "high") for name, metric in metrics.items()}


def metric_text(metric: Metric) -> str:
    interval = "" if metric.low is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
    return f"{metric.value:.4g}{interval}"


def run_json(manifest: RunManifest, folder: Path) -> dict[str, Any]:
    """The JSON of `run --json` and `show --json`; paths are absolute. A step that failed has its `error`."""
    from runner.run.registration import not_registered

    folder, missing = folder.absolute(), not_registered(manifest)
    return {
        **fields(manifest, "run", "status"),
        "verdict": manifest.verdict.outcome if manifest.verdict else None,
        "steps": [_step_json(step, folder) for step in manifest.steps],
        "metrics": metrics_json(manifest.metrics),
        "model_version": None if manifest.model_version is None else _version_json(manifest.model_version),
        **({"not_registered": missing} if missing else {}),
        "report": str(folder / "report.html"),
    }


def _step_json(step: StepState, folder: Path) -> dict[str, Any]:
    result = step.result
    executed = str(folder / "steps" / step.name / "executed.ipynb") if result and result.executed else None
    error = result.error if result else None
    keys = result.mapped.keys if result is not None and result.mapped is not None else []
    return {
        **fields(step, "name", "status"),
        "seconds": result.seconds if result else None,
        "executed": executed,
        **({"keys": [_key_json(key, folder / "steps" / step.name) for key in keys]} if keys else {}),
        **({"error": fields(error, "kind", "ename", "evalue", "cell", "first_line")} if error else {}),
    }


def _key_json(key: KeyResult, folder: Path) -> dict[str, Any]:
    executed = key.status != "skipped"
    return {
        **fields(key, "key", "folder", "status", "seconds", "cell"),
        "executed": str(folder / "keys" / key.folder / "executed.ipynb") if executed else None,
        "metrics": metrics_json(key.metrics),
        "error": key.error or None,
    }


def _version_json(version: ModelVersionRef) -> dict[str, Any]:
    """As the run left it; where its present status was looked up, both."""
    now = () if version.status_at_end is None else ("status_at_end", "decided_by", "decided")
    return fields(version, "name", "version", "status", *now)
