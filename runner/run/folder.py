"""A run's folder before and after its steps: their snapshot, their jobs, and the sealing of their results."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner.content import atomic_write, file_fact
from runner.manifest import RunManifest
from runner.notebook.source import read_notebook
from runner.pipeline.addresses import public
from runner.pipeline.file import is_address
from runner.pipeline.plan import Plan, PlannedStep
from runner.pipeline.registering import gated, needs_of
from runner.records import STANDARD, Artifact, InputFact, StepJob, StepResult, encode
from runner.run.sources import place_input
from runner.run.store import Store, facts_of, files_of

Place = Callable[[InputFact, str, Path, Store], InputFact]

PIPELINE, STEPS = "pipeline.toml", "steps"
KEYS, STATE = "keys", "state.json"  # of a mapped step: the folder of its keys' folders, and the record in each
JOB, SOURCE, MODULES, RESULT, OUT = "job.json", "notebook.ipynb", "modules", "result.json", "out"

_ADDRESS = re.compile(r"https?://[^\s\"']+")


@dataclass(frozen=True)
class MachineShare:
    """What a step has of its machine: threads of its kernel (0: as many as it likes), and the number of steps and keys
    that may run there at once."""

    threads: int
    beside: int = 1


def step_folder(store: Store, run: str, step: str) -> Path:
    return store.folder(run) / STEPS / step


def snapshot(plan: Plan, store: Store, run: str) -> dict[str, dict[str, str]]:
    """Copy every notebook of the plan, its project modules, and pipeline.toml. The run uses these copies only.

    Gives their hashes, by step and path.
    """
    text = plan.file.read_bytes().decode("utf-8", "surrogateescape")
    text = _ADDRESS.sub(lambda match: public(match[0]), text)
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
    """The plan of an earlier run, from its snapshot."""
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
    share: MachineShare,
    attempt: int,
    place: Place = place_input,
) -> StepJob:
    """The step's job, written to its folder with its inputs put in place and its outputs cleared."""
    step_job = StepJob(
        run=run,
        step=step.name,
        notebook=step.spec.notebook,
        parameters={name: value for name, value in step.parameters.items() if name not in step.secrets},
        secrets=step.secrets,
        outputs=step.spec.outputs,
        timeout_s=step.spec.timeout_s,
        cell_timeout_s=step.spec.cell_timeout_s,
        # the engine's library reads the cluster's address as it is loaded
        kernel=kernel if step.spec.cluster is None else STANDARD,
        threads=share.threads,
        cluster=step.spec.cluster,
        beside=share.beside if step.spec.cluster is not None and share.beside > 1 else msgspec.UNSET,
        attempt=attempt,
    )
    return write_job(step_job, inputs, folder=step_folder(store, run, step.name), store=store, place=place)


def write_job(
    step_job: StepJob, inputs: Mapping[str, InputFact], *, folder: Path, store: Store, place: Place = place_input
) -> StepJob:
    """Put `inputs` into the folder and write the job there, as job.json; what an earlier attempt left is removed."""
    for leftover in ("in", OUT):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    placed = {name: place(fact, name, folder, store) for name, fact in inputs.items()}
    step_job = msgspec.structs.replace(step_job, inputs=placed)
    atomic_write(folder / JOB, encode(step_job))
    return step_job


def seal(result: StepResult, *, store: Store, run: str, step: str) -> None:
    """Turn the step's outputs and executed notebook into objects; record the addresses of what a job elsewhere keeps.

    Idempotent.
    """
    folder = step_folder(store, run, step)
    for source in result.inputs.values() if result.remote is not None else ():
        if source.artifact is not None and source.as_ == "path" and not source.listed and is_address(source.source):
            for relative, part in facts_of(source.artifact).items():
                store.note_address(part, source.source + relative)
    for artifact in result.artifacts():
        if result.remote is None:
            store.seal(folder, artifact)
            continue
        # the keys' files are here, and there in one archive, which has no address for each
        of_keys = result.mapped is not None and artifact == result.mapped.files
        for path, fact in files_of(artifact):
            if not of_keys:
                store.note_address(fact, result.remote.at + path)
            if (folder / path).exists():
                store.seal(folder, Artifact(path=path, sha256=fact.sha256, size_bytes=fact.size_bytes))


def fetch(manifest: RunManifest, store: Store, *, steps: Collection[str] = ()) -> int:
    """Fetch outputs that are elsewhere into the run's folder (of these steps, or all); the number of bytes."""
    fetched_bytes = 0
    for state in manifest.steps:
        if state.result is None or (steps and state.name not in steps):
            continue
        folder = step_folder(store, manifest.run, state.name)
        for artifact in state.result.artifacts():
            fetched_bytes += sum(fact.size_bytes for _, fact in files_of(artifact) if not store.has(fact))
            if not all((folder / path).exists() for path, _ in files_of(artifact)):
                store.link(artifact, folder / artifact.path.rstrip("/"))
    return fetched_bytes


def upstream_input(source: str, results: Mapping[str, StepResult]) -> InputFact:
    """The output `step.output` of a step before, for the step that reads it."""
    step, _, output = source.partition(".")
    return InputFact(source=source, artifact=results[step].outputs[output])
