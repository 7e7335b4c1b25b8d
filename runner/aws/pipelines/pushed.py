"""The objects of a SageMaker Pipeline in the bucket: those that a push puts there, and those of its jobs.

    <bucket>/<prefix>steps/<sha256>/        the notebook and its modules, with task.json   → a step's input/step
                                            pipeline.json, what was pushed                 → input/pushed of the first
                                            rules.json                                     → of a gate with its own job
    <bucket>/<prefix>inputs/<sha256>/…      local sources, by content
    <bucket>/<prefix>runs/<execution>/
        pin/pins.json                       the execution's parameters and all it depends on outside; put once
        <step>/                             job.json, executed.ipynb, result.json, out/…, version.json
        <job>/verdict.json                  where the gate was judged; version.json too, where no step registers
        <job>/left.json                     for the Pipeline itself: addresses of the steps' folders, the pins, the
                                            gate's outcome with its reasons. A job has the name of its first step
    <bucket>/<prefix>runs/inputs/<sha256>/  sources on the web, by content
    <bucket>/<prefix>runs/cache/<step>/     by all that a step's result depends on: the address of its folder

A step's bundle has only the step's own files, so that a push does not invalidate the caches of other steps.
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
from runner.manifest import Champion, Environment, GitState
from runner.notebook.strip_outputs import cleaned
from runner.paths import FileName
from runner.pipeline.file import APPROVED, AT_TARGET, is_address, is_path
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import (
    FORMAT,
    InputFact,
    InputSpec,
    ModelSpec,
    Pipeline,
    Record,
    Rule,
    StepJob,
    StepSpec,
    encode,
)
from runner.run import provenance
from runner.run.cache import Cache
from runner.run.store import Store, facts_of
from runner.run.target_inputs import window_of

TASK, PUSHED, RULES, PINS, LEFT = "task.json", "pipeline.json", "rules.json", "pins.json", "left.json"
GATE, CONDITION, FAIL = "gate", "gate-passed", "gate-failed"  # the Pipeline's own steps
PIN = "pin"  # the folder of the pins
STEPS = "steps"  # argument of a job: it executes steps, or the gate
ABSENT, ABSENT_KEY = "absent", "inputs/absent/"


class StepTask(Record, frozen=True, kw_only=True):
    """task.json: one step's work in any execution. `given` are parameters with values from the environment."""

    format: int = FORMAT
    job: StepJob  # without run and inputs
    inputs: dict[str, InputSpec]
    given: list[str]
    retries: int
    prefix: str  # the project's, in the bucket


class GateRules(Record, frozen=True, kw_only=True):
    format: int = FORMAT
    rules: list[Rule]
    model: ModelSpec | None = None  # what is registered after a pass; None where a step does, or nothing is


class PushedStep(Record, frozen=True, kw_only=True):
    name: FileName
    key: str  # of its bundle
    gated: bool  # runs only after a passing gate
    job: str = ""  # the step of the Pipeline that executes it; "" for its own name


class Pushed(Record, frozen=True, kw_only=True):
    """pipeline.json: the pipeline and its origin, for the manifest of a run."""

    format: int = FORMAT
    pipeline: Pipeline
    file: FileName
    toml: str
    profile: str | None
    judges: bool
    steps: list[PushedStep]  # in an order that respects every need
    judge: str = ""  # the step after which its job judges the gate; "" for a job of the gate's own
    skipped: dict[FileName, str] = {}  # step -> reason
    parameters: list[PipelineParameter]
    sources: list[str]  # "step.input" of those that are pinned when an execution starts
    git: GitState | None
    runner_version: str
    registers_itself: bool = False  # the job that judges the gate registers the model
    serving_image: str | None = None  # of versions that an execution registers
    watched: Pipeline | None = None  # the one that has the targets, where a step looks at one
    windows: dict[FileName, tuple[str, str]] = {}  # `since` and `until` of a step that does, unless they are parameters


