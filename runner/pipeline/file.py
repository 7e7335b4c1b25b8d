"""pipeline.toml: reading it, applying a profile, and everything that can be said without a notebook.

Every finding names the key and, where a name is unknown, the nearest valid one.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import tomllib
from collections.abc import Iterable, Iterator
from datetime import date, time
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_args

import msgspec

from runner.errors import PipelineError
from runner.paths import in_words, stays_below
from runner.pipeline import cluster, mapping
from runner.pipeline.addresses import is_public, public
from runner.pipeline.capture import capture_findings
from runner.records import (
    ApprovalSpec,
    ClusterSpec,
    InputSpec,
    LocalTargetSpec,
    ModelSpec,
    MonitorSpec,
    NotifySpec,
    Pipeline,
    Record,
    Rule,
    SageMaker,
    SageMakerTargetSpec,
    StepSpec,
    StoreSpec,
    Target,
)

APPROVED, VERDICT = "approved:", "gate.verdict"
CAPTURED, DEPLOYED, REFERENCE, PROMISED = "captured:", "deployed:", "reference:", "promised:"
AT_TARGET = (CAPTURED, DEPLOYED, REFERENCE, PROMISED)  # and the name of a target
ADDRESSES = ("s3://", "https://")
RESERVED_STEPS = ("gate", "approved")
REGISTRATION = "registration.json"  # what runner.model.register leaves in a step's outputs
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")  # also what SageMaker accepts as a model package group
STEP = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}\Z")

TABLES: dict[str, type[Record]] = {
    "sagemaker": SageMaker,
    "store": StoreSpec,
    "approval": ApprovalSpec,
    "notify": NotifySpec,
    "monitor": MonitorSpec,
}
TOP = ("name", "parameters", "steps", "gate", "model", "profiles", *TABLES, "targets")
VARIABLE = re.compile(r"env:[A-Za-z_]\w*", re.ASCII)

R = TypeVar("R", bound=Record)


def load(path: Path, profile: str | None = None) -> Pipeline:
    """The pipeline in the file with `profile` applied. Raises PipelineError with every finding."""
    pipeline, findings = examine(path, profile)
    if findings:
        raise PipelineError(*findings)
    return pipeline


def examine(path: Path, profile: str | None = None) -> tuple[Pipeline, list[str]]:
    """The pipeline, without what could not be read of it, and every finding.

    Raises PipelineError where the file is not valid TOML.
    """
    table = _table(path)
    profiles = table.get("profiles", {})
    if profile is not None:
        if not isinstance(profiles, dict) or profile not in profiles:
            raise PipelineError(f"{path.name}: there is no profile {profile!r}{nearest(profile, profiles)}")
        table = _merged(table, profiles[profile])
    table.pop("profiles", None)
    if "monitor" in table:
        table["sagemaker"] = _sagemaker_of_both(table, path)
    findings: list[str] = []
    pipeline = _pipeline(table, findings)
    findings += _references(pipeline)
    return pipeline, [f"{path.name}: {finding}" for finding in findings]


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean X?`, or the valid names where none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; there is {', '.join(f'`{name}`' for name in names[:12])}." if names else "."


def is_path(source: str) -> bool:
    return source.startswith(("./", "../", "/", "~/"))


def is_address(source: str) -> bool:
    if source.startswith("http://"):  # carries no proof of what arrives, so it is for this machine alone
        from runner.loopback import leads_here  # 5 ms that no other source needs

        return leads_here(source)
    return source.startswith(ADDRESSES)


def upstream(spec: StepSpec) -> set[str]:
    """The steps whose outputs `spec` takes as inputs, and those it is to run after."""
    steps = {source.from_.partition(".")[0] for source in spec.inputs.values() if is_output(source.from_)}
    mapped = {source.partition(".")[0] for source in spec.map.values() if isinstance(source, str)}
    return steps | mapped | set(spec.after)


def is_output(source: str) -> bool:
    return not (source == VERDICT or source.startswith((APPROVED, *AT_TARGET)) or is_path(source) or is_address(source))


def _table(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise PipelineError(
            f"There is no {path}. Run in the folder that has a pipeline.toml, or name one with --pipeline FILE."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be read: {error}.") from error
    try:
        table: dict[str, Any] = _without_dates(tomllib.loads(text))
        return table
    except RecursionError:
        raise PipelineError(f"{path} is nested too deeply to be read as TOML.") from None
    except tomllib.TOMLDecodeError as error:
        raise PipelineError(f"{path}: is not valid TOML: {error}.") from error


def _without_dates(value: Any) -> Any:
    """TOML's dates and times as their text, which is what a notebook is handed and JSON can say."""
    if isinstance(value, dict):
        return {key: _without_dates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_dates(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else value  # datetime is a date


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `base`: tables merge, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _sagemaker_of_both(table: dict[str, Any], path: Path) -> Any:
    """[sagemaker] over that of the file which has the targets: what watches runs and keeps its files where they do."""
    own, monitor = table.get("sagemaker", {}), table["monitor"]
    of = monitor.get("of", MonitorSpec().of) if isinstance(monitor, dict) else None
    if not isinstance(of, str) or of == path.name or not isinstance(own, dict):
        return own
    with contextlib.suppress(PipelineError, ValueError):  # whoever needs that file says what is wrong with it
        watched = _table(path.with_name(of))
        if isinstance(watched.get("sagemaker"), dict):
            return {"prefix": watched.get("name", ""), **watched["sagemaker"], **own}
    return own


def _pipeline(table: dict[str, Any], findings: list[str]) -> Pipeline:
    valid = (*TOP, "skip")  # `skip` comes from a profile
    for key in table:
        if key not in valid:
            findings.append(f"`{key}` is not a key{nearest(key, TOP)}")
    if not isinstance(table.get("notify", {}), dict):
        del table["notify"]  # an address is a secret, so that it is not quoted
        findings.append('notify: write [notify] with to = "env:NAME"; the addresses belong into that variable.')
    steps = {
        name: step for name, raw in _items(table, "steps", findings) if (step := _step(name, raw, findings)) is not None
    }
    rules = [
        rule
        for index, raw in enumerate(_list(table, "gate", findings), 1)
        if (rule := _record(Rule, raw, f"gate rule {index}", findings)) is not None
    ]
    model = _record(ModelSpec, table["model"], "model", findings) if "model" in table else None
    targets = {
        name: target
        for name, raw in _items(table, "targets", findings)
        if (target := _target(name, raw, findings)) is not None
    }
    general = {key: table[key] for key in ("name", "parameters", "skip") if key in table}
    if not isinstance(general.get("name"), str) or not NAME.match(general["name"]):
        findings.append("`name` is needed: letters, digits and `-`, at most 63.")
        general["name"] = "unnamed"
    pipeline = _record(Pipeline, general, "", findings) or Pipeline(name="unnamed")
    tables = {
        key: record
        for key, kind in TABLES.items()
        if key in table and (record := _record(kind, table[key], key, findings)) is not None
    }
    return msgspec.structs.replace(pipeline, steps=steps, gate=rules, model=model, targets=targets, **tables)


def _step(name: str, raw: Any, findings: list[str]) -> StepSpec | None:
    where = f"steps.{name}"
    if not STEP.match(name) or name in RESERVED_STEPS:
        findings.append(
            f"{where}: a step's name is letters, digits, `_`, `-`, and not one of {', '.join(RESERVED_STEPS)}."
        )
    if not isinstance(raw, dict):
        findings.append(f"{where} is not a table.")
        return None
    inputs: dict[str, InputSpec] = {}
    for key, value in _items(raw, "inputs", findings, where):
        table = {"from": value} if isinstance(value, str) else value
        if (spec := _record(InputSpec, table, f"{where}.inputs.{key}", findings)) is not None:
            inputs[key] = spec
    remote = _record(SageMaker, raw.get("sagemaker", {}), f"{where}.sagemaker", findings) or SageMaker()
    spread = _record(ClusterSpec, raw["cluster"], f"{where}.cluster", findings) if "cluster" in raw else None
    outputs = dict(_items(raw, "outputs", findings, where))  # `_output_paths` says better what they may be
    for key in [key for key, path in outputs.items() if not isinstance(path, str)]:
        findings.append(f"{where}.outputs.{key}: Expected a path as text, got {outputs.pop(key)!r}.")
    step = _record(StepSpec, {**raw, "inputs": {}, "outputs": {}, "sagemaker": {}, "cluster": None}, where, findings)
    parts = {"inputs": inputs, "outputs": outputs, "sagemaker": remote, "cluster": spread}
    return msgspec.structs.replace(step, **parts) if step else None


def _target(name: str, raw: Any, findings: list[str]) -> Target | None:
    kind = raw.get("kind") if isinstance(raw, dict) else None
    for spec in get_args(Target):
        if spec.__struct_config__.tag == kind:
            target: Target | None = _record(spec, raw, f"targets.{name}", findings)
            return target
    findings.append(f'targets.{name}.kind is needed: "local" or "sagemaker".')
    return None


@functools.cache
def _keys(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The keys of the record, whose annotations take long to evaluate."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _record(kind: type[R], raw: Any, where: str, findings: list[str]) -> R | None:
    """`raw` as the record, without the unknown keys and wrong types, of which `findings` gets one sentence each.

    None where the rest is not a complete record.
    """
    if not isinstance(raw, dict):
        findings.append(f"{where}: {raw!r} is not a table.")
        return None
    valid = set(_keys(kind))
    of_kind, config = "", kind.__struct_config__
    if config.tag_field is not None:
        valid.add(config.tag_field)
        of_kind = f" where {config.tag_field} is {str(config.tag)!r}"
    prefix = f"{where}." if where else ""
    findings += [f"{prefix}{key} is not a key{of_kind}{nearest(key, valid)}" for key in raw if key not in valid]
    values = {key: value for key, value in raw.items() if key in valid}
    wrong = False
    while True:
        try:
            return msgspec.convert(values, kind)
        except msgspec.ValidationError as error:
            reason, _, at = in_words(error).partition(" - at `$")
            key = next((key for key in values if at.startswith((f".{key}.", f".{key}`", f".{key}["))), None)
            if key is None:
                if not wrong:  # else what is missing now is what did not fit
                    findings.append(f"{where}{at.rstrip('`')}: {reason}.")
                return None
            findings.append(f"{where}{at.rstrip('`')}: {reason}.".lstrip("."))
            del values[key]
            wrong = True


def _items(table: dict[str, Any], key: str, findings: list[str], where: str = "") -> Iterator[tuple[str, Any]]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        findings.append(f"{where + '.' if where else ''}{key} is not a table.")
        return
    yield from value.items()


def _list(table: dict[str, Any], key: str, findings: list[str]) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        findings.append(f"`{key}` is written as [[{key}]], a list of tables.")
        return []
    return value


def _references(pipeline: Pipeline) -> Iterator[str]:
    """What the pipeline names and does not have."""
    if not pipeline.steps:
        yield "there are no steps; write `[steps.NAME]` with `notebook = ...`."
    for name in pipeline.skip:
        if name not in pipeline.steps:
            yield f"skip: there is no step `{name}`{nearest(name, pipeline.steps)}"
    for name, step in pipeline.steps.items():
        yield from _step_references(name, step, pipeline)
    for rule in pipeline.gate:
        yield from _rule_references(rule, pipeline)
    if pipeline.model is not None:
        if not NAME.match(pipeline.model.name):
            yield f"model.name: {pipeline.model.name!r} is not made of letters, digits and `-`, at most 63."
        yield from _output_reference(pipeline.model.from_, "model.from", pipeline)
        maker = pipeline.steps.get(pipeline.model.from_.partition(".")[0])
        if maker is not None and maker.map:
            yield f"model.from: {pipeline.model.from_} has many models, as its step is mapped. Take one step's."
    for name in pipeline.targets:
        yield from _target_references(name, pipeline)
    yield from _notify_addresses(pipeline.notify)
    yield from (f"sagemaker: {said}" for said in _contradictions(pipeline.sagemaker))


def _notify_addresses(notify: NotifySpec) -> Iterator[str]:
    """What is written where a variable belongs is a secret, so that it is not quoted."""
    if notify.to is not None and not VARIABLE.fullmatch(notify.to):
        yield 'notify.to is the name of a variable, "env:NAME"; the addresses belong into that variable.'
    if notify.pages is not None and not (
        notify.pages.startswith(("https://", "http://")) and is_public(notify.pages) and notify.pages.isprintable()
    ):
        yield "notify.pages is an address, https://…, without a password or token."


def _target_references(name: str, pipeline: Pipeline) -> Iterator[str]:
    where, target = f"targets.{name}", pipeline.targets[name]
    if not STEP.match(name):
        yield f"{where}: a target's name is letters, digits, `_` and `-`, at most 31."
    yield from _required_targets(name, pipeline)
    yield from capture_findings(where, target)
    match target:
        case LocalTargetSpec():
            if target.port is not None and not 1 <= target.port <= 65535:
                yield f"{where}.port is {target.port}; it is 1 to 65535."
            yield from _not_above_zero(where, target, "workers", "max_body_mb", "timeout_s", "max_connections")
        case SageMakerTargetSpec():
            if target.serverless is not None and (target.instance or target.instance_count or target.scaling):
                yield f"{where}: serverless has no instances to name, count or scale."
            yield from _not_above_zero(where, target, "instance_count")
            if target.scaling is not None and not 0 < target.scaling.min <= target.scaling.max:
                yield f"{where}.scaling: min is above 0, and not above max."


def _required_targets(name: str, pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with the chain of targets that a version must have served at before."""
    chain, before = [name], pipeline.targets[name].requires
    while before is not None:
        if before not in pipeline.targets:
            yield f"targets.{name}.requires: there is no target `{before}`{nearest(before, pipeline.targets)}"
            return
        if before in chain:
            yield f"targets.{name}.requires: {' → '.join([*chain, before])} goes round in a circle."
            return
        chain.append(before)
        before = pipeline.targets[before].requires


def _not_above_zero(where: str, record: Record, *keys: str) -> Iterator[str]:
    for key in keys:
        value = getattr(record, key)
        if value is not None and not value > 0:
            yield f"{where}.{key} is {value}; it is above 0."


def _step_references(name: str, step: StepSpec, pipeline: Pipeline) -> Iterator[str]:
    where = f"steps.{name}"
    for key, spec in step.inputs.items():
        yield from _input_references(name, f"{where}.inputs.{key}", spec, pipeline)
    for other in step.after:
        if other not in pipeline.steps:
            yield f"{where}.after: there is no step `{other}`{nearest(other, pipeline.steps)}"
    if step.retries < 0:
        yield f"{where}.retries is {step.retries}; it is 0 or more."
    yield from _not_above_zero(where, step, "timeout_s", "cell_timeout_s")
    if step.map and {**pipeline.sagemaker.written(), **step.sagemaker.written()}.get("job") == "training":
        yield f'{where}: a mapped step is no training job. Write job = "processing" in its [sagemaker] table.'
    for said in _contradictions(pipeline.sagemaker, step.sagemaker):
        if said not in _contradictions(pipeline.sagemaker):
            yield f"{where}.sagemaker: {said}"
    yield from _output_paths(where, step)
    for key, keys in step.map.items():
        if isinstance(keys, str):
            yield from _output_reference(keys, f"{where}.map.{key}", pipeline)
    yield from mapping.findings(name, step, pipeline)
    yield from cluster.findings(name, step, pipeline)


def _input_references(step: str, where: str, spec: InputSpec, pipeline: Pipeline) -> Iterator[str]:
    source = spec.from_
    if source == VERDICT:
        if not pipeline.gate:
            yield f"{where}: needs gate.verdict, but there is no [[gate]] rule."
        if step in {rule.metric.partition(".")[0] for rule in pipeline.gate}:
            yield f"{where}: the gate judges a metric of {step} itself, so it cannot need the verdict."
    elif source.startswith(APPROVED):
        if not NAME.match(source.removeprefix(APPROVED)):
            yield f"{where}: {source!r} names no model; write `approved:NAME`."
    elif source.startswith(AT_TARGET):
        if not STEP.match(source.partition(":")[2]):
            yield f"{where}: {source!r} names no target; write `{source.partition(':')[0]}:TARGET`."
    elif is_output(source):
        yield from _output_reference(source, where, pipeline)
    if spec.as_ == "uri" and not is_address(source):
        yield f'{where}: `as = "uri"` is for addresses (s3://, https://), not {source!r}.'


def _output_paths(where: str, step: StepSpec) -> Iterator[str]:
    owners: dict[PurePosixPath, str] = {}
    for key, written in step.outputs.items():
        path = PurePosixPath(written)
        if not stays_below(written) or "\\" in written or path == PurePosixPath("."):
            yield f"{where}.outputs.{key}: {written!r} must be a path below the step's output folder."
        elif path == PurePosixPath(REGISTRATION):
            yield f"{where}.outputs.{key}: {REGISTRATION} is kept for runner.model.register."
        else:
            for other, owner in owners.items():
                if path == other or path in other.parents or other in path.parents:
                    yield f"{where}.outputs.{key}: {written!r} and {owner} ({str(other)!r}) overlap."
            owners[path] = key


def _output_reference(source: str, where: str, pipeline: Pipeline) -> Iterator[str]:
    step, _, output = source.partition(".")
    if not output or "://" in source:
        yield (
            f"{where}: {public(source)!r} is not a source: write `step.output`, a path that begins with ./ or /, "
            "s3://…, https://…, `approved:NAME`, `captured:TARGET`, `deployed:TARGET` or `gate.verdict`."
        )
    elif step not in pipeline.steps:
        yield f"{where}: there is no step `{step}`{nearest(step, pipeline.steps)}"
    elif output not in pipeline.steps[step].outputs:
        yield f"{where}: step {step} has no output `{output}`{nearest(output, pipeline.steps[step].outputs)}"


def _rule_references(rule: Rule, pipeline: Pipeline) -> Iterator[str]:
    step, _, name = rule.metric.partition(".")
    if step not in pipeline.steps or not name:
        yield f"gate: {rule.metric!r} is not a `step.metric`{nearest(step, pipeline.steps)}"
    yield from mapping.rule_findings(rule, pipeline)
    if rule.when is not None:
        step, _, name = rule.when.partition(".")
        if step not in pipeline.steps:
            yield f"gate: when: there is no step `{step}`{nearest(step, pipeline.steps)}"
        elif name not in pipeline.steps[step].inputs:
            yield f"gate: when: step {step} has no input `{name}`{nearest(name, pipeline.steps[step].inputs)}"


def _contradictions(spec: SageMaker, own: SageMaker | None = None) -> list[str]:
    """What keys of [sagemaker], with a step's `own` over them, say against each other; a sentence for each."""
    keys = {**spec.written(), **(own or SageMaker()).written()}
    trains, said = keys.get("job") == "training", list[str]()
    for key, what in (("spot", "spot"), ("keep_warm_s", "a warm pool")):
        if keys.get(key) and not trains:
            said.append(f'{key} is set, and only a training job takes {what}: write job = "training", or take it out.')
    if keys.get("spot") and keys.get("keep_warm_s"):
        said.append("spot and keep_warm_s are both set, and a spot instance is not kept warm: take one of them out.")
    if trains and keys.get("together"):
        said.append(
            'together = true and job = "training" are both set, and a training job has one step: '
            "write together = false."
        )
    return said
