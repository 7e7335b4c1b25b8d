"""Several runs side by side: the parameters that differ, the metrics, and which of these may be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from runner.manifest import ModelVersionRef, RunManifest, StepState
from runner.pipeline.file import APPROVED, VERDICT, is_output
from runner.records import FORMAT, Better, InputFact, Metric, Outcome, Pipeline, Record, RunStatus, Value

SIGNATURE = "signature.json"  # what runner.model.save leaves in a model's folder

Direction = Literal["better", "worse", "same", "unknown"]


class RunFacts(Record, frozen=True, kw_only=True):
    """One of the runs, as the head of its column."""

    run: str
    started: str
    status: RunStatus
    verdict: Outcome | None
    note: str
    tags: list[str]
    profile: str | None
    commit: str | None
    model_version: ModelVersionRef | None


class ParameterRow(Record, frozen=True, kw_only=True):
    """One parameter (`step.name`) as resolved; `there` says which runs have it, as None can be its value."""

    name: str
    values: list[Value]
    there: list[bool]
    same: bool  # in all the runs that executed the step


class MetricRow(Record, frozen=True, kw_only=True):
    """One metric (`step.name`) in every run, None where it was not recorded.

    `not_comparable` has, for each run, why its value cannot be compared with the first one recorded; "" where it can.
    """

    name: str
    better: Better | None
    values: list[Metric | None]
    not_comparable: list[str]
    in_gate: bool = False

    @property
    def comparable(self) -> bool:
        return not any(self.not_comparable)


class RunComparison(Record, frozen=True, kw_only=True):
    """Everything in the order of `runs`. `same` counts the parameters that are equal in all of them."""

    format: int = FORMAT
    runs: list[RunFacts]
    parameters: list[ParameterRow]
    same: int
    metrics: list[MetricRow]


def compare(manifests: Sequence[RunManifest]) -> RunComparison:
    """The runs side by side. Metrics that the gate judges come first, then by name."""
    rows = list(_parameters(manifests))
    differing = [row for row in rows if not row.same]
    judged = {rule.metric for manifest in manifests for rule in manifest.pipeline.gate}
    values = [manifest.all_metrics() for manifest in manifests]
    of_runs = {name for manifest in manifests for name in manifest.metrics}
    of_keys = {name for other in values for name in other} - of_runs  # a mapped step's: only those that differ
    differing_keys = {name for name in of_keys if any(other.get(name) != values[0].get(name) for other in values)}
    return RunComparison(
        runs=[_facts(manifest) for manifest in manifests],
        parameters=differing,
        same=len(rows) - len(differing),
        metrics=[
            _row(name, manifests, values, in_gate=name.partition("[")[0] in judged)
            for name in sorted(of_runs | differing_keys, key=lambda n: (n.partition("[")[0] not in judged, n))
        ],
    )


def direction(before: Metric, now: Metric) -> Direction:
    """Whether the value got better or worse, by the metric's own `better`."""
    if before.value == now.value:
        return "same"
    better = now.better or before.better
    if better is None or (before.better and now.better and before.better != now.better):
        return "unknown"
    return "better" if (now.value > before.value) == (better == "higher") else "worse"


def overlap(before: Metric, now: Metric) -> bool | None:
    """Whether the intervals have a number in common; None where one of the two has none."""
    if before.low is None or before.high is None or now.low is None or now.high is None:
        return None
    return before.low <= now.high and now.low <= before.high


def equal(before: Value, now: Value) -> bool:
    """By type too: 1, 1.0 and True are three values."""
    return type(before) is type(now) and before == now


def step_packages(manifest: RunManifest) -> set[str]:
    """The packages that the run's steps depend on."""
    return {name for state in manifest.steps if state.key for name in state.key.packages}


def _parameters(manifests: Sequence[RunManifest]) -> Iterator[ParameterRow]:
    """Every parameter of every step, compared over the runs that reached the step."""
    states = [{state.name: state for state in manifest.steps if state.key} for manifest in manifests]
    for step in dict.fromkeys(name for by_name in states for name in by_name):
        keys = [by_name[step].key if step in by_name else None for by_name in states]
        for name in sorted({name for key in keys if key for name in key.parameters}):
            ran = [key.parameters for key in keys if key]
            yield ParameterRow(
                name=f"{step}.{name}",
                values=[key.parameters.get(name) if key else None for key in keys],
                there=[key is not None and name in key.parameters for key in keys],
                same=all(name in values and equal(ran[0].get(name), values[name]) for values in ran),
            )


