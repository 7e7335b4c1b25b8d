"""What a push lays into the bucket for the jobs of a SageMaker Pipeline, and what those leave there.

    <bucket>/<prefix>steps/<sha256>/        the notebook and its modules, with task.json      → a step's input/step
                                            pipeline.json, what was pushed                    → input/pushed of the first
                                            rules.json                                        → a gate's with its own job
    <bucket>/<prefix>inputs/<sha256>/…      local sources, by content
    <bucket>/<prefix>runs/<execution>/
        pin/pins.json                       what this execution was started with and depends on from outside; put once
        <step>/                             job.json, executed.ipynb, result.json, out/…, version.json
        <job>/verdict.json                  where the gate was judged
        <job>/left.json                     what the Pipeline itself reads: where the steps' folders are, the pins, the
                                            gate's outcome with its reasons. A job has the name of its first step
    <bucket>/<prefix>runs/inputs/<sha256>/  sources on the web, by content
    <bucket>/<prefix>runs/cache/<step>/     by all that a step's result may depend on: the folder that has it

A step's bundle has nothing in it that is not the step's own, so that a push leaves the others' caches alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner import __version__
from runner.aws.bucket import Bucket
from runner.aws.own_image import named
from runner.aws.pipelines.parameters import PipelineParameter, active, pipeline_parameters
from runner.aws.pipelines.step_groups import StepGroup, gated_steps, judging_step, step_groups
from runner.aws.processing import bundle
from runner.aws.settings import settings
from runner.content import artifact
from runner.errors import PipelineError
from runner.manifest import Champion, Environment, GitState
from runner.notebook.redaction import FORMS
from runner.notebook.strip_outputs import cleaned
from runner.paths import FileName
from runner.pipeline.addresses import is_public, public
from runner.pipeline.file import APPROVED, is_address, is_path
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import FORMAT, InputFact, InputSpec, Pipeline, Record, Rule, StepJob, encode
from runner.run import provenance
from runner.run.cache import Cache
from runner.run.store import Store, facts_of

TASK, PUSHED, RULES, PINS, LEFT = "task.json", "pipeline.json", "rules.json", "pins.json", "left.json"
GATE, CONDITION, FAIL = "gate", "gate-passed", "gate-failed"  # the Pipeline's own steps
PIN = "pin"  # the folder of the pins
STEPS = "steps"  # what a job is told to do: these, or the gate
ABSENT, ABSENT_KEY = "absent", "inputs/absent/"


class StepTask(Record, frozen=True, kw_only=True):
    """task.json: what one step is to do, whatever execution it is in. `given` come from the environment."""

    format: int = FORMAT
    job: StepJob  # without run and inputs
    inputs: dict[str, InputSpec]
    given: list[str]
    retries: int
    prefix: str  # the project's, in the bucket


class GateRules(Record, frozen=True, kw_only=True):
    format: int = FORMAT
    rules: list[Rule]


class PushedStep(Record, frozen=True, kw_only=True):
    name: FileName
    key: str  # of its bundle
    gated: bool  # runs only after a passing gate
    job: str = ""  # the step of the Pipeline that executes it; "" for its own name


class Pushed(Record, frozen=True, kw_only=True):
    """pipeline.json: all that a run's manifest says of what it was made from."""

    format: int = FORMAT
    pipeline: Pipeline
    file: FileName
    toml: str
    profile: str | None
    judges: bool
    steps: list[PushedStep]  # in an order that respects every need
    judge: str = ""  # the step whose job judges the gate once it has ended; "" for a job of the gate's own
    skipped: dict[FileName, str] = {}  # step -> why it is not among them
    parameters: list[PipelineParameter]
    sources: list[str]  # "step.input" of what is pinned when an execution starts
    git: GitState | None
    runner_version: str
    serving_image: str | None = None  # of versions that an execution registers


class Pin(Record, frozen=True, kw_only=True):
    """One input from outside: what a step is told of it, where its bytes are, and what identifies them."""

    of: FileName  # "step.input"
    fact: InputFact
    address: str
    digest: str


class Pins(Record, frozen=True, kw_only=True):
    """pins.json. The keys of `pins` are made for JsonGet."""

    format: int = FORMAT
    run: FileName
    execution: str  # ARN
    started: str
    started_by: str
    identity: str = ""  # the ARN of who started it
    parameters: dict[str, str]  # by key, as this execution has them
    pins: dict[str, Pin]
    champion: Champion | None
    environment: Environment
    pushed: Pushed


class EarlierResult(Record, frozen=True, kw_only=True):
    """Where a step's result lies that was made by an earlier execution."""

    format: int = FORMAT
    at: str  # the address of its folder, without a last slash
    execution: str
    ended: str


