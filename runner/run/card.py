"""The model card of a run that registers its model itself, from the run's records alone.

Markdown; names, values and addresses in it are made inert. What the model is for, a person has to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runner.escape import code, markdown
from runner.manifest import RunManifest
from runner.records import Artifact, Metric
from runner.run.store import facts_of

LONGEST_VALUE = 200  # characters of a parameter's value
USE = (
    "Nobody has written what this model is for and where it ends. A notebook that calls "
    "`runner.model.register(model, card=…)` registers it with a card of its own."
)


def card(manifest: RunManifest, model: Artifact) -> str:
    """The card of `model`, the folder that [model] from names. Equal records give an equal card.

    The manifest has a [model] and a verdict.
    """
    assert manifest.pipeline.model is not None
    parts = {
        "Verdict": _verdict(manifest),
        "Metrics": _metrics(manifest.metrics),
        "Data": _data(manifest),
        "Parameters": _parameters(manifest),
        "Lineage": _lineage(manifest, model),
        "Intended use": [USE],
    }
    title = f"# Model card: {markdown(manifest.pipeline.model.name)}"
    return "\n\n".join([title, *(_section(name, lines) for name, lines in parts.items())]) + "\n"


def description(manifest: RunManifest) -> str:
    """One line: what the gate judged, by value."""
    judged = dict.fromkeys(rule.metric for rule in manifest.pipeline.gate)
    return ", ".join(f"{name} {manifest.metrics[name].value:.4g}" for name in judged if name in manifest.metrics)


def _section(title: str, lines: Iterable[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines)


def _verdict(manifest: RunManifest) -> Iterator[str]:
    assert manifest.verdict is not None
    yield f"**{manifest.verdict.outcome}**"
    yield ""
    yield from (f"- {markdown(rule.sentence)}" for rule in manifest.verdict.rules)


def _metrics(metrics: dict[str, Metric]) -> Iterator[str]:
    yield "| metric | value | interval |"
    yield "|---|---|---|"
    for name, metric in sorted(metrics.items()):
        ends = "" if metric.low is None or metric.high is None else f"{metric.low:.6g} to {metric.high:.6g}"
        yield f"| {code(name)} | {metric.value:.6g} | {ends} |"


def _data(manifest: RunManifest) -> Iterator[str]:
    facts = {key: fact.artifact for key, fact in sorted(manifest.sources.items()) if fact.artifact is not None}
    for key, artifact in facts.items():
        yield f"- {code(key)}: sha256 {code(artifact.sha256)}, {artifact.size_bytes:,} bytes"
    if not facts:
        yield "No step has an input from outside the run."


def _parameters(manifest: RunManifest) -> Iterator[str]:
    """Those that were given; the defaults of the others stand in the notebooks, whose hashes are below."""
    lines = [
        f"- {code(f'{state.name}.{name}')}: {code(_short(repr(value)))}"
        for state in manifest.steps
        for name, value in sorted(state.parameters.items())
    ]
    return iter(lines or ["Every parameter had the default that its notebook has."])


def _lineage(manifest: RunManifest, model: Artifact) -> Iterator[str]:
    yield f"- run {code(manifest.run)}, started by {code(manifest.started_by)}"
    if manifest.git is not None:
        changed = ", with changes that are not committed" if manifest.git.dirty or manifest.git.modified else ""
        yield f"- commit {code(manifest.git.commit)}{changed}"
    for state in manifest.steps:
        if state.complete:
            digest = state.snapshot.get("notebook.ipynb")
            yield f"- step {code(state.name)}: {code(state.notebook)}" + (f", sha256 {code(digest)}" if digest else "")
    for name, fact in facts_of(model).items():
        yield f"- model file {code(name or model.path)}: sha256 {code(fact.sha256)}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"
