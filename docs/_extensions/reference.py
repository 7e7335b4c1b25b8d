"""What the reference pages take from the code: the keys of pipeline.toml, exit codes, and who has `--json`.

A key's description is the comment on its line in `runner/records.py`; a table's is the record's docstring. In Markdown:

    ```{keys} steps.NAME
    ```
    ```{exit-codes}
    ```
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import msgspec
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from runner import errors, records
from runner.aws.settings import NEEDED, Settings
from runner.cli import group
from runner.records import Record

# heading -> record; `make docs` and tests/test_docs.py want every record that pipeline.toml can hold
TABLES: dict[str, type[Record]] = {
    "pipeline.toml": records.Pipeline,
    "steps.NAME": records.StepSpec,
    "steps.NAME.inputs.NAME": records.InputSpec,
    "steps.NAME.cluster": records.ClusterSpec,
    "gate": records.Rule,
    "model": records.ModelSpec,
    "approval": records.ApprovalSpec,
    "store": records.StoreSpec,
    "notify": records.NotifySpec,
    "monitor": records.MonitorSpec,
    "targets.NAME": records.AnyTarget,
    "targets.NAME.local": records.LocalTargetSpec,
    "targets.NAME.sagemaker": records.SageMakerTargetSpec,
    "targets.NAME.scaling": records.Scaling,
    "targets.NAME.serverless": records.Serverless,
    "targets.NAME.capture": records.Capture,
    "sagemaker": records.SageMaker,
    "sagemaker.vpc": records.Vpc,
}
WORDS = {
    "str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`", "Any": "anything",
    "AnyPath": "path", "RelativePath": "path below", "FileName": "name", "Value": "any value",
    "MapSource": "`step.output`, or list: text or number", "Flag": "`true`", "Share": "number",
    "NotifyEvent": "event",
    "Target": "[table](#keys-targets-name)",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key of a table, in words and Markdown."""

    name: str
    type: str
    default: str
    description: str


def keys(table: str) -> list[Key]:
    """The keys that a table's record adds to those of its base. `description` is "" where there is no comment."""
    kind = TABLES[table]
    source = textwrap.dedent(inspect.getsource(kind))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    declared = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    return [
        Key(
            fields[name].encode_name,
            in_words(node.annotation),
            _default(kind, fields[name]),
            comments.get(node.end_lineno or 0, ""),
        )
        for node in declared
        if isinstance(node.target, ast.Name) and (name := node.target.id) in fields
    ]


def in_words(annotation: ast.expr) -> str:
    """A type as whoever writes TOML would say it."""
    match annotation:
        case ast.BinOp(left=left, right=ast.Constant(value=None)):
            return in_words(left)
        case ast.Name(id=name):
            table = next((table for table, kind in TABLES.items() if kind.__name__ == name), None)
            if table is not None:
                return f"[table](#{anchor(table)})"
            if name in WORDS:
                return WORDS[name]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            allowed = values.elts if isinstance(values, ast.Tuple) else [values]
            return " or ".join(f'`"{ast.literal_eval(one)}"`' for one in allowed)
        case ast.Subscript(value=ast.Name(id="list"), slice=of):
            return f"list: {in_words(of)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, of])):
            return f"table: name = {in_words(of)}"
    raise ValueError(f"There are no words for the type {ast.unparse(annotation)}; add them to WORDS.")


def anchor(table: str) -> str:
    return "keys-" + table.lower().replace(".", "-")


def _default(kind: type[Record], field: Any) -> str:
    if field.required or (kind is records.SageMaker and field.name in NEEDED):
        return "needed"
    default = field.default
    if kind is records.SageMaker:  # left out, it is the pipeline's, and then this
        meant = {one.name: one.default for one in dataclasses.fields(Settings)}
        default = meant.get(field.name)
    if isinstance(default, Record) or default in (None, dataclasses.MISSING, msgspec.NODEFAULT, msgspec.UNSET):
        return "–"
    return f"`{msgspec.json.encode(default).decode()}`"


def exit_codes() -> list[tuple[int, str]]:
    """Each exit code with what it means, from the tree of errors."""
    meant = {0: "done"}
    pending: list[type[errors.RunnerError]] = [errors.RunnerError]
    while pending:
        kind = pending.pop(0)
        meant.setdefault(kind.exit_code, kind.headline)
        pending += kind.__subclasses__()
    return sorted(meant.items())


def commands(command: click.Command = group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by the words one types."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from commands(below, (*path, name))


def with_json() -> list[str]:
    return [name for name, command in commands() if any("--json" in option.opts for option in command.params)]


class KeysDirective(SphinxDirective):
    """The table of the keys, under an anchor that other tables link to."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        table = self.arguments[0]
        lines = [f"({anchor(table)})=", "", "| key | type | default | |", "|---|---|---|---|"]
        for key in keys(table):
            cells = (f"`{key.name}`", key.type, key.default, key.description)
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        return self.parse_text_to_nodes("\n".join(lines))


class ExitCodesDirective(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        lines = ["| exit code | |", "|---:|---|", *(f"| {code} | {said} |" for code, said in exit_codes())]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("keys", KeysDirective)
    app.add_directive("exit-codes", ExitCodesDirective)
    return {"version": "1", "parallel_read_safe": True}
