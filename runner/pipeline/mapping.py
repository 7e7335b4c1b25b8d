"""Mapped steps: which keys one has, the folder of each, and what is wrong with a `map` or with a rule about it.

Keys come from pipeline.toml or from a JSON output of an earlier step, so nothing here is trusted to be a path.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from runner.errors import PipelineError, UsageError
from runner.notebook.parameters import Declared
from runner.notebook.source import Notebook
from runner.notebook.types import DoesNotFit, check
from runner.records import Key, Pipeline, Rule, StepSpec

MOST = 10_000  # keys of a step
INDEX = "keys.json"  # in each output of a mapped step: its keys with their folders
PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,58}[A-Za-z0-9_-])?\Z")
HASHED = re.compile(r".*-[0-9a-f]{12}\Z")  # a key that looks like a name made here is given one too


def source(spec: StepSpec) -> tuple[str, str | list[Key]]:
    """The mapped parameter, and its keys or the output that has them."""
    ((parameter, keys),) = spec.map.items()
    return parameter, keys


def folders(keys: Sequence[Key]) -> list[str]:
    """A folder's name for each key, no two alike on any file system; a plain key is its own."""
    plain = [str(key) if PLAIN.match(str(key)) and not HASHED.match(str(key)) else "" for key in keys]
    counts = Counter(name.casefold() for name in plain)
    return [
        name if name and counts[name.casefold()] == 1 and name != INDEX else _hashed(key)
        for key, name in zip(keys, plain, strict=True)
    ]


def _hashed(key: Key) -> str:
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9_]+", "-", str(key)).strip("-")[:40]
    return f"{words or 'key'}-{digest}"


def keys_in(content: bytes, where: str) -> Any:
    """The value of a JSON output. Raises UsageError."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error}). Write a list of texts or numbers there.") from error


def checked(value: Any, where: str, declared: Declared | None) -> list[Key]:
    """The keys in `value`, by the type that the notebook declares for the parameter. Raises UsageError."""
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else f"a {type(value).__name__}, not a list"
        raise UsageError(f"{where} is {what}. Write a list of texts or numbers, one for each key.")
    if len(value) > MOST:
        raise UsageError(f"{where} has {len(value):,} keys; {MOST:,} is the most. Let one key stand for several.")
    keys = [_key(item, where, declared) for item in value]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise UsageError(f"{where} has the key {twice[0]!r} twice; each key is executed once. Leave one out.")
    names = Counter(folders(keys))
    if len(names) < len(keys):
        raise UsageError(f"{where} has two keys whose folder would be {names.most_common(1)[0][0]}. Rename one.")
    return keys


def _key(item: Any, where: str, declared: Declared | None) -> Key:
    if isinstance(item, bool) or not isinstance(item, str | int | float):
        raise UsageError(f"{where} has {str(item)[:80]!r} in it, and a key is a text or a number.")
    if isinstance(item, float) and not math.isfinite(item):
        raise UsageError(f"{where} has {item!r} in it, which is not a finite number.")
    try:
        str(item).encode()
        value = check(item, declared.type if declared is not None else None)
        if declared is not None and (outside := declared.outside(value)):
            raise DoesNotFit(outside)
    except (DoesNotFit, UnicodeEncodeError) as error:
        raise UsageError(f"{where}: {error}.") from error
    assert isinstance(value, str | int | float)
    return value


def refuse_pushed(pipeline: Pipeline) -> None:
    """Raises PipelineError where a step is mapped: a Pipeline's jobs are made before its keys are known."""
    for name, spec in pipeline.steps.items():
        if spec.map and name not in pipeline.skip:
            raise PipelineError(
                f"steps.{name}.map: a mapped step is not in a SageMaker Pipeline, whose jobs are made before the keys "
                "are known. Run it with `runner run --on sagemaker`, or leave it out with a profile's `skip`."
            )


def findings(name: str, spec: StepSpec, pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with a step's `map` and `share`, as far as pipeline.toml says."""
    where = f"steps.{name}"
    if not 0 < spec.share <= 1:
        yield f"{where}.share is {spec.share:g}; it is above 0, and at most 1."
    if not spec.map:
        if spec.share != 1.0:
            yield f"{where}.share is of a map's keys, and there is no `map`."
        return
    if len(spec.map) > 1:
        yield f"{where}.map names {len(spec.map)} parameters; it is one. Put what belongs together into one key."
        return
    parameter, keys = source(spec)
    if isinstance(keys, str):
        step, _, output = keys.partition(".")
        maker = pipeline.steps.get(step)
        if step == name:
            yield f"{where}.map.{parameter}: a step cannot take its keys from itself."
        elif maker is not None and output in maker.outputs and (maker.map or maker.outputs[output].endswith("/")):
            yield f"{where}.map.{parameter}: {keys} is a folder; the keys are in a file, a JSON list."
        return
    try:
        checked(keys, f"{where}.map.{parameter}", None)
    except UsageError as error:
        yield str(error)


def rule_findings(rule: Rule, pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with `each` and `share` of a rule of the gate."""
    spec = pipeline.steps.get(rule.metric.partition(".")[0])
    if spec is None:
        return
    if rule.each is True and isinstance(rule.share, float):
        yield f"gate: {rule.metric}: `each` and `share` are both written; take one."
    if rule.by_key is not None and not 0 < rule.by_key <= 1:
        yield f"gate: {rule.metric}: share is {rule.by_key:g}; it is above 0, and at most 1."
    if spec.map and rule.by_key is None:
        yield f"gate: {rule.metric} has a value for each key: write `each = true`, or `share = 0.95`."
    if not spec.map and rule.by_key is not None:
        yield f"gate: {rule.metric} has one value, as its step is not mapped: take `each` and `share` out."


def parameter_findings(name: str, spec: StepSpec, notebook: Notebook, *, file: str, registers: bool) -> Iterator[str]:
    """What is wrong with the mapped parameter, as far as the notebook says."""
    parameter, keys = source(spec)
    where, declared = f"{file}: steps.{name}.map", notebook.parameters.get(parameter)
    if registers:
        yield f"{where}: {spec.notebook} calls runner.model.register, which a run does once. Do it in a step after it."
    if declared is not None and declared.secret:
        yield f"{where}.{parameter}: a secret is no key."
    if isinstance(keys, list):
        try:
            checked(keys, f"{where}.{parameter}", declared)
        except UsageError as error:
            yield str(error)