def _facts(manifest: RunManifest) -> RunFacts:
    return RunFacts(
        run=manifest.run,
        started=manifest.started,
        status=manifest.status,
        verdict=manifest.verdict.outcome if manifest.verdict else None,
        note=manifest.note,
        tags=manifest.tags,
        profile=manifest.profile,
        commit=manifest.git.commit if manifest.git else None,
        model_version=manifest.model_version,
    )


def _row(
    name: str, manifests: Sequence[RunManifest], recorded: Sequence[Mapping[str, Metric]], *, in_gate: bool
) -> MetricRow:
    values = [metrics.get(name) for metrics in recorded]
    first = next(number for number, value in enumerate(values) if value is not None)
    reference = _data(name, manifests[first])
    return MetricRow(
        name=name,
        better=next((value.better for value in values if value is not None and value.better), None),
        values=values,
        not_comparable=[
            "" if value is None or number == first else why_not(reference, _data(name, manifest))
            for number, (value, manifest) in enumerate(zip(values, manifests, strict=True))
        ],
        in_gate=in_gate,
    )


def not_comparable(name: str, before: RunManifest, now: RunManifest) -> str:
    """Why the metric's two values cannot be compared: "test data differ"; "" where they can."""
    return why_not(_data(name, before), _data(name, now))


def why_not(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The data, by name, that are not the same bytes in both."""
    differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return f"{', '.join(differing)} data differ" if differing else ""


def _data(metric: str, manifest: RunManifest) -> dict[str, str]:
    """Input -> sha256 of what the metric was measured on: what the recording step was given, models left out.

    Models differ because they are what is compared. A metric that the gate judges only when some input is there (the
    champion) is measured against that input too.
    """
    step = metric.partition(".")[0]
    states = {state.name: state for state in manifest.steps}
    hashes = _measured_on(step, states, manifest.pipeline)
    against = {rule.when for rule in manifest.pipeline.gate if rule.metric == metric}
    inputs = _inputs(step, states).items()
    return hashes | {name: _sha256(fact) for name, fact in inputs if f"{step}.{name}" in against}


def _measured_on(step: str, states: Mapping[str, StepState], pipeline: Pipeline) -> dict[str, str]:
    """The step's inputs that are not models; for one computed with a model, what it was computed from."""
    hashes: dict[str, str] = {}
    for name, fact in _inputs(step, states).items():
        maker = fact.source.partition(".")[0]
        if _is_model(fact, pipeline):
            continue
        if is_output(fact.source) and _takes_model(maker, states, pipeline):
            for other, sha256 in _measured_on(maker, states, pipeline).items():
                hashes.setdefault(other, sha256)
        else:
            hashes[name] = _sha256(fact)
    return hashes


def _takes_model(step: str, states: Mapping[str, StepState], pipeline: Pipeline) -> bool:
    return any(
        _is_model(fact, pipeline)
        or (is_output(fact.source) and _takes_model(fact.source.partition(".")[0], states, pipeline))
        for fact in _inputs(step, states).values()
    )


def _is_model(fact: InputFact, pipeline: Pipeline) -> bool:
    """The pipeline's model, an approved one, a folder that runner.model.save wrote; and the verdict on one."""
    if fact.source == VERDICT or fact.source.startswith(APPROVED):
        return True
    if fact.artifact is not None and SIGNATURE in (fact.artifact.files or {}):
        return True
    return pipeline.model is not None and fact.source == pipeline.model.from_


def _inputs(step: str, states: Mapping[str, StepState]) -> Mapping[str, InputFact]:
    state = states.get(step)
    return state.job.inputs if state is not None and state.job is not None else {}


def _sha256(fact: InputFact) -> str:
    return fact.artifact.sha256 if fact.artifact else ""
