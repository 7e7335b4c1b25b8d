"""The steps of one job of a SageMaker Pipeline, one after the other, with the gate where it is judged among them.

A result of an earlier execution with the same content is taken from there: `runs/cache/<step>/<key>.json` has its
address. The service's own cache is asked before a job starts; this one is for jobs that have to start in any case.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import NoReturn

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.pipelines.execution_job import OWN, ExecutionJob
from runner.aws.pipelines.job_registration import register_unasked, registered
from runner.aws.pipelines.machine_orders import OtherMachines
from runner.aws.pipelines.parameters import parameter_key
from runner.aws.pipelines.pushed import LEFT, TASK, EarlierResult, JobReport, Pins, StepTask, is_pinned, step_key
from runner.aws.processing import inside
from runner.aws.processing._run import TERMINATED
from runner.aws.processing.bundle import name_of
from runner.aws.processing.jobs import step_line
from runner.aws.processing.request import INPUT, JobPlace
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.content import artifact, atomic_write
from runner.errors import RemoteError, UsageError
from runner.gate import judge
from runner.manifest import recorded
from runner.notebook.source import read_notebook
from runner.notebook.types import DoesNotFit, read_text
from runner.pipeline.file import VERDICT
from runner.records import InputFact, InputSpec, Rule, StepJob, StepResult, Verdict, decode, encode, read
from runner.run.folder import upstream_input
from runner.run.monitored import reasons_in
from runner.run.orchestrate import VERDICT_FILE
from runner.run.retries import RETRIED
from runner.run.sources import name_only
from runner.step.execute import EXECUTED, JOB, RESULT, SOURCE

ORDERED = "RUNNER_ORDERED"  # the step that was ordered before this program was started again
LONGEST_REASONS = 800  # characters, for a Fail step's message
KEPT = timedelta(days=365)  # as in the service's own cache


@dataclass(frozen=True)
class GateReport:
    verdict: Verdict
    reasons: str


def gate_report(results: Mapping[str, StepResult], rules: Sequence[Rule], *, first: Sequence[str] = ()) -> GateReport:
    """The gate's verdict on the metrics that the steps have recorded. Its reasons begin with the sentences `first`."""
    metrics, problems = recorded(results)
    present = {
        f"{step}.{name}" for step, result in results.items() for name, fact in result.inputs.items() if fact.present
    }
    verdict = judge(metrics, rules, problems=problems, present=present)
    sentences = (rule.sentence for rule in verdict.rules if rule.outcome not in ("pass", "not judged"))
    reasons = " ".join([*first, *sentences])
    return GateReport(verdict, reasons if len(reasons) <= LONGEST_REASONS else f"{reasons[:LONGEST_REASONS]} …")


def folders_before() -> dict[str, str]:
    """The addresses of the folders of steps in other jobs, by their names."""
    folders, number = dict[str, str](), 1
    while address := os.environ.get(f"RUNNER_RESULT_{number}", "").rstrip("/"):
        folders[address.rpartition("/")[2]] = address
        number += 1
    return folders


def results_before(session: Session) -> dict[str, StepResult]:
    """The results of steps in other jobs."""
    return {step: _result(address, session) for step, address in folders_before().items()}


def jobs_of(folders: Mapping[str, str], session: Session) -> dict[str, StepJob]:
    """The jobs of steps, by the addresses of their folders."""
    return {step: decode(StepJob, _content(at, JOB, session), where=at) for step, at in folders.items()}


