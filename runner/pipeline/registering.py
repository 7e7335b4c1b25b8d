"""Which notebooks ask for their model to be registered, as far as their code says; and which steps wait for the gate.

A step that registers needs the verdict whether it takes `gate.verdict` as an input or not: a model that did not pass is
not registered. Where [model] stands and no step registers, the run itself does.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from runner.notebook.source import Notebook, parsed, python_source
from runner.pipeline.file import VERDICT, upstream
from runner.records import Pipeline, StepSpec

REGISTER = ("runner.model.register", "runner.model.request.register")


def registers(notebook: Notebook, modules: Iterable[Path]) -> bool:
    """Whether a cell, or a module that the notebook imports, calls `runner.model.register`, under any name."""
    if _may_call("\n".join(cell.source for cell in notebook.code)) and _calls(tuple(map(python_source, notebook.code))):
        return True
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in modules)
    return any(_may_call(source) and _calls((source,)) for source in sources)


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


def registers_itself(pipeline: Pipeline, registering: Collection[str]) -> bool:
    """Whether a run that passes registers the model without a step that asks for it."""
    return pipeline.model is not None and bool(pipeline.gate) and not registering


def outlook(pipeline: Pipeline, registering: Collection[str]) -> Iterator[str]:
    """What stands in the way of registering the model of a run that passes."""
    steps = ", ".join(name for name in pipeline.steps if name in registering)
    how = "`runner register RUN` does it for a run that passed"
    if pipeline.model is None:
        if registering:
            reason = "there is no [model] to say its name: it will be refused"
            yield f"step {steps} calls runner.model.register, but {reason}."
    elif not pipeline.gate:
        model = pipeline.model.name
        yield f"there is no [[gate]], and only a run that passes its gate registers a model: no run registers {model}."
    elif not pipeline.model.register:
        yield f"[model] register is false, so nothing is registered; {how}."
    elif registering and all(name in pipeline.skip for name in registering):
        yield f"the profile skips {steps}, so nothing is registered; {how}."
    elif not registering and (missing := _skipped_parts(pipeline)):
        yield f"the profile skips {missing}, so nothing is registered."


def prospect(pipeline: Pipeline, registering: Collection[str]) -> str:
    """What a run that passes registers, in a sentence; "" where `outlook` says why it registers nothing."""
    model = pipeline.model
    if model is None:
        return "" if registering else "no run registers a model: there is no [model]"
    if any(outlook(pipeline, registering)):
        return ""
    how = "" if registering else f" from {model.from_}, with a card made from the run's records: no step registers"
    return f"a run that passes its gate registers {model.name}{how}"


def _skipped_parts(pipeline: Pipeline) -> str:
    """The steps that the profile skips though the model or the verdict comes from them, with the reason."""
    assert pipeline.model is not None
    maker = pipeline.model.from_.partition(".")[0]
    if maker in pipeline.skip:
        return f"{maker}, which makes the model"
    judged = (rule.metric.partition(".")[0] for rule in pipeline.gate)
    return next((f"{name}, which the gate judges" for name in judged if name in pipeline.skip), "")


def needs_verdict(spec: StepSpec) -> bool:
    return any(source.from_ == VERDICT for source in spec.inputs.values())


def _with_all_before(names: set[str], pipeline: Pipeline) -> set[str]:
    reached: set[str] = set()
    pending = [name for name in names if name in pipeline.steps]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += [step for step in upstream(pipeline.steps[name]) if step in pipeline.steps]
    return reached


def _may_call(source: str) -> bool:
    """False for most sources, which then need not be parsed."""
    return "register" in source and "runner" in source


@functools.lru_cache(maxsize=256)
def _calls(sources: tuple[str, ...]) -> bool:
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
                name = "register" if star else alias.name
                yield alias.asname or name, f"{node.module}.{name}"


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join([names.get(node.id, node.id), *parts]) if isinstance(node, ast.Name) else ""