class Pin(Record, frozen=True, kw_only=True):
    """One input from outside the execution: its fact, the address of its bytes, and their digest."""

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
    """The address of a step's result from an earlier execution."""

    format: int = FORMAT
    at: str  # the address of its folder, without a last slash
    execution: str
    ended: str


class JobReport(Record, frozen=True, kw_only=True):
    """left.json of a job. Keys of `at` and `pins` are made for JsonGet."""

    format: int = FORMAT
    at: dict[str, str] = {}  # step -> the address of the folder that has its result, without a last slash
    before: dict[FileName, str] = {}  # step of another job that this one takes results of -> as `at`
    taken: dict[FileName, str] = {}  # step -> the execution that it was taken from
    pins: dict[str, Pin] = {}
    outcome: str = ""
    reasons: str = ""


@dataclass(frozen=True)
class PushedAssets:
    """The addresses of what a push has uploaded, with the other parts of the definition."""

    plan: Plan
    pushed: Pushed
    tasks: dict[str, StepTask]
    groups: list[StepGroup]
    runners: dict[str, str]  # step or gate -> prefix of the runner with that step's environment
    bundles: dict[str, str]  # step, pin or gate -> prefix of its own; the pin's is what was pushed
    runs: str  # address below which executions leave their folders, without a last slash


class DryRunBucket(Bucket):
    """A bucket without any call to S3, for the keys that `put_files` would give."""

    def put(self, key: str, data: bytes, *, once: bool = False) -> bool:
        return True

    def size(self, key: str) -> int | None:
        return 0  # it exists, so that no wheel is read; its size differs, so that everything else is made

    def keys(self, below: str = "") -> Iterator[tuple[str, int]]:
        return iter(())

    def upload(self, key: str, path: Path, *, missing_only: bool = True) -> int:
        return path.stat().st_size


def put_files(
    plan: Plan, bucket: Bucket, *, store: Store, profile: str | None, watched: Pipeline | None = None
) -> PushedAssets:
    """Upload what the Pipeline's jobs need, once each, under names made of its content.

    `watched` is the pipeline that has the targets, where that is another one.
    Raises UsageError as bundles do.
    """
    gated, judge, groups = gated_steps(plan), judging_step(plan), step_groups(plan)
    job_of = {name: group.name for group in groups for name in group.names}
    bucket.put(f"{ABSENT_KEY}absent.txt", b"There is no such input in this execution.\n")
    sources = _sources(plan, bucket)
    own_gate = [GATE] if plan.judges and not judge else []
    jobs = [group.name for group in groups]
    parameters, taken = pipeline_parameters(plan, sources, jobs=jobs, small=bool(own_gate))
    cache, defaults = Cache(store, plan.root), settings(plan.pipeline)
    windows = {step.name: window_of(step) for step in active(plan) if looks_at_target(step.spec)}
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
        steps=[PushedStep(name=name, key=key, gated=name in gated, job=job_of[name]) for name, key in keys.items()],
        judge=judge,
        skipped={step.name: step.skip for step in plan.steps if step.skip},
        registers_itself=plan.registers_itself,
        parameters=parameters,
        sources=[
            f"{step.name}.{name}" for step in active(plan) for name, spec in step.spec.inputs.items() if is_pinned(spec)
        ],
        git=provenance.git_state(plan.root, [step.notebook.path for step in plan.steps]),
        runner_version=__version__,
        serving_image=named(plan.pipeline.name, defaults, bucket.session.region, plan.root).serving_image,
        watched=(watched or plan.pipeline) if windows else None,
        windows=windows,
    )
    keys[PIN] = _put_record(bucket, PUSHED, encode(pushed))
    for name in own_gate:
        keys[name] = _put_record(bucket, RULES, encode(gate_rules(plan)))
    return PushedAssets(
        plan=plan,
        pushed=pushed,
        tasks=tasks,
        groups=groups,
        runners=_runners(plan, bucket, own_gate),
        bundles={name: bucket.address(key) for name, key in keys.items()},
        runs=bucket.address("runs"),
    )


