"""The steps of one job of a SageMaker Pipeline, one after the other, with the gate where it is judged among them.

A step whose result an earlier execution has is taken from there, by content: `runs/cache/<step>/<key>.json` says where it
lies. Only the service's own cache is older than a job; this one is asked where a job has to start anyway.
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
from runner.aws.pipelines.job_registration import registered
from runner.aws.pipelines.parameters import parameter_key
from runner.aws.pipelines.pushed import LEFT, TASK, EarlierResult, JobReport, Pins, StepTask, is_pinned, step_key
from runner.aws.processing import inside
from runner.aws.processing._run import TERMINATED
from runner.aws.processing.arrivals import fetch
from runner.aws.processing.bundle import name_of
from runner.aws.processing.jobs import step_line
from runner.aws.processing.request import INPUT, JobPlace
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.content import artifact, atomic_write
from runner.errors import RemoteError, UsageError
from runner.escape import terminal
from runner.gate import judge
from runner.manifest import recorded
from runner.notebook.source import read_notebook
from runner.notebook.types import DoesNotFit, read_text
from runner.pipeline.file import VERDICT
from runner.records import InputFact, InputSpec, Rule, StepJob, StepResult, Value, Verdict, decode, encode, read
from runner.run.folder import upstream_input
from runner.run.orchestrate import VERDICT_FILE
from runner.run.retries import RETRIED
from runner.run.sources import name_only
from runner.step.execute import JOB, RESULT, SOURCE

LONGEST_REASONS = 800  # of what a Fail step's message holds
KEPT = timedelta(days=365)  # as the service's own cache is asked to


@dataclass(frozen=True)
class GateReport:
    verdict: Verdict
    reasons: str


def judged(results: Mapping[str, StepResult], rules: Sequence[Rule]) -> GateReport:
    """The gate's verdict on what the steps have recorded."""
    metrics, problems = recorded(results)
    present = {
        f"{step}.{name}" for step, result in results.items() for name, fact in result.inputs.items() if fact.present
    }
    verdict = judge(metrics, rules, problems=problems, present=present)
    said = " ".join(rule.sentence for rule in verdict.rules if rule.outcome not in ("pass", "not judged"))
    return GateReport(verdict, said if len(said) <= LONGEST_REASONS else f"{said[:LONGEST_REASONS]} …")


def folders_before() -> dict[str, str]:
    """The addresses of the folders of steps in other jobs, by their names."""
    found, number = dict[str, str](), 1
    while address := os.environ.get(f"RUNNER_RESULT_{number}", "").rstrip("/"):
        found[address.rpartition("/")[2]] = address
        number += 1
    return found


def results_before(session: Session) -> dict[str, StepResult]:
    """What steps in other jobs came to."""
    return {step: _result(address, session) for step, address in folders_before().items()}


