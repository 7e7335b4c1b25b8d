"""An execution of a SageMaker Pipeline as a run: the folder that a run of the same steps would have left.

What the service says and what the jobs left in S3 are brought together. Large outputs stay there, as those of a run's
jobs do; a cached step is shown with the run it came from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.pipelines.executions import Execution, ExecutionStep, look
from runner.aws.pipelines.job_registration import VERSION
from runner.aws.pipelines.pin import run_id
from runner.aws.pipelines.pushed import (
    FAIL,
    GATE,
    LEFT,
    PIN,
    PINS,
    PUSHED,
    JobReport,
    Pins,
    Pushed,
    PushedStep,
    step_key,
)
from runner.aws.processing import bundle
from runner.aws.processing.jobs import Jobs
from runner.aws.processing.prices import Prices
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import Settings, settings
from runner.content import atomic_write, file_fact
from runner.errors import Refused, Tampered, UsageError
from runner.manifest import ModelVersionRef, RunManifest, StepState, recorded
from runner.paths import inside
from runner.pipeline.file import APPROVED
from runner.records import (
    Artifact,
    InputFact,
    RemoteJob,
    RunStatus,
    StepError,
    StepJob,
    StepResult,
    StepStatus,
    Verdict,
    decode,
    encode,
    utc_text,
)
from runner.run import folder as run_folder
from runner.run import layout, provenance
from runner.run.orchestrate import VERDICT_FILE
from runner.run.sources import public_values
from runner.run.store import MANIFEST, Store, facts_of, files_of

STATUS: dict[str, StepStatus] = {"Succeeded": "succeeded", "Failed": "failed", "Stopped": "interrupted"}


def import_execution(session: Session, name: str, reference: str, store: Store, *, root: Path) -> RunManifest:
    """The execution (an ARN, or an id of the Pipeline `name`) taken in as a run; again gives the same.

    Raises UsageError while it goes on or where it is none of ours, Tampered where something is not what was pushed.
    """
    seen = look(session, name, reference)
    if seen.ended is None:
        raise UsageError(f"The execution {seen.id} is {seen.status}. Import it when it has ended.")
    store.prepare()
    found = _ExecutionImport(session, seen, store, root)
    folder = store.folder(found.run)
    folder.mkdir(exist_ok=True)
    with store.lock(found.run):
        if (folder / MANIFEST).exists():
            there = store.manifest_as_written(found.run)
            if seen.arn not in there.note:
                raise Refused(f"Another run {found.run} is in {store.root} already; the execution is not taken in.")
            return there
        try:
            manifest = found.manifest()
            layout.check(manifest)
            store.write(manifest)
        except BaseException:
            shutil.rmtree(folder)  # nothing of it is a run
            raise
    return manifest


class _ExecutionImport:
    """An ended execution on its way into the store; `run` is the id it has there."""

    def __init__(self, session: Session, seen: Execution, store: Store, root: Path) -> None:
        self.session, self.seen, self.store = session, seen, store
        self.jobs = Jobs(session, poll_s=0)
        self.pushed, self.pins = self._records()
        self.run = self.pins.run if self.pins is not None else run_id(seen.started.isoformat(), seen.arn)
        self.chosen: Settings = settings(self.pushed.pipeline)
        self.bucket = Bucket(session, self.chosen.bucket, self.chosen.prefix)
        self.prices = Prices.read(root / self.chosen.prices if self.chosen.prices else None)
        self.listed = {step.name: step for step in seen.steps}
        self.share_of = {step.name: step.job or step.name for step in self.pushed.steps}
        self.folders: dict[str, str] = {}  # step -> the address of what it left
        self.reached: dict[str, bool] = {}  # job -> whether its next step was begun
        self.described = {name: self.jobs.find(step.job) or {} for name, step in self.listed.items() if step.job}

    def manifest(self) -> RunManifest:
        atomic_write(self.store.folder(self.run) / run_folder.PIPELINE, self.pushed.toml.encode())
        verdict = self._verdict()
        states = [self._state(step, verdict) for step in self.pushed.steps]
        states += [
            StepState(name=name, notebook=self.pushed.pipeline.steps[name].notebook, status="skipped", why=why)
            for name, why in self.pushed.skipped.items()
        ]
        results = {state.name: state.result for state in states if state.result is not None}
        sources = {pin.of: pin.fact for pin in self.pins.pins.values()} if self.pins is not None else {}
        for fact in sources.values():
            self._keep_approved(fact)
        defaults = {parameter.key: parameter.default for parameter in self.pushed.parameters}
        given = self.pins.parameters if self.pins is not None else {}
        metrics, problems = recorded(results)
        return RunManifest(
            run=self.run,
            pipeline_file=self.pushed.file,
            pipeline=self.pushed.pipeline,
            overrides=public_values({key: value for key, value in given.items() if value != defaults[key]}),
            profile=self.pushed.profile,
            note=" ".join(filter(None, [self.seen.note, f"({self.seen.arn})"])),
            started_by=self.pins.started_by if self.pins is not None else f"pipeline {self.pushed.pipeline.name}",
            identity=self.pins.identity if self.pins is not None else "",
            started=utc_text(self.seen.started),
            ended=utc_text(self.seen.ended or self.seen.started),
            on="sagemaker",
            status=self._status(states),
            steps=states,
            sources=sources,
            champion=self.pins.champion if self.pins is not None else None,
            metrics=metrics,
            problems=problems,
            verdict=verdict,
            model_version=self._version(),
            git=self.pushed.git,
            environment=self.pins.environment if self.pins is not None else provenance.environment(),
            runner_version=self.pushed.runner_version,
        )

    def _records(self) -> tuple[Pushed, Pins | None]:
        """What was pushed, and what the execution was pinned to; None where it did not come to that."""
        about = f"execution {self.seen.id}"
        reply = self.session.call(
            "sagemaker",
            "describe_pipeline_definition_for_execution",
            about=about,
            PipelineExecutionArn=self.seen.arn,
        )
        steps = json.loads(reply["PipelineDefinition"])["Steps"]
        inputs = [item for step in steps for item in step["Arguments"].get("ProcessingInputs", [])]
        own = next((item for item in inputs if item["InputName"] == "pushed"), None)
        if own is None:
            raise UsageError(f"The {about} is not of a Pipeline that `runner pipeline push` made.")
        address = own["S3Input"]["S3Uri"]
        content = self._content(address, PUSHED)
        if content is None or hashlib.sha256(content).hexdigest() != address.rstrip("/").rpartition("/")[2]:
            raise Tampered(f"{address}{PUSHED} is not what was pushed: it was altered or removed.")
        pushed = decode(Pushed, content, where=address)
        chosen = settings(pushed.pipeline)
        bucket = Bucket(self.session, chosen.bucket, chosen.prefix)
        key = f"runs/{self.seen.id}/{PIN}/{PINS}"
        content = bucket.get(key)
        return pushed, decode(Pins, content, where=bucket.address(key)) if content is not None else None

    def _state(self, step: PushedStep, verdict: Verdict | None) -> StepState:
        spec = self.pushed.pipeline.steps[step.name]
        state = StepState(name=step.name, notebook=spec.notebook, snapshot=self._snapshot(step))
        seen = self.listed.get(step.job or step.name)
        goes_on = seen is not None and self.reached.get(seen.name, True)
        if seen is None or not goes_on or (step.gated and verdict is not None and verdict.outcome != "pass"):
            left_out = step.gated and verdict is not None and verdict.outcome != "pass"
            why = f"the gate's verdict is {verdict.outcome}" if left_out and verdict is not None else ""
            return msgspec.structs.replace(state, status="skipped" if left_out else None, why=why)
        result, job, taken = self._came(step.name, seen)
        self.reached[seen.name] = result.error is None
        alone = sum(other.job == step.job for other in self.pushed.steps) == 1
        ended = STATUS.get(seen.status, "failed") if alone or result.error is not None else "succeeded"
        status = "cached" if seen.cached_from or taken else ended
        return msgspec.structs.replace(
            state,
            status=status,
            parameters=job.parameters if job is not None else {},
            from_run=job.run if job is not None and status == "cached" else None,
            attempt=1,
            job=job,
            result=result,
        )

    def _came(self, step: str, seen: ExecutionStep) -> tuple[StepResult, StepJob | None, bool]:
        """The step's result with all that is to be looked at, and its job; a failure of the job where it left none.
        And whether the job has taken it from an earlier execution."""
        folder = run_folder.step_folder(self.store, self.run, step)
        described = self.described.get(seen.name, {})
        address, taken = self._place(step, described)
        content = self._content(f"{address}/", run_folder.RESULT) if address else None
        result = decode(StepResult, content, where=address) if content is not None else None
        if result is None or result.remote is None or not _is_of(result.remote, seen.job, address, taken=taken):
            if seen.status == "Succeeded":
                raise Tampered(f"{address}/{run_folder.RESULT} is not the result of the job {seen.job}.")
            result = _without_result(seen, described)
        if result.remote is not None:
            of = self.jobs.find(result.remote.name) or {} if taken else described
            billed = _billed_s(of) if result.remote.billed_s is None else result.remote.billed_s
            price = self.prices.of(result.remote.instance, billed)
            paid = msgspec.structs.replace(result.remote, billed_s=billed, price_usd=price)
            result = msgspec.structs.replace(result, remote=paid)
            self.folders[step] = address
            self._bring(result, folder, address)
        atomic_write(folder / run_folder.RESULT, encode(result))
        said = self._content(f"{address}/", run_folder.JOB) if result.remote is not None else None
        job = decode(StepJob, said, where=address) if said is not None else None
        if job is not None:
            atomic_write(folder / run_folder.JOB, encode(job))
        run_folder.seal(result, store=self.store, run=self.run, step=step)
        return result, job, taken

    def _place(self, step: str, described: Mapping[str, Any]) -> tuple[str, bool]:
        """The address of the folder that has what the step came to, "" where there is none, and whether an earlier
        execution has put it there."""
        if not described:
            return "", False
        own = _output(described)
        execution = own.rpartition("/")[0]
        content = self._content(f"{own}/", LEFT)
        if content is None:
            return f"{execution}/{step}", False
        left = decode(JobReport, content, where=own)
        address = left.at.get(step_key(self.pushed, step), f"{execution}/{step}")
        return address, step in left.taken

    def _bring(self, result: StepResult, folder: Path, address: str) -> None:
        """The executed notebook and small outputs; the rest stays where it is."""
        place, key = split(address)
        small = [found for found in result.outputs.values() if found.size_bytes <= self.chosen.small_mb * 1e6]
        for found in (*small, *([result.executed] if result.executed is not None else [])):
            for path, fact in files_of(found):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                beside = folder / f"{path}.partial"
                Bucket(self.session, place, f"{key}/").download(path, beside, fact)
                beside.replace(folder / path)

    def _snapshot(self, step: PushedStep) -> dict[str, str]:
        """The step's code as it was pushed, put into its folder; the hashes of what is there."""
        folder = run_folder.step_folder(self.store, self.run, step.name)
        (folder / run_folder.MODULES).mkdir(parents=True, exist_ok=True)
        found = {key.removeprefix(step.key): self.bucket.get(key) or b"" for key, _ in self.bucket.keys(step.key)}
        if bundle.bundle(found).sha256 != step.key.rstrip("/").rpartition("/")[2]:
            raise Tampered(f"{self.bucket.address(step.key)} is not what was pushed: it was altered or removed.")
        hashes = {}
        for path, content in found.items():
            if path == run_folder.SOURCE or path.startswith(f"{run_folder.MODULES}/"):
                target = folder / inside(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(target, content)
                hashes[path] = file_fact(target).sha256
        return hashes

    def _verdict(self) -> Verdict | None:
        described = self.described.get(self.share_of.get(self.pushed.judge, GATE))
        content = self._content(f"{_output(described)}/", VERDICT_FILE) if described else None
        if content is None:
            return None
        path = self.store.folder(self.run) / VERDICT_FILE
        verdict = decode(Verdict, content, where=path)
        atomic_write(path, content)
        fact = file_fact(path)
        found = Artifact(path=VERDICT_FILE, sha256=fact.sha256, size_bytes=fact.size_bytes)
        self.store.seal(path.parent, found)
        return verdict

    def _version(self) -> ModelVersionRef | None:
        for step, address in self.folders.items():
            content = self._content(f"{address}/", VERSION)
            if content is not None and self.listed[self.share_of[step]].status == "Succeeded":
                return decode(ModelVersionRef, content, where=address)
        return None

    def _keep_approved(self, fact: InputFact) -> None:
        if not fact.source.startswith(APPROVED) or fact.artifact is None:
            return
        for path, part in facts_of(fact.artifact).items():
            self.store.note_address(part, self.bucket.address(f"models/{fact.artifact.sha256}/files/{path}"))
            self.store.object(part)

    def _status(self, states: list[StepState]) -> RunStatus:
        """A gate that says no is not a failure of the run."""
        found = {state.status for state in states}
        if self.seen.status == "Stopped" or "interrupted" in found:
            return "interrupted"
        said_no = FAIL in self.listed and "failed" not in found
        return "succeeded" if self.seen.status == "Succeeded" or said_no else "failed"

    def _content(self, folder: str, name: str) -> bytes | None:
        place, key = split(folder)
        return Bucket(self.session, place, key).get(name)


def _output(described: Mapping[str, Any]) -> str:
    """The address of the folder that a job leaves its results in, without a last slash."""
    return str(described["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]).rstrip("/")


def _is_of(remote: RemoteJob, job: str, address: str, *, taken: bool) -> bool:
    """Whether the result is that of the job, or that of an earlier one which lies where it was put."""
    # an ARN has the job's name in small letters
    return remote.at == f"{address}/" if taken else remote.name.lower() == job.lower()


def _billed_s(described: Mapping[str, Any]) -> float:
    start, end = described.get("ProcessingStartTime"), described.get("ProcessingEndTime")
    return (end - start).total_seconds() if isinstance(start, datetime) and isinstance(end, datetime) else 0.0


def _without_result(seen: ExecutionStep, described: Mapping[str, Any]) -> StepResult:
    start, end = described.get("CreationTime"), described.get("ProcessingEndTime")
    stopped = seen.status == "Stopped"
    error = StepError(
        kind="interrupted" if stopped else "remote",
        ename="Stopped" if stopped else said if (said := seen.reason.partition(":")[0]).isidentifier() else "NoResult",
        evalue=f"the job {seen.job or 'was not made'} ended {seen.status}: {seen.reason or 'it left no result'}",
    )
    return StepResult(
        status="interrupted" if stopped else "failed",
        started=utc_text(start) if isinstance(start, datetime) else "",
        ended=utc_text(end) if isinstance(end, datetime) else "",
        seconds=seen.seconds or 0.0,
        cells=0,
        cells_run=0,
        error=error,
    )