class JobReport(Record, frozen=True, kw_only=True):
    """left.json of a job. Keys of `at` and `pins` are made for JsonGet."""

    format: int = FORMAT
    at: dict[str, str] = {}  # step -> the address of the folder that has its result, without a last slash
    taken: dict[FileName, str] = {}  # step -> the execution that it was taken from
    pins: dict[str, Pin] = {}
    outcome: str = ""
    reasons: str = ""


@dataclass(frozen=True)
class PushedFiles:
    """What a push has put into the bucket, as addresses, with what the definition is made of."""

    plan: Plan
    pushed: Pushed
    tasks: dict[str, StepTask]
    step_groups: list[StepGroup]
    runners: dict[str, str]  # step or gate -> prefix of the runner with that step's environment
    bundles: dict[str, str]  # step, pin or gate -> prefix of its own; the pin's is what was pushed
    runs: str  # address below which executions leave their folders, without a last slash


class DryRunBucket(Bucket):
    """A bucket in which nothing is written and nothing asked for: every key is as `lay` would give it."""

    def put(self, key: str, data: bytes, *, once: bool = False) -> bool:
        return True

    def size(self, key: str) -> int | None:
        return 0  # there, so that no wheel is read; and of another size, so that everything else is made

    def keys(self, below: str = "") -> Iterator[tuple[str, int]]:
        return iter(())

    def upload(self, key: str, path: Path, *, missing_only: bool = True) -> int:
        return path.stat().st_size


def put_files(plan: Plan, bucket: Bucket, *, store: Store, profile: str | None) -> PushedFiles:
    """Put there what the Pipeline's jobs need, each thing once, under names made of its content.

    Raises PipelineError where the pipeline cannot run as a SageMaker Pipeline, UsageError as bundles do.
    """
    _refuse(plan)
    gated, judge, parts = gated_steps(plan), judging_step(plan), step_groups(plan)
    of = {name: share.name for share in parts for name in share.names}
    chosen = settings(plan.pipeline)
    bucket.put(f"{ABSENT_KEY}absent.txt", b"There is no such input in this execution.\n")
    sources = _sources(plan, bucket)
    parameters, taken = pipeline_parameters(
        plan, sources, jobs=[share.name for share in parts], small=plan.judges and not judge
    )
    cache = Cache(store, plan.root)
    tasks, keys = {}, {}
    for step in active(plan):
        tasks[step.name] = _task(step, taken[step.name], bucket.prefix)
        keys[step.name] = bundle.upload(bucket, "steps/", _code(step, plan, tasks[step.name], cache))[0]
    pushed = Pushed(
        pipeline=plan.pipeline,
        file=plan.file.name,
        toml=plan.file.read_text(encoding="utf-8-sig"),
        profile=profile,
        judges=plan.judges,
        steps=[PushedStep(name=name, key=key, gated=name in gated, job=of[name]) for name, key in keys.items()],
        judge=judge,
        skipped={step.name: step.skip for step in plan.steps if step.skip},
        parameters=parameters,
        sources=_pinned(plan),
        git=provenance.git_state(plan.root, [step.notebook.path for step in plan.steps]),
        runner_version=__version__,
        serving_image=named(plan.pipeline.name, chosen, bucket.session.region, plan.root).serving_image,
    )
    keys[PIN] = _put_record(bucket, PUSHED, encode(pushed))
    alone = [GATE] if plan.judges and not judge else []
    for name in alone:
        keys[name] = _put_record(bucket, RULES, encode(GateRules(rules=plan.pipeline.gate)))
    return PushedFiles(
        plan=plan,
        pushed=pushed,
        tasks=tasks,
        step_groups=parts,
        runners=_runners(plan, bucket, alone),
        bundles={name: bucket.address(key) for name, key in keys.items()},
        runs=bucket.address("runs"),
    )


def put_source(path: Path, bucket: Bucket, *, below: str = "inputs/") -> str:
    """The address of a local file or folder, put there under its content's name."""
    found = artifact(path, name=path.name)
    key = f"{below}{found.sha256}/"
    for relative in facts_of(found):
        bucket.upload(key + (relative or path.name), path / relative if relative else path)
    return bucket.address(key if found.files is not None else key + path.name)


def pin_key(pushed: Pushed, of: str) -> str:
    """The key of a pinned input in pins.json."""
    return f"pin_{pushed.sources.index(of) + 1}"


def step_key(pushed: Pushed, step: str) -> str:
    """The step's key in left.json."""
    return f"step_{[known.name for known in pushed.steps].index(step) + 1}"


def is_pinned(spec: InputSpec) -> bool:
    """Whether the input comes from outside the execution."""
    source = spec.from_
    return not source or is_path(source) or is_address(source) or source.startswith(APPROVED)