class StepSequence:
    def __init__(self, here: ExecutionJob, session: Session, found: Pins) -> None:
        self.here, self.session, self.found, self.pushed = here, session, found, found.pushed
        self.stop = inside.told_to_stop()
        self.bucket = Bucket(session, here.bucket, settings(found.pushed.pipeline).prefix)
        self.results, self.folders = results_before(session), folders_before()
        self.verdict = self._verdict_before()
        self.left = JobReport(pins=found.pins if "RUNNER_EXECUTION" in os.environ else {})
        self.since = float(os.environ["RUNNER_BEGAN"])

    def run(self, names: Sequence[str]) -> int:
        """Execute what no earlier execution has; the exit code. A step that fails is the last one."""
        several = len(names) > 1
        looks = several or not os.environ.keys().isdisjoint({"RUNNER_EXECUTION", "RUNNER_RULES"})
        gated = {step.name for step in self.pushed.steps if step.gated}
        for number, name in enumerate(names, 1):
            if name in gated and self.verdict is not None and self.verdict.outcome != "pass":
                break
            step = _Step(self, name, f"RUNNER_STEP_{number}" if several else None)
            result = self._taken(step) if looks else None
            if result is None:
                if self.stop.is_set():
                    return TERMINATED
                if os.environ["RUNNER_ENVIRONMENT"] == "none":
                    _begin_again()
                code = step.execute(paid=several)
                if code:
                    return code
                result = step.result
                if looks:
                    self._remember(step)
            self.results[name] = result
            if looks:  # elsewhere nobody asks
                self._note(at={**self.left.at, step_key(self.pushed, name): self.folders[name]})
            if name == self.pushed.judge and "RUNNER_RULES" in os.environ:
                self._judge()
        return 0

    def _judge(self) -> None:
        found = judged(self.results, self.pushed.pipeline.gate)
        self.verdict = found.verdict
        self.here.folder(self.session).put(VERDICT_FILE, encode(found.verdict))
        self._note(outcome=found.verdict.outcome, reasons=found.reasons)

    def _note(self, **changes: object) -> None:
        self.left = msgspec.structs.replace(self.left, **changes)
        self.here.folder(self.session).put(LEFT, encode(self.left))

    def _verdict_before(self) -> Verdict | None:
        folder = os.environ.get("RUNNER_GATE")
        if not folder:
            return None
        return decode(Verdict, _content(folder, VERDICT_FILE, self.session), where=folder)

    def _taken(self, step: _Step) -> StepResult | None:
        """The result of an earlier execution; None where there is none any more."""
        content = self.bucket.get(step.kept)
        if content is None:
            return None
        earlier = decode(EarlierResult, content, where=self.bucket.address(step.kept))
        if datetime.now(UTC) - datetime.fromisoformat(earlier.ended) > KEPT:
            return None
        try:
            result = _result(earlier.at, self.session)
        except RemoteError:  # its folder was removed
            return None
        self.folders[step.name] = earlier.at
        if earlier.execution != self.here.execution_id:
            self.left = msgspec.structs.replace(self.left, taken={**self.left.taken, step.name: earlier.execution})
        return result

    def _remember(self, step: _Step) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        made = EarlierResult(at=self.folders[step.name], execution=self.here.execution_id, ended=now)
        self.bucket.put(step.kept, encode(made))


