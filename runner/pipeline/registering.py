"""Which notebooks ask for their model to be registered, as far as their code says; and which steps wait for the gate.

A step that registers needs the verdict whether it takes `gate.verdict` as an input or not: a model that did not pass is
not registered.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from runner.notebook.source import Notebook, parsed, python_source
from runner.pipeline.file import VERDICT, upstream
from runner.records import Pipeline, StepSpec

HOW_TO_REGISTER = (
    "Add a step that takes the model and `gate.verdict` as inputs, with `runner.model.register(model)` in its notebook "
    "(docs/own-notebooks.md)."
)
REGISTER = ("runner.model.register", "runner.model.request.register")


def registers(notebook: Notebook, modules: Iterable[Path]) -> bool:
    """Whether a cell, or a module that the notebook imports, calls `runner.model.register`, under any name."""
    if _may_call("\n".join(cell.source for cell in notebook.code)) and _calls(map(python_source, notebook.code)):
        return True
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in modules)
    return any(_may_call(source) and _calls([source]) for source in sources)


def gated(pipeline: Pipeline, registering: Iterable[str]) -> frozenset[str]:
    """The steps that run only after a passing gate: those that take its verdict, and those that register.

    One that the gate itself waits for cannot wait for the gate; what it asks for is registered once that has passed.
    """
    explicit = {name for name, spec in pipeline.steps.items() if needs_verdict(spec)}
    judged = _with_all_before({rule.metric.partition(".")[0] for rule in pipeline.gate}, pipeline)
    implied = set(registering) - judged if pipeline.gate else set()
    return frozenset(explicit | implied)


def needs_of(name: str, pipeline: Pipeline, waiting: Iterable[str]) -> list[str]:
    """The steps that must have succeeded before this one, in the file's order; `waiting` are those of `gated`."""
    needs = upstream(pipeline.steps[name])
    if name in waiting:
        needs |= {rule.metric.partition(".")[0] for rule in pipeline.gate}
    return [step for step in pipeline.steps if step in needs]


def outlook(pipeline: Pipeline, registering: Collection[str]) -> Iterator[str]:
    """What stands in the way of registering the model of a run that passes."""
    steps = ", ".join(name for name in pipeline.steps if name in registering)
    if pipeline.model is None:
        if registering:
            yield f"step {steps} calls runner.model.register, but there is no [model] to say its name: it will be refused."
    elif not pipeline.gate:
        yield (
            f"there is no [[gate]], and only a run that passes its gate registers a model: no run registers "
            f"{pipeline.model.name}."
        )
    elif not registering:
        yield (
            "no notebook calls runner.model.register, as far as their code says, so a run that passes its gate registers "
            f"nothing. {HOW_TO_REGISTER}"
        )
    elif all(name in pipeline.skip for name in registering):
        yield f"the profile skips {steps}, so nothing is registered; `runner register RUN` does it for a run that passed."


def needs_verdict(spec: StepSpec) -> bool:
    return any(source.from_ == VERDICT for source in spec.inputs.values())


def _with_all_before(names: set[str], pipeline: Pipeline) -> set[str]:
    found: set[str] = set()
    pending = [name for name in names if name in pipeline.steps]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += [step for step in upstream(pipeline.steps[name]) if step in pipeline.steps]
    return found


def _may_call(source: str) -> bool:
    """What most sources are told by, without being parsed."""
    return "register" in source and "runner" in source


def _calls(sources: Iterable[str]) -> bool:
    """Whether one of the sources, which share their names as cells do, calls it; what does not parse is left out."""
    trees = [tree for source in sources if (tree := parsed(source)) is not None]
    names = dict(pair for tree in trees for pair in _bound(tree))
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(_dotted(call.func, names) in REGISTER for call in calls)


def _bound(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in the code, what it stands for) of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                star = alias.name == "*" and f"{node.module}.register" in REGISTER
                yield (
                    ("register", f"{node.module}.register")
                    if star
                    else (
                        alias.asname or alias.name,
                        f"{node.module}.{alias.name}",
                    )
                )


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join([names.get(node.id, node.id), *parts]) if isinstance(node, ast.Name) else ""
