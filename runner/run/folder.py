"""A run's folder before and after its steps: the snapshot they run from, the job of each, the sealing of what came out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from runner.content import atomic_write, file_fact
from runner.manifest import RunManifest
from runner.notebook.source import read_notebook
from runner.pipeline.addresses import public
from runner.pipeline.file import is_address
from runner.pipeline.plan import ENVIRONMENT, Plan, PlannedStep
from runner.pipeline.registering import gated, needs_of
from runner.records import Artifact, InputFact, StepJob, StepResult, encode
from runner.run.sources import place
from runner.run.store import Store, facts_of, files_of

Place = Callable[[InputFact, str, Path, Store], InputFact]

PIPELINE, STEPS = "pipeline.toml", "steps"
JOB, SOURCE, MODULES, RESULT, OUT = "job.json", "notebook.ipynb", "modules", "result.json", "out"

_ADDRESS = re.compile(r"https?://[^\s\"']+")


def step_folder(store: Store, run: str, step: str) -> Path:
    return store.folder(run) / STEPS / step


def snapshot(plan: Plan, store: Store, run: str) -> dict[str, dict[str, str]]:
    """Copy every notebook of the plan, the project modules it imports, and pipeline.toml: what runs, whatever
    happens to the working tree meanwhile. Gives the hashes of the copies, by step and path."""
    text = plan.file.read_bytes().decode("utf-8", "surrogateescape")
    text = _ADDRESS.sub(lambda found: public(found[0]), text)
    (store.folder(run) / PIPELINE).write_bytes(text.encode("utf-8", "surrogateescape"))
    hashes: dict[str, dict[str, str]] = {}
    for step in plan.steps:
        folder = step_folder(store, run, step.name)
        (folder / MODULES).mkdir(parents=True)
        shutil.copyfile(step.notebook.path, folder / SOURCE)
        for relative, path in step.modules.items():
            (folder / MODULES / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / MODULES / relative)
        copies = [SOURCE, *(f"{MODULES}/{relative}" for relative in step.modules)]
        hashes[step.name] = {name: file_fact(folder / name).sha256 for name in copies}
    return hashes


def plan_again(manifest: RunManifest, store: Store, file: Path) -> Plan:
    """The plan of an earlier run, from its own snapshot: later edits of the working tree do not reach it."""
    pipeline = manifest.pipeline
    waiting = gated(pipeline, [state.name for state in manifest.steps if state.registers])
    steps = []
    for state in manifest.steps:
        folder = step_folder(store, manifest.run, state.name)
        notebook = read_notebook(folder / SOURCE)
        modules = [name.removeprefix(f"{MODULES}/") for name in state.snapshot if name.startswith(f"{MODULES}/")]
        steps.append(
            PlannedStep(
                name=state.name,
                spec=pipeline.steps[state.name],
                notebook=notebook,
                parameters=state.parameters,
                modules={name: folder / MODULES / name for name in modules},
                needs=tuple(needs_of(state.name, pipeline, waiting)),
                needs_verdict=state.name in waiting,
                registers=state.registers,
            )
        )
    return Plan(file=file, pipeline=pipeline, steps=tuple(steps), judges=bool(pipeline.gate), warnings=())


def job(
    step: PlannedStep,
    inputs: Mapping[str, InputFact],
    *,
    store: Store,
    run: str,
    kernel: str,
    threads: int,
    attempt: int,
    place: Place = place,
) -> StepJob:
    """The step's job, written to its folder with its inputs put in place and its outputs cleared."""
    declared = step.notebook.parameters
    secrets = {
        name: str(value).removeprefix(ENVIRONMENT)
        for name, value in step.parameters.items()
        if name in declared and declared[name].secret
    }
    wanted = StepJob(
        run=run,
        step=step.name,
        notebook=step.spec.notebook,
        parameters={name: value for name, value in step.parameters.items() if name not in secrets},
        secrets=secrets,
        outputs=step.spec.outputs,
        timeout_s=step.spec.timeout_s,
        cell_timeout_s=step.spec.cell_timeout_s,
        kernel=kernel,
        threads=threads,
        attempt=attempt,
    )
    return write_job(wanted, inputs, folder=step_folder(store, run, step.name), store=store, place=place)


def write_job(
    wanted: StepJob, inputs: Mapping[str, InputFact], *, folder: Path, store: Store, place: Place = place
) -> StepJob:
    """The job with `inputs` put in place in its folder, as job.json there; what an earlier try left is removed."""
    for leftover in ("in", OUT):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    made = msgspec.structs.replace(
        wanted, inputs={name: place(fact, name, folder, store) for name, fact in inputs.items()}
    )
    atomic_write(folder / JOB, encode(made))
    return made


def seal(result: StepResult, *, store: Store, run: str, step: str) -> None:
    """Turn the step's outputs and its executed notebook into objects; of what stayed with a job elsewhere, note the
    address. Calling twice is safe."""
    folder = step_folder(store, run, step)
    for given in result.inputs.values() if result.remote is not None else ():
        if given.artifact is not None and given.as_ == "path" and not given.listed and is_address(given.source):
            for relative, part in facts_of(given.artifact).items():
                store.point(part, given.source + relative)
    for found in produced(result):
        if result.remote is None:
            store.seal(folder, found)
            continue
        for path, fact in files_of(found):
            store.point(fact, result.remote.at + path)
            if (folder / path).exists():
                store.seal(folder, Artifact(path=path, sha256=fact.sha256, size_bytes=fact.size_bytes))


def produced(result: StepResult) -> list[Artifact]:
    """Everything a step leaves: its outputs and the executed notebook."""
    return [*result.outputs.values(), *([result.executed] if result.executed else [])]


def fetch(manifest: RunManifest, store: Store, *, steps: Collection[str] = ()) -> int:
    """Bring outputs that lie elsewhere into the run's folder (of these steps, or all); the bytes that came."""
    came = 0
    for state in manifest.steps:
        if state.result is None or (steps and state.name not in steps):
            continue
        folder = step_folder(store, manifest.run, state.name)
        for found in produced(state.result):
            came += sum(fact.size_bytes for _, fact in files_of(found) if not store.here(fact))
            if not all((folder / path).exists() for path, _ in files_of(found)):
                store.link(found, folder / found.path.rstrip("/"))
    return came


def as_input(result: StepResult, output: str, source: str) -> InputFact:
    """An upstream step's output, for the step that reads it."""
    return InputFact(source=source, artifact=msgspec.structs.replace(result.outputs[output]))
