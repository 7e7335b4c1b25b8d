"""An execution of a SageMaker Pipeline as a run: the folder that a run of the same steps would have.

It has the service's descriptions and the jobs' results from S3. Large outputs stay there, as those of a run's jobs do.
A cached step names the run that executed it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.pipelines.executions import ExecutionStep, PipelineExecution, look
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
    Pin,
    Pins,
    Pushed,
    PushedStep,
    step_key,
)
from runner.aws.processing import bundle
from runner.aws.processing.jobs import Jobs
from runner.aws.processing.outcome import download_results, with_price
from runner.aws.processing.prices import project_prices
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.content import artifact, atomic_write, bytes_fact
from runner.errors import Refused, Tampered, UsageError
from runner.manifest import ModelVersionRef, RunManifest, StepState, recorded
from runner.paths import inside
from runner.pipeline.file import APPROVED, AT_TARGET
from runner.records import (
    InputFact,
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
from runner.run.store import MANIFEST, Store, facts_of

STATUS: dict[str, StepStatus] = {"Succeeded": "succeeded", "Failed": "failed", "Stopped": "interrupted"}


def import_execution(session: Session, name: str, reference: str, store: Store, *, root: Path) -> RunManifest:
    """Import the execution (an ARN, or an id of the Pipeline `name`) as a run; a second import gives the same run.

    Raises UsageError while it is running or where `runner` did not push its Pipeline, Tampered where an object in the
    bucket is not what was pushed.
    """
    execution = look(session, name, reference)
    if execution.ended is None:
        raise UsageError(f"The execution {execution.id} is {execution.status}. Import it when it has ended.")
    store.prepare()
    source = _ExecutionImport(session, execution, store, root)
    folder = store.folder(source.run)
    folder.mkdir(exist_ok=True)
    with store.lock(source.run):
        if (folder / MANIFEST).exists():
            manifest = store.manifest_as_written(source.run)
            if execution.arn not in manifest.note:
                raise Refused(f"Another run {source.run} is in {store.root} already; the execution is not taken in.")
            return manifest
        try:
            manifest = source.manifest()
            layout.check(manifest)
            store.write(manifest)
        except BaseException:
            shutil.rmtree(folder)  # an incomplete folder is not a run
            raise
    return manifest


class _ExecutionImport:
    """The import of an ended execution; `run` is its id in the store."""

    def __init__(self, session: Session, execution: PipelineExecution, store: Store, root: Path) -> None:
        self.session, self.execution, self.store = session, execution, store
        self.jobs = Jobs(session, poll_s=0)
        self.pushed = self._pushed()
        self.settings = settings(self.pushed.pipeline)
        self.bucket = Bucket(session, self.settings.bucket, self.settings.prefix)
        key = f"runs/{execution.id}/{PIN}/{PINS}"
        content = self.bucket.get(key)  # None where the execution failed before
        self.pins = decode(Pins, content, where=self.bucket.address(key)) if content is not None else None
        self.run = self.pins.run if self.pins is not None else run_id(execution.started.isoformat(), execution.arn)
        self.prices = project_prices(self.settings, root)
        self.steps = {step.name: step for step in execution.steps}
        self.job_of = {step.name: step.job or step.name for step in self.pushed.steps}
        self.folders: dict[str, str] = {}  # step -> the address of its results
        self.succeeding: dict[str, bool] = {}  # job -> whether its next step was begun
        self.descriptions = {name: self.jobs.find(step.job) or {} for name, step in self.steps.items() if step.job}

    def manifest(self) -> RunManifest:
        atomic_write(self.store.folder(self.run) / run_folder.PIPELINE, self.pushed.toml.encode())
        verdict = self._verdict()
        states = [self._state(step, verdict) for step in self.pushed.steps]
        states += [
            StepState(name=name, notebook=self.pushed.pipeline.steps[name].notebook, status="skipped", why=why)
            for name, why in self.pushed.skipped.items()
        ]
        metrics, problems = recorded({state.name: state.result for state in states if state.result is not None})
        manifest = RunManifest(
            run=self.run,
            pipeline_file=self.pushed.file,
            pipeline=self.pushed.pipeline,
            profile=self.pushed.profile,
            note=" ".join(filter(None, [self.execution.note, f"({self.execution.arn})"])),
            started_by=f"pipeline {self.pushed.pipeline.name}",
            started=utc_text(self.execution.started),
            ended=utc_text(self.execution.ended or self.execution.started),
            on="sagemaker",
            status=self._status(states),
            steps=states,
            metrics=metrics,
            problems=problems,
            verdict=verdict,
            model_version=self._version(),
            git=self.pushed.git,
            environment=provenance.environment(),
            runner_version=self.pushed.runner_version,
        )
        if self.pins is None:
            return manifest
        sources = {pin.of: pin.fact for pin in self.pins.pins.values()}
        for pin in self.pins.pins.values():
            self._keep_approved(pin.fact)
            self._note_copy(pin)
        defaults = {parameter.key: parameter.default for parameter in self.pushed.parameters}
        overrides = {key: value for key, value in self.pins.parameters.items() if value != defaults[key]}
        return msgspec.structs.replace(
            manifest,
            overrides=public_values(overrides),
            started_by=self.pins.started_by,
            identity=self.pins.identity,
            sources=sources,
            champion=self.pins.champion,
            environment=self.pins.environment,
        )

    def _pushed(self) -> Pushed:
        about, action = f"execution {self.execution.id}", "describe_pipeline_definition_for_execution"
        reply = self.session.call("sagemaker", action, about=about, PipelineExecutionArn=self.execution.arn)
        steps = json.loads(reply["PipelineDefinition"])["Steps"]
        inputs = [item for step in steps for item in step["Arguments"].get("ProcessingInputs", [])]
        own = next((item for item in inputs if item["InputName"] == "pushed"), None)
        if own is None:
            raise UsageError(f"The {about} is not of a Pipeline that `runner pipeline push` made.")
        address = own["S3Input"]["S3Uri"]
        content = self._content(address, PUSHED)
        if content is None or bytes_fact(content).sha256 != bundle.name_of(address):
            raise Tampered(f"{address}{PUSHED} is not what was pushed: it was altered or removed.")
        return decode(Pushed, content, where=address)

    def _state(self, step: PushedStep, verdict: Verdict | None) -> StepState:
        spec = self.pushed.pipeline.steps[step.name]
        state = StepState(name=step.name, notebook=spec.notebook, snapshot=self._snapshot(step))
        if step.gated and verdict is not None and verdict.outcome != "pass":
            return msgspec.structs.replace(state, status="skipped", why=f"the gate's verdict is {verdict.outcome}")
        execution_step = self.steps.get(step.job or step.name)
        if execution_step is None or not self.succeeding.get(execution_step.name, True):
            return state
        result, job, taken = self._result(step.name, execution_step)
        self.succeeding[execution_step.name] = result.error is None
        alone = sum(other.job == step.job for other in self.pushed.steps) == 1
        own = alone or result.error is not None  # the step's status is that of its job
        status: StepStatus = STATUS.get(execution_step.status, "failed") if own else "succeeded"
        if execution_step.cached_from or taken:
            status = "cached"
        return msgspec.structs.replace(
            state,
            status=status,
            parameters=job.parameters if job is not None else {},
            from_run=job.run if job is not None and status == "cached" else None,
            attempt=1,
            job=job,
            result=result,
        )

    def _result(self, step: str, execution_step: ExecutionStep) -> tuple[StepResult, StepJob | None, bool]:
        """(the step's result, downloaded with its small outputs; its job; whether it is of an earlier execution).

        The result is a failure of the job where it left none.
        """
        folder = run_folder.step_folder(self.store, self.run, step)
        description = self.descriptions.get(execution_step.name, {})
        address, taken = self._result_folder(step, description)
        content = self._content(f"{address}/", run_folder.RESULT) if address else None
        result = decode(StepResult, content, where=address) if content is not None else None
        job = None
        if result is not None and result.remote is not None:
            at, name = result.remote.at, result.remote.name
            # an ARN has the job's name in small letters
            expected = at == f"{address}/" if taken else name.lower() == execution_step.job.lower()
            result = result if expected else None
        if result is None or result.remote is None:
            if execution_step.status == "Succeeded":
                raise Tampered(f"{address}/{run_folder.RESULT} is not the result of the job {execution_step.job}.")
            result = _without_result(execution_step, description)
        else:
            executed_by = self.jobs.find(result.remote.name) or {} if taken else description
            result = with_price(result, self.prices, self.jobs.billed_s(executed_by))
            self.folders[step] = address
            name, key = split(address)
            source = Bucket(self.session, name, f"{key}/")
            download_results(result, folder, source, small_mb=self.settings.small_mb)
            content = source.get(run_folder.JOB)
            job = decode(StepJob, content, where=address) if content is not None else None
        atomic_write(folder / run_folder.RESULT, encode(result))
        if job is not None:
            atomic_write(folder / run_folder.JOB, encode(job))
        run_folder.seal(result, store=self.store, run=self.run, step=step)
        return result, job, taken

    def _result_folder(self, step: str, description: Mapping[str, Any]) -> tuple[str, bool]:
        """(the address of the folder with the step's result, "" where there is none; whether an earlier execution has
        put it there)."""
        if not description:
            return "", False
        own = _output_address(description)
        default = f"{own.rpartition('/')[0]}/{step}"
        content = self._content(f"{own}/", LEFT)
        if content is None:
            return default, False
        report = decode(JobReport, content, where=own)
        return report.at.get(step_key(self.pushed, step), default), step in report.taken

    def _snapshot(self, step: PushedStep) -> dict[str, str]:
        """Put the step's code as it was pushed into its folder; the files' hashes."""
        folder = run_folder.step_folder(self.store, self.run, step.name)
        (folder / run_folder.MODULES).mkdir(parents=True, exist_ok=True)
        files = {key.removeprefix(step.key): self.bucket.get(key) or b"" for key, _ in self.bucket.keys(step.key)}
        if bundle.bundle(files).sha256 != bundle.name_of(step.key):
            raise Tampered(f"{self.bucket.address(step.key)} is not what was pushed: it was altered or removed.")
        hashes = {}
        for path, content in files.items():
            if path == run_folder.SOURCE or path.startswith(f"{run_folder.MODULES}/"):
                target = folder / inside(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(target, content)
                hashes[path] = bytes_fact(content).sha256
        return hashes

    def _verdict(self) -> Verdict | None:
        description = self.descriptions.get(self.job_of.get(self.pushed.judge, GATE))
        content = self._content(f"{_output_address(description)}/", VERDICT_FILE) if description else None
        if content is None:
            return None
        path = self.store.folder(self.run) / VERDICT_FILE
        verdict = decode(Verdict, content, where=path)
        atomic_write(path, content)
        self.store.seal(path.parent, artifact(path, name=VERDICT_FILE))
        return verdict

    def _version(self) -> ModelVersionRef | None:
        places = [(self.job_of[step], address) for step, address in self.folders.items()]
        if self.pushed.registers_itself:  # by the job that judged the gate
            job = self.job_of.get(self.pushed.judge, GATE)
            description = self.descriptions.get(job)
            places = [(job, _output_address(description))] if description else []
        for job, address in places:
            content = self._content(f"{address}/", VERSION)
            if content is not None and self.steps[job].status == "Succeeded":
                return decode(ModelVersionRef, content, where=address)
        return None

    def _keep_approved(self, fact: InputFact) -> None:
        if not fact.source.startswith(APPROVED) or fact.artifact is None:
            return
        for path, part in facts_of(fact.artifact).items():
            self.store.note_address(part, self.bucket.address(f"models/{fact.artifact.sha256}/files/{path}"))
            self.store.object(part)

    def _note_copy(self, pin: Pin) -> None:
        """Where the bytes are that were taken of a target; they are fetched by whoever reproduces the run."""
        if pin.fact.source.startswith(AT_TARGET) and pin.fact.artifact is not None:
            for path, part in facts_of(pin.fact.artifact).items():
                self.store.note_address(part, pin.address + path)

    def _status(self, states: list[StepState]) -> RunStatus:
        """A gate that does not pass is not a failure of the run."""
        statuses = {state.status for state in states}
        if self.execution.status == "Stopped" or "interrupted" in statuses:
            return "interrupted"
        only_gate = FAIL in self.steps and "failed" not in statuses
        return "succeeded" if self.execution.status == "Succeeded" or only_gate else "failed"

    def _content(self, folder: str, name: str) -> bytes | None:
        bucket, key = split(folder)
        return Bucket(self.session, bucket, key).get(name)


def _output_address(description: Mapping[str, Any]) -> str:
    """The address of the folder for a job's results, without a last slash."""
    return str(description["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]).rstrip("/")


def _without_result(step: ExecutionStep, description: Mapping[str, Any]) -> StepResult:
    start, end = description.get("CreationTime"), description.get("ProcessingEndTime")
    stopped, name = step.status == "Stopped", step.reason.partition(":")[0]
    error = StepError(
        kind="interrupted" if stopped else "remote",
        ename="Stopped" if stopped else name if name.isidentifier() else "NoResult",
        evalue=f"the job {step.job or 'was not made'} ended {step.status}: {step.reason or 'it left no result'}",
    )
    return StepResult(
        status="interrupted" if stopped else "failed",
        started=utc_text(start) if isinstance(start, datetime) else "",
        ended=utc_text(end) if isinstance(end, datetime) else "",
        seconds=step.seconds or 0.0,
        cells=0,
        cells_run=0,
        error=error,
    )
