"""`init`: a new project, made for a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import json_option, note, print_json
from runner.cli.terminal import ask, say
from runner.errors import counted
from runner.init.shipped import templates

if TYPE_CHECKING:
    from runner.init.make import NewProject

SHOWN = 200  # columns, a line each; columns.toml has all


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE", help="The table: CSV, Parquet, JSON lines, Excel."
)
@click.option("--target", metavar="COLUMN", help="The column to be predicted.")
@click.option(
    "--key", metavar="COLUMN", help="The column that tells the rows apart; found by itself where there is one."
)
@click.option("--positive", metavar="VALUE", help="Of a target with two answers the one that a probability is of.")
@click.option("--names", metavar="A,B,C", help="The columns of a CSV file that has no header.")
@click.option(
    "--template", type=click.Choice(templates()), default="tabular", show_default=True, help="What to begin with."
)
@click.option("--aws", is_flag=True, help="With infra/, the stacks for jobs and endpoints in SageMaker.")
@json_option
def init_command(  # noqa: PLR0913 - click passes each option by its name
    folder: Path,
    data: Path | None,
    target: str | None,
    key: str | None,
    positive: str | None,
    names: str | None,
    template: str,
    aws: bool,
    as_json: bool,
) -> None:
    """Make a project in DIR, which runs at once: notebooks, pipeline.toml, tests, and the runner itself as a wheel.

    The table is looked at and copied into data/. What was seen stands in columns.toml, a line a column, for you to
    correct. Without --data it is a small example. Nothing that is there is overwritten.

    \b
    Example:
      runner init abalone --data abalone.csv --target Rings
    """
    from runner.init.make import Asked, make

    asked = Asked(data, target, key, positive, [name.strip() for name in names.split(",")] if names else [])
    person = _Person() if sys.stdin.isatty() and sys.stderr.isatty() and not as_json else None
    project = make(folder, template, asked, aws=aws, person=person)
    if as_json:
        print_json(_json(project))
        return
    _show_table(project)
    say(f"{project.folder}: {counted(len(project.files), 'file')} of the template {template}")
    say(f"  next: cd {project.folder} && make run   (or with this runner: runner run)")


class _Person:
    """Who is asked on a terminal."""

    def target(self, names: list[str], guessed: str) -> str:
        say(f"The columns: {', '.join(names[:SHOWN])}", err=True)
        return ask("Which one is to be predicted?", guessed)

    def positive(self, answers: list[str], guessed: str) -> str:
        return ask(f"Which answer is a probability to be of, {answers[0]} or {answers[1]}?", guessed)


def _show_table(project: NewProject) -> None:
    from runner.init.columns import line, shown_width

    guess = project.guess
    if guess is None:
        return
    sample = guess.sample
    how = f"{sample.encoding}, separated by {sample.delimiter!r}" if sample.format == "csv" else sample.format
    rows = ("" if sample.whole or sample.counted else "about ") + counted(sample.rows, "row")
    say(f"{project.table}: {rows}, {counted(len(guess.columns), 'column')}; {how}")
    for column in guess.columns[:SHOWN]:
        say(f"  {line(column, shown_width(guess.columns))}")
    if len(guess.columns) > SHOWN:
        say(f"  … and {len(guess.columns) - SHOWN:,} more, in columns.toml")
    answer = f"{guess.answer.task}, {guess.answer.positive} is positive" if guess.answer.positive else guess.answer.task
    say(f"{guess.target} is {answer}. Each line is a guess; columns.toml has them, to be changed.")
    note(*guess.remarks, *project.remarks)


def _json(project: NewProject) -> dict[str, object]:
    guess = project.guess
    table = None if guess is None else {
        "file": project.table, "rows": guess.sample.rows, "whole": guess.sample.whole, "target": guess.target,
        "task": guess.answer.task, "positive": guess.answer.positive or None, "key": guess.key or None,
        "columns": [{"name": one.name, "kind": one.kind, "comment": one.comment} for one in guess.columns],
    }  # fmt: skip
    remarks = [] if guess is None else [*guess.remarks, *project.remarks]
    return {
        "folder": str(project.folder.absolute()), "template": project.template, "files": sorted(project.files),
        "table": table, "remarks": remarks,
    }  # fmt: skip