class _Step:
    """One step of the sequence. `result` is there once it was executed."""

    def __init__(self, sequence: StepSequence, name: str, variable: str | None) -> None:
        """`variable` has the key of the step's bundle, where the service has not put it in its place."""
        self.sequence, self.name = sequence, name
        here = sequence.here
        if variable is None:
            self.code, at = OWN, here.inputs["step"]
        else:
            at = os.environ[variable]
            self.code = inside.work() / "code" / name
            if not self.code.is_dir():
                fetch(sequence.bucket.address(at), self.code, sequence.session)
        self.sha256 = name_of(at)
        inside.check_code(self.sha256, self.code)
        self.task = read(StepTask, self.code / TASK)
        self.addresses: dict[str, str] = {}  # input -> where its bytes are
        self.job = self._job()
        said = [self.sha256, here.inputs["bundle"], here.image, msgspec.structs.replace(self.job, run="")]
        self.kept = f"runs/cache/{name}/{hashlib.sha256(msgspec.json.encode(said, order='sorted')).hexdigest()}.json"
        self.result: StepResult

    def execute(self, *, paid: bool) -> int:
        """The exit code of the step, with all that came of it in its folder. `paid`: it is to say what its share is."""
        sequence, here = self.sequence, self.sequence.here
        folder = here.folder(sequence.session, self.name)
        place = self._place(folder)
        sys.stdout.write(terminal(step_line(self.name, self.job.attempt)) + "\n")
        folder.put(JOB, encode(self.job))
        arrived = {name: self._arrived(name) for name in self.job.inputs if name in self.addresses}
        for left in range(self.task.retries, -1, -1):
            result = inside.perform(self.job, place, sequence.session, sequence.stop, arrived=arrived, code=self.code)
            if result.error is None or result.error.kind not in RETRIED or not left or sequence.stop.is_set():
                break
        if result.error is None and result.registration is not None:
            results = {**sequence.results, self.name: result}
            result = registered(results, self.job, here, sequence.found, sequence.bucket, sequence.verdict)
        if paid and result.remote is not None:
            result = inside.with_share(result, sequence.since)
            sequence.since = time.time()
        self.result = result
        code = inside.leave(result, place, sequence.session)
        sequence.folders[self.name] = folder.address("").rstrip("/")
        inside.keep_outputs(self.name)
        return code

    def _place(self, folder: Bucket) -> JobPlace:
        here = self.sequence.here
        return JobPlace(
            job=here.name,
            bucket=here.bucket,
            key=folder.prefix,
            region=here.region,
            image=here.image,
            instance=here.instance,
            code=self.sha256,
            notebook_folder=str(PurePosixPath(self.job.notebook).parent),
            files={},
            secrets=self.task.prefix,
            kms_key=here.kms_key,
        )

    def _job(self) -> StepJob:
        """The step's job in this execution."""
        declared = read_notebook(self.code / SOURCE).parameters
        found, spec = self.sequence.found, self.sequence.pushed.pipeline.steps[self.name]
        given: dict[str, Value] = {}
        for name in self.task.given:
            try:
                given[name] = read_text(found.parameters[parameter_key(self.name, spec, name)], declared[name].type)
            except DoesNotFit as error:
                raise UsageError(f"-p {name}: {error}, declared in {self.task.job.notebook}.") from error
        inputs = {name: self._input(name, wanted) for name, wanted in self.task.inputs.items()}
        return msgspec.structs.replace(
            self.task.job,
            run=found.run,
            parameters=dict(sorted({**self.task.job.parameters, **given}.items())),
            inputs={name: name_only(fact, name) for name, fact in inputs.items()},
        )

    def _input(self, name: str, spec: InputSpec) -> InputFact:
        if is_pinned(spec):
            pin = next(pin for pin in self.sequence.found.pins.values() if pin.of == f"{self.name}.{name}")
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

    def _arrived(self, name: str) -> Path:
        """The input on this machine: where the service has put it, where a step before has made it, or brought now."""
        address = self.addresses[name]
        if address == VERDICT:
            return inside.work() / VERDICT_FILE
        if f"in/{name}" in self.sequence.here.inputs:
            folder = Path(INPUT) / "in" / name
            return folder if address.endswith("/") else folder / PurePosixPath(address).name
        source = self.task.inputs[name].from_.partition(".")[0]
        made = inside.kept_outputs(source)
        if made is not None and address.startswith(f"{self.sequence.folders.get(source)}/"):
            return made / address.removeprefix(f"{self.sequence.folders[source]}/")
        return fetch(address, inside.work() / "arrived" / self.name / name, self.sequence.session)


def _begin_again() -> NoReturn:
    """With the packages that a notebook needs. What was looked for is found again."""
    restored = {**os.environ, "PYTHONPATH": os.environ["RUNNER_PYTHONPATH"]}
    sys.stdout.flush()
    script = str(Path(INPUT) / "bundle" / "_run.py")
    os.execve(
        sys.executable, [sys.executable, "-u", script, "runner.aws.pipelines.pipeline_job", *sys.argv[1:]], restored
    )


def _result(folder: str, session: Session) -> StepResult:
    return decode(StepResult, _content(folder, RESULT, session), where=f"{folder}/{RESULT}")


def _content(folder: str, name: str, session: Session) -> bytes:
    bucket, key = split(folder.rstrip("/"))
    content = Bucket(session, bucket).get(f"{key}/{name}")
    if content is None:
        raise RemoteError(f"There is no {folder}/{name}, though the step has ended well. It was removed.")
    return content