class StepSequence:
    def __init__(self, execution_job: ExecutionJob, session: Session, pins: Pins) -> None:
        self.execution_job, self.session, self.pins, self.pushed = execution_job, session, pins, pins.pushed
        self.stop = inside.stop_event()
        self.bucket = Bucket(session, execution_job.bucket, settings(pins.pushed.pipeline).prefix)
        self.results, self.folders = results_before(session), folders_before()
        gate = os.environ.get("RUNNER_GATE")
        self.verdict = decode(Verdict, _content(gate, VERDICT_FILE, session), where=gate) if gate else None
        own_pins = pins.pins if "RUNNER_EXECUTION" in os.environ else {}
        self.report = JobReport(before=dict(self.folders), pins=own_pins)
        self.since = float(os.environ["RUNNER_BEGAN"])
        self.machines = OtherMachines(execution_job, session)
        self.attempts = 0  # at the steps, that other machines were told of

    def run(self, names: Sequence[str]) -> int:
        """Execute the steps that no earlier execution has; the exit code. A step that fails is the last one."""
        try:
            return self._run(names)
        finally:
            self.machines.end(self.attempts)

    def _run(self, names: Sequence[str]) -> int:
        several = len(names) > 1
        looks = several or not os.environ.keys().isdisjoint({"RUNNER_EXECUTION", "RUNNER_RULES"})
        gated = {step.name for step in self.pushed.steps if step.gated}
        for number, name in enumerate(names, 1):
            if name in gated and self.verdict is not None and self.verdict.outcome != "pass":
                break
            step = _Step(self, name, f"RUNNER_STEP_{number}" if several else None)
            result = self._earlier_result(step) if looks and name != os.environ.get(ORDERED) else None
            if result is None:
                if self.stop.is_set():
                    return TERMINATED
                step.order(1)  # before this machine is ready, so that all make their packages at once
                if os.environ["RUNNER_ENVIRONMENT"] == "none":
                    start_again(ordered=name)
                result, code = step.execute(several=several)
                if code:
                    return code
                if looks:
                    now = datetime.now(UTC).isoformat(timespec="milliseconds")
                    execution = self.execution_job.execution_id
                    entry = EarlierResult(at=self.folders[name], execution=execution, ended=now)
                    self.bucket.put(step.cache_key, encode(entry))
            self.results[name] = result
            if looks:  # for other jobs the report has no reader
                self._report(at={**self.report.at, step_key(self.pushed, name): self.folders[name]})
            if name == self.pushed.judge and "RUNNER_RULES" in os.environ:
                gate = gate_report(self.results, self.pushed.pipeline.gate, first=self._worries())
                self.verdict = gate.verdict
                self.execution_job.folder(self.session).put(VERDICT_FILE, encode(gate.verdict))
                self._report(outcome=gate.verdict.outcome, reasons=gate.reasons)
                if self.pushed.registers_itself:
                    jobs = jobs_of(self.folders, self.session)
                    register_unasked(self.results, jobs, self.execution_job, self.pins, self.bucket, gate.verdict)
        return 0

    def _report(self, **changes: object) -> None:
        self.report = msgspec.structs.replace(self.report, **changes)
        self.execution_job.folder(self.session).put(LEFT, encode(self.report))

    def _worries(self) -> list[str]:
        """What the steps that have looked at a target say: whether to worry, and why."""
        sentences = []
        for name in self.pushed.windows:
            if name in self.folders:
                copy = inside.work() / f"{name}-{EXECUTED}"
                atomic_write(copy, _content(self.folders[name], EXECUTED, self.session))
                sentences += [f"{reason}." for reason in reasons_in(copy)]
        return sentences

    def _earlier_result(self, step: _Step) -> StepResult | None:
        """The result of an earlier execution; None where there is none, or none any more."""
        content = self.bucket.get(step.cache_key)
        if content is None:
            return None
        earlier = decode(EarlierResult, content, where=self.bucket.address(step.cache_key))
        if datetime.now(UTC) - datetime.fromisoformat(earlier.ended) > KEPT:
            return None
        try:
            result = _result(earlier.at, self.session)
        except RemoteError:  # its folder was removed
            return None
        self.folders[step.name] = earlier.at
        if earlier.execution != self.execution_job.execution_id:
            taken = {**self.report.taken, step.name: earlier.execution}
            self.report = msgspec.structs.replace(self.report, taken=taken)
        return result


