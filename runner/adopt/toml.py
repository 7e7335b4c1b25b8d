"""A pipeline.toml in the form in which people write one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.adopt.proposal import Step

LONGEST_VALUE = 60  # characters
HEAD = "# The steps in their order; `runner check` says what is wrong here."
NO_RULE = (
    "# No rule holds yet: a threshold is for people to choose, before they look at the result. Without a [[gate]] a",
    "# run is not judged and registers nothing. A rule holds without its `#`, and with a number behind min or max:",
)
NO_METRIC = (
    '# There is nothing to judge by yet: record a number, `metric("auc", auc)` from runner.scraps, in a step\'s last',
    '# cell, and write a [[gate]] with `metric = "STEP.auc"`.',
)


def pipeline_toml(name: str, steps: Sequence[Step], shared: Mapping[str, Any]) -> str:
    """`shared` are the parameters that several notebooks declare with one value."""
    lines = [HEAD, f"name = {value(name)}"]
    if shared:
        lines += ["", "[parameters]                        # each reaches every notebook that declares the name"]
        lines += [f"{key} = {value(item)}" for key, item in shared.items()]
    for step in steps:
        lines += ["", f"[steps.{step.name}]", f"notebook = {value(step.notebook)}"]
        lines += [
            f"{role} = {value(table)}" for role, table in (("inputs", step.inputs), ("outputs", step.outputs)) if table
        ]
        own = {key: item for key, item in step.parameters.items() if key not in shared and is_short(item)}
        if own:
            lines.append(f"# parameters = {value(own)}   # as in the notebook; without the `#` these hold")
    lines += ["", *_gate(steps)]
    return "\n".join(lines) + "\n"


def _gate(steps: Sequence[Step]) -> Iterable[str]:
    metrics = [(f"{step.name}.{name}", better) for step in steps for name, better in step.metrics.items()]
    if not metrics:
        yield from NO_METRIC
        return
    yield from NO_RULE
    for metric, better in metrics:
        threshold = {"higher": "min = ", "lower": "max = "}.get(better, "min = ")
        yield from ("#", "# [[gate]]", f"# metric = {value(metric)}", f"# {threshold}".rstrip())


def is_short(item: Any) -> bool:
    """Whether the value is read easily beside others; longer ones stand in the notebook alone."""
    return len(value(item)) <= LONGEST_VALUE


def value(item: Any) -> str:
    """As TOML, on one line."""
    match item:
        case bool():
            return "true" if item else "false"
        case int() | float():
            return repr(item)
        case str():
            return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007F")
        case list():
            return f"[{', '.join(map(value, item))}]"
        case dict():
            pairs = ", ".join(f"{key(name)} = {value(part)}" for name, part in item.items())
            return f"{{ {pairs} }}"
    raise TypeError(f"{item!r} cannot be written in TOML.")


def key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else value(name)