def gate_rules(plan: Plan) -> GateRules:
    """What the job that judges has to do; a part of its cache key."""
    return GateRules(rules=plan.pipeline.gate, model=plan.pipeline.model if plan.registers_itself else None)


def put_source(path: Path, bucket: Bucket, *, below: str = "inputs/") -> str:
    """Upload a local file or folder under a key made of its content; its address."""
    content = artifact(path, name=path.name)
    key = f"{below}{content.sha256}/"
    for relative in facts_of(content):
        bucket.upload(key + (relative or path.name), path / relative if relative else path)
    return bucket.address(key if content.files is not None else key + path.name)


def pin_key(pushed: Pushed, of: str) -> str:
    """The key of a pinned input in pins.json."""
    return f"pin_{pushed.sources.index(of) + 1}"


def step_key(pushed: Pushed, step: str) -> str:
    """The step's key in left.json."""
    return f"step_{[known.name for known in pushed.steps].index(step) + 1}"


def is_pinned(spec: InputSpec) -> bool:
    """Whether the input comes from outside the execution."""
    source = spec.from_
    return not source or is_path(source) or is_address(source) or source.startswith((APPROVED, *AT_TARGET))


def looks_at_target(spec: StepSpec) -> bool:
    return any(source.from_.startswith(AT_TARGET) for source in spec.inputs.values())


def _sources(plan: Plan, bucket: Bucket) -> dict[str, str]:
    """The addresses of the sources that an execution may replace, by "step.input"; "" for an absent one."""
    addresses = {}
    for step in active(plan):
        for name, spec in step.spec.inputs.items():
            if is_path(spec.from_):
                path = (plan.root / Path(spec.from_).expanduser()).resolve()
                addresses[f"{step.name}.{name}"] = (
                    "" if spec.optional and not path.exists() else put_source(path, bucket)
                )
            elif is_address(spec.from_) or not spec.from_:
                addresses[f"{step.name}.{name}"] = spec.from_
    return addresses


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
        # without the path of a local file, whose address is a parameter
        inputs={
            name: msgspec.structs.replace(spec, from_="") if is_path(spec.from_) else spec
            for name, spec in step.spec.inputs.items()
        },
        given=sorted(taken),
        retries=step.spec.retries,
        prefix=prefix,
    )


def _code(step: PlannedStep, plan: Plan, task: StepTask, cache: Cache) -> bundle.Bundle:
    """The step's code, the notebook without its outputs, and its task."""
    code = bundle.code_bundle(
        cleaned(step.notebook.path.read_bytes()),
        notebook=step.spec.notebook,
        modules=step.modules,
        root=plan.root,
        include=settings(plan.pipeline, step.name).include,
        also=cache.undeclared(step.name),
    )
    return bundle.bundle({**code.files, TASK: encode(task)})


def _runners(plan: Plan, bucket: Bucket, own_gate: Collection[str]) -> dict[str, str]:
    # it needs packaging to read locks, which a plain job does not have
    from runner.aws.processing.executor import packaging, put_runner

    by_packaging: dict[tuple[str, ...], str] = {}
    addresses = {}
    for name in (*own_gate, *(step.name for step in active(plan))):
        job_settings = settings(plan.pipeline, name if name in plan.pipeline.steps else None)
        key = packaging(job_settings)
        if key not in by_packaging:
            by_packaging[key] = bucket.address(put_runner(job_settings, bucket, root=plan.root))
        addresses[name] = by_packaging[key]
    return addresses


def _put_record(bucket: Bucket, name: str, content: bytes) -> str:
    key = f"steps/{hashlib.sha256(content).hexdigest()}/"
    if bucket.size(key + name) != len(content):
        bucket.put(key + name, content)
    return key