class _Step:
    """One step of the sequence."""

    def __init__(self, sequence: StepSequence, name: str, variable: str | None) -> None:
        """`variable` has the key of the step's bundle, where the service has not put it in its place."""
        self.sequence, self.name = sequence, name
        execution_job = sequence.execution_job
        if variable is None:
            self.code, at = OWN, execution_job.inputs["step"]
        else:
            self.code, at = inside.work() / "code" / name, os.environ[variable]
            if not self.code.is_dir():
                inside.fetch(sequence.bucket.address(at), self.code, sequence.session)
        self.sha256 = name_of(at)
        inside.check_code(self.sha256, self.code)
        self.task = read(StepTask, self.code / TASK)
        self.addresses: dict[str, str] = {}  # input -> address of its bytes
        self.job = self._job()
        # as here, how many workers there are is no reason to execute it again
        job = msgspec.structs.replace(self.job, run="", cluster=None)
        key = [self.sha256, execution_job.inputs["bundle"], execution_job.image, job]
        digest = hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()
        self.cache_key = f"runs/cache/{name}/{digest}.json"

    def execute(self, *, several: bool) -> tuple[StepResult, int]:
        """(the step's result, the exit code); its files are in its folder. `several`: steps share the job's cost."""
        sequence, place = self.sequence, self._place()
        execution_job, session = sequence.execution_job, sequence.session
        folder = execution_job.folder(session, self.name)
        inside.log(step_line(self.name, self.job.attempt))
        folder.put(JOB, encode(self.job))
        paths = {name: self._path(name) for name in self._read_by_path()}
        for attempt in range(1, self.task.retries + 2):
            self.order(attempt)
            result = inside.execute_step(self.job, place, session, sequence.stop, paths=paths, code=self.code)
            if result.error is None or result.error.kind not in RETRIED or sequence.stop.is_set():
                break
        sequence.machines.end(sequence.attempts)  # they are paid for while this one sends its results
        model = sequence.pushed.pipeline.model
        if result.error is None and result.registration is not None and (model is None or model.register):
            results = {**sequence.results, self.name: result}
            result = registered(results, self.job, execution_job, sequence.pins, sequence.bucket, sequence.verdict)
        if several and result.remote is not None:
            result = inside.with_billed_time(result, sequence.since)
            sequence.since = time.time()
        code = inside.send(result, place, session)
        sequence.folders[self.name] = folder.address("").rstrip("/")
        inside.keep_outputs(self.name)
        return result, code

    def order(self, attempt: int) -> None:
        """Have the job's other machines add their workers to this attempt."""
        self.sequence.attempts = attempt
        verdict = f"{os.environ.get('RUNNER_GATE', '').rstrip('/')}/{VERDICT_FILE}"
        addresses = {name: self.addresses[name] for name in self._read_by_path()}
        inputs = {name: verdict if address == VERDICT else address for name, address in addresses.items()}
        self.sequence.machines.order(attempt, self.job, self._place(), inputs)

    def _place(self) -> JobPlace:
        execution_job = self.sequence.execution_job
        return JobPlace(
            job=execution_job.name,
            bucket=execution_job.bucket,
            key=execution_job.folder(self.sequence.session, self.name).prefix,
            region=execution_job.region,
            image=execution_job.image,
            instance=execution_job.instance,
            machines=execution_job.machines,
            code=self.sha256,
            notebook_folder=str(PurePosixPath(self.job.notebook).parent),
            files={},
            secrets=self.task.prefix,
            kms_key=execution_job.kms_key,
        )

    def _read_by_path(self) -> list[str]:
        return [name for name in self.job.inputs if name in self.addresses]

    def _job(self) -> StepJob:
        """The step's job in this execution."""
        declared = read_notebook(self.code / SOURCE).parameters
        pins, spec = self.sequence.pins, self.sequence.pushed.pipeline.steps[self.name]
        values = dict(self.task.job.parameters)
        for name in self.task.given:
            try:
                values[name] = read_text(pins.parameters[parameter_key(self.name, spec, name)], declared[name].type)
            except DoesNotFit as error:
                raise UsageError(f"-p {name}: {error}, declared in {self.task.job.notebook}.") from error
        inputs = {name: name_only(self._input(name, source), name) for name, source in self.task.inputs.items()}
        parameters = dict(sorted(values.items()))
        job = msgspec.structs.replace(self.task.job, run=pins.run, parameters=parameters, inputs=inputs)
        return msgspec.structs.replace(job, cluster=spec.cluster)

    def _input(self, name: str, spec: InputSpec) -> InputFact:
        if is_pinned(spec):
            pin = next(pin for pin in self.sequence.pins.pins.values() if pin.of == f"{self.name}.{name}")
            if pin.fact.present and pin.fact.as_ == "path":
                self.addresses[name] = pin.address
            return pin.fact
        self.addresses[name] = spec.from_
        if spec.from_ == VERDICT:
            assert self.sequence.verdict is not None
            path = inside.work() / VERDICT_FILE
            atomic_write(path, encode(self.sequence.verdict))
            return InputFact(source=VERDICT, artifact=artifact(path, name=VERDICT_FILE))
        fact = upstream_input(spec.from_, self.sequence.results)
        assert fact.artifact is not None
        self.addresses[name] = f"{self.sequence.folders[spec.from_.partition('.')[0]]}/{fact.artifact.path}"
        return fact

    def _path(self, name: str) -> Path:
        """The input on this machine: put there by the service, an output of a step before, or downloaded now."""
        address = self.addresses[name]
        if address == VERDICT:
            return inside.work() / VERDICT_FILE
        if f"in/{name}" in self.sequence.execution_job.inputs:
            folder = Path(INPUT) / "in" / name
            return folder if address.endswith("/") else folder / PurePosixPath(address).name
        source = self.task.inputs[name].from_.partition(".")[0]
        outputs = inside.kept_outputs(source)
        if outputs is not None and address.startswith(f"{self.sequence.folders.get(source)}/"):
            return outputs / address.removeprefix(f"{self.sequence.folders[source]}/")
        return inside.fetch(address, inside.work() / "arrived" / self.name / name, self.sequence.session)


def start_again(*, ordered: str = "") -> NoReturn:
    """Start this program again with the packages that a notebook needs.

    It looks for earlier results once more, but not of the step that other machines were told to work on by now.
    """
    variables = {**os.environ, "PYTHONPATH": os.environ["RUNNER_PYTHONPATH"], ORDERED: ordered}
    sys.stdout.flush()
    script = str(Path(INPUT) / "bundle" / "_run.py")
    command = [sys.executable, "-u", script, "runner.aws.pipelines.pipeline_job", *sys.argv[1:]]
    os.execve(sys.executable, command, variables)


def _result(folder: str, session: Session) -> StepResult:
    return decode(StepResult, _content(folder, RESULT, session), where=f"{folder}/{RESULT}")


def _content(folder: str, name: str, session: Session) -> bytes:
    bucket, key = split(folder.rstrip("/"))
    return inside.read_object(Bucket(session, bucket), f"{key}/{name}")