def _refuse(plan: Plan) -> None:
    model = plan.pipeline.model
    local = model is None or model.registry != "sagemaker"
    findings = [
        f"steps.{step.name}: in SageMaker `{step.name}` is a step of the Pipeline's own; rename it."
        for step in active(plan)
        if step.name in (PIN, CONDITION, FAIL)
    ]
    findings += [
        f"steps.{step.name}.inputs.{name}: the approved version is looked up in SageMaker's registry when an execution "
        'starts; write [model] registry = "sagemaker".'
        for step in active(plan)
        for name, spec in step.spec.inputs.items()
        if spec.from_.startswith(APPROVED) and local
    ]
    findings += [
        f"steps.{step.name}: it is a training job, and in the Pipeline steps are processing jobs; write job = "
        '"processing" for it, in a profile for the Pipeline perhaps.'
        for step in active(plan)
        if settings(plan.pipeline, step.name).trains
    ]
    findings += [
        f"steps.{step.name}: it registers, and the gate judges it; in SageMaker only a step after the gate can register. "
        "Call runner.model.register in a step of its own."
        for step in active(plan)
        if step.registers and not step.needs_verdict
    ]
    findings += [
        f"steps.{step.name}.inputs.{name}: {public(spec.from_)} is signed or has a password, and a Pipeline's parameters "
        "are kept in the clear. `runner upload` the file and name its place in the bucket."
        for step in active(plan)
        for name, spec in step.spec.inputs.items()
        if is_address(spec.from_) and not is_public(spec.from_)
    ]
    if model is not None and local and gated_steps(plan):
        findings.append(
            '[model] registry = "local" is on this machine, where no execution can register; write registry = "sagemaker".'
        )
    if findings:
        raise PipelineError(*findings)


def _pinned(plan: Plan) -> list[str]:
    return [
        f"{step.name}.{name}" for step in active(plan) for name, spec in step.spec.inputs.items() if is_pinned(spec)
    ]


def _sources(plan: Plan, bucket: Bucket) -> dict[str, str]:
    """The address of each source that an execution may be given another for, by "step.input"; "" for an absent one."""
    found = {}
    for step in active(plan):
        for name, spec in step.spec.inputs.items():
            if is_path(spec.from_):
                path = (plan.root / Path(spec.from_).expanduser()).resolve()
                found[f"{step.name}.{name}"] = "" if spec.optional and not path.exists() else put_source(path, bucket)
            elif is_address(spec.from_) or not spec.from_:
                found[f"{step.name}.{name}"] = spec.from_
    return found


def _task(step: PlannedStep, taken: Collection[str], prefix: str) -> StepTask:
    fixed = {name: value for name, value in step.parameters.items() if name not in {*step.secrets, *taken}}
    return StepTask(
        job=StepJob(
            run="",
            step=step.name,
            notebook=step.spec.notebook,
            parameters=fixed,
            secrets=step.secrets,
            outputs=step.spec.outputs,
            timeout_s=step.spec.timeout_s,
            cell_timeout_s=step.spec.cell_timeout_s,
        ),
        # which local file an address stands for is the push's business
        inputs={
            name: msgspec.structs.replace(spec, from_="") if is_path(spec.from_) else spec
            for name, spec in step.spec.inputs.items()
        },
        given=sorted(taken),
        retries=step.spec.retries,
        prefix=prefix,
    )


def _code(step: PlannedStep, plan: Plan, task: StepTask, cache: Cache) -> bundle.Bundle:
    """The step's code, without what executing the notebook by hand has left in it, and its task."""
    code = bundle.code_bundle(
        cleaned(step.notebook.path.read_bytes()),
        notebook=step.spec.notebook,
        modules=step.modules,
        root=plan.root,
        include=settings(plan.pipeline, step.name).include,
        also=cache.undeclared(step.name),
        forms=FORMS,
    )
    return bundle.bundle({**code.files, TASK: encode(task)})


def _runners(plan: Plan, bucket: Bucket, alone: Collection[str]) -> dict[str, str]:
    from runner.aws.processing.executor import put_runner  # reads locks with packaging, which a plain job does not have

    made: dict[tuple[str, ...], str] = {}
    found = {}
    for name in (*alone, *(step.name for step in active(plan))):
        chosen = settings(plan.pipeline, name if name in plan.pipeline.steps else None)
        key = (chosen.lock, chosen.python, chosen.platform, chosen.packages)
        if key not in made:
            made[key] = bucket.address(put_runner(chosen, bucket, root=plan.root))
        found[name] = made[key]
    return found


def _put_record(bucket: Bucket, name: str, content: bytes) -> str:
    key = f"steps/{hashlib.sha256(content).hexdigest()}/"
    if bucket.size(key + name) != len(content):
        bucket.put(key + name, content)
    return key
