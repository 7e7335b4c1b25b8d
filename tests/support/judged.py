"""A project with runs that passed and the versions that they registered, written as records: no kernel is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

import runner.model
from runner.content import artifact
from runner.gate import judge
from runner.manifest import Environment, ModelVersionRef, RunManifest, StepState
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion
from runner.pipeline.file import load
from runner.records import Artifact, Metric, StepError, StepResult
from runner.run.store import Store
from support.models import records, trained
from support.projects import Project, code, notebook, text

RUN = "20261122-10{:02d}00-7f3a"
MODEL = "steps/train/out/model"
TOML = """
name = "tiny"
[steps.train]
notebook = "train.ipynb"
inputs = {{ source = "./in.csv" }}
outputs = {{ model = "model/" }}
[[gate]]
metric = "train.auc"
min = 0.8
[model]
name = "tiny"
from = "train.model"
{more}
"""


SOURCE = notebook(text("# Train"), code("print(1)"), code("answer = 41 + 1"))


def made(folder: Path, *, versions: int = 3, more: str = "") -> Project:
    """`versions` runs that passed, each with a version of tiny that is pending."""
    project = Project(folder)
    folder.mkdir(parents=True, exist_ok=True)
    project.toml(TOML.format(more=more))
    raw = records()
    for number in range(1, versions + 1):
        place = folder / "runs" / RUN.format(number) / MODEL
        place.parent.mkdir(parents=True)
        runner.model.save(place, trained(raw, eta=0.1 * number), raw, target="left", positive="yes")
        (place.parent.parent / "notebook.ipynb").write_text(json.dumps(SOURCE))
        passed(project, number, Metric(value=0.9 + number / 100, low=0.85, high=0.97, better="higher"))
    return project


def passed(project: Project, number: int, auc: Metric, **more: Any) -> RunManifest:
    """Write the run of that number, whose model lies there, and register its version; `more` is of the manifest, and its card."""
    run = RUN.format(number)
    fact = artifact(project.folder / "runs" / run / MODEL, name="out/model/")
    manifest = manifest_of(project, run, {"train.auc": auc}, model=fact, **more)
    card = more.get("card", f"# Tiny\n\nThe model of run {number}.")
    registered = LocalRegistry(project.folder / "runs" / "registry.db").register(
        NewVersion(
            name="tiny", run=run, sha256=fact.sha256, artifact=artifact(project.folder / "runs" / run / MODEL, name=MODEL),
            metrics=manifest.metrics, created_by=manifest.started_by, sources={"train.source": "ab" * 32}, card=card,
        )
    )  # fmt: skip
    version = ModelVersionRef(name="tiny", version=registered.version, status="pending")
    return write(project, manifest, model_version=version)


def manifest_of(
    project: Project,
    run: str,
    metrics: dict[str, Metric],
    *,
    model: Artifact | None = None,
    error: StepError | None = None,
    **more: Any,
) -> RunManifest:
    """The manifest of a run that ended."""
    pipeline = load(project.folder / "pipeline.toml")
    known = {key: value for key, value in more.items() if key in RunManifest.__struct_fields__}
    started, ended = "2026-11-22T10:00:00.000Z", "2026-11-22T10:01:05.000Z"
    result = StepResult(
        status="failed" if error else "succeeded", started=started, ended=ended, seconds=64.5, cells=2, cells_run=2, metrics={},
        outputs={"model": model} if model else {}, error=error,
    )  # fmt: skip
    values = {
        "run": run, "pipeline_file": "pipeline.toml", "pipeline": pipeline, "started_by": "ana@desk", "started": started,
        "ended": ended, "status": "failed" if error else "succeeded",
        "steps": [StepState(name="train", notebook="train.ipynb", status=result.status, result=result)],
        "metrics": metrics, "verdict": judge(metrics, pipeline.gate) if metrics else None,
        "environment": Environment(python="3.11.2", implementation="CPython", platform="Linux", cpus=2, packages={}),
        "runner_version": "0.1.0",
    }  # fmt: skip
    return RunManifest(**{**values, **known})


def write(project: Project, manifest: RunManifest, **changes: Any) -> RunManifest:
    manifest = msgspec.structs.replace(manifest, **changes)
    store = Store(project.folder / "runs")
    store.folder(manifest.run).mkdir(parents=True, exist_ok=True)
    store.write(manifest)
    return manifest


def executed(project: Project, number: int, *outputs: dict[str, Any]) -> None:
    """An executed notebook of the run's step, whose last cell has these outputs."""
    document = json.loads(json.dumps(SOURCE))
    document["cells"][-1]["outputs"] = list(outputs)
    folder = project.folder / "runs" / RUN.format(number) / "steps" / "train"
    (folder / "executed.ipynb").write_text(json.dumps(document), encoding="utf-8")


def copied(project: Project, folder: Path) -> Project:
    shutil.copytree(project.folder, folder)
    return Project(folder)
