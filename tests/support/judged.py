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
from runner.model.versions import NewVersion
from runner.pipeline.file import load
from runner.project import Project as Opened
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
    registered = Opened(project.folder / "pipeline.toml").registry.register(
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "executed.ipynb").write_text(json.dumps(document), encoding="utf-8")


def of_every_kind(project: Project) -> str:
    """Beside its runs, which passed: one with a long card and outputs of many kinds (4), one that failed (5), two that did
    not pass (6, 7), and one that runs for who holds its lock (8), whose id is given back."""
    runs = project.folder / "runs"
    shutil.copytree(runs / RUN.format(1) / "steps", runs / RUN.format(4) / "steps")
    table = "| a | b |\n|---|---|\n| 1 | " + "wide " * 40 + "|"
    card = f"# Tiny\n\n{table}\n\n```json\n{json.dumps(['long'] * 40)}\n```\n" + "\n## A part\n\nIts `text`.\n" * 20
    passed(project, 4, Metric(value=0.9, low=0.8, high=0.95, better="higher"), card=card, tags=["nightly"])
    error = StepError(
        kind="exception", ename="ValueError", evalue="no rows " * 20, cell=1, first_line="print(1)",
        traceback=["Traceback", *["  line " * 30] * 40],
    )  # fmt: skip
    write(project, manifest_of(project, RUN.format(5), {}, error=error, note="n" * 200, tags=["nightly"]))
    for number, value, low in ((6, 0.7, 0.6), (7, 0.81, 0.7)):
        auc = Metric(value=value, low=low, high=0.9, better="higher")
        write(project, manifest_of(project, RUN.format(number), {"train.auc": auc}))
    manifest = manifest_of(project, RUN.format(8), {})
    running = msgspec.structs.replace(manifest.steps[0], status="running", result=None)
    write(project, manifest, status="running", steps=[running], ended=None)
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    for number in (4, 5):
        executed(
            project, number,
            {"output_type": "stream", "name": "stdout", "text": "wide " * 80 + "\n" * 60},
            {"output_type": "stream", "name": "stderr", "text": "warned"},
            {"output_type": "display_data", "data": {"text/html": f"<table><tr><th>a</th></tr><tr><td>{'x' * 300}</td></tr></table>"}},
            {"output_type": "display_data", "data": {"image/png": pixel, "text/plain": "<Figure>"}},
            {"output_type": "display_data", "data": {"text/markdown": f"## More\n\n{table}\n\n```python\nx = 1  # one\n```"}},
            {"output_type": "error", "ename": "ValueError", "evalue": "no rows", "traceback": ["\x1b[0;31mValueError: no rows"]},
        )  # fmt: skip
    failed = project.folder / "runs" / RUN.format(5) / "steps" / "train" / "executed.ipynb"
    document = json.loads(failed.read_text())
    document["cells"].append({**document["cells"][1], "outputs": [], "metadata": {"papermill": {"status": "pending"}}})
    failed.write_text(json.dumps(document))
    return RUN.format(8)


def copied(project: Project, folder: Path) -> Project:
    shutil.copytree(project.folder, folder)
    return Project(folder)
