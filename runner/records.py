"""The facts this project writes down, and pipeline.toml, as frozen records, and their versioned JSON.

Reading is strict: an unknown field, a wrong type or a newer format is an error, never ignored.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from runner.errors import NewerStore, Tampered
from runner.paths import AnyPath, FileName, OptionalPath, RelativePath, Sha256, in_words

FORMAT = 1  # of every stored file without its own `newest`; raised when an older program could not read new files

Scalar = bool | int | float | str | None
Value = Scalar | list[Any] | dict[str, Any]
Key = str | int | float  # of a mapped step
MapSource = str | list[Key]
Flag = bool | msgspec.UnsetType  # written only where it is set: what older runs hold keeps its bytes
Share = float | msgspec.UnsetType
Count = int | msgspec.UnsetType
StepStatus = Literal["running", "succeeded", "cached", "failed", "interrupted", "skipped", "pruned"]
RunStatus = Literal["running", "succeeded", "failed", "interrupted"]
Outcome = Literal["pass", "fail", "inconclusive", "error"]
Better = Literal["higher", "lower"]
NotifyEvent = Literal["pending", "failed", "drift", "decided", "deployed"]
FORKED, STANDARD = "forked", "standard"  # kernels that a notebook may be executed by
USUAL_KERNEL = FORKED if sys.platform.startswith("linux") else STANDARD
LOCK = "requirements.lock"  # the packages of a project, with their hashes


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: immutable, compared by value, strict about fields."""


class InputSpec(Record, frozen=True, kw_only=True):
    """The long form of an input. `from_` is `step.output`, a path, an address, `gate.verdict`, `approved:NAME`, or what
    is known of a target: `captured:TARGET`, `deployed:TARGET`, `reference:TARGET`, `promised:TARGET`."""

    from_: str = msgspec.field(
        name="from"
    )  # `step.output`, path, address, `gate.verdict`, `approved:NAME`, of a target
    as_: Literal["path", "uri"] = msgspec.field(name="as", default="path")  # `uri`: the notebook gets the address
    optional: bool = False  # the notebook gets an empty text where it is not there
    keep: bool = False  # the bytes stay with the run, also of a large source


class Vpc(Record, frozen=True, kw_only=True):
    subnets: list[str]  # ids
    security_groups: list[str]  # ids


class ClusterSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """[steps.NAME] cluster: processes that the step's notebook hands work to. See `runner.cluster`."""

    engine: Literal["dask"]  # what schedules the work: `dask`
    workers: int  # processes in all, on one machine or several
    worker_memory_gb: float | None = None  # that a worker may take; a machine's memory divided by its workers


class SageMaker(Record, frozen=True, kw_only=True, omit_defaults=True):
    """[sagemaker] and [steps.NAME.sagemaker]; what a step leaves out is the pipeline's. See `runner.aws.settings`."""

    bucket: str | None = None  # everything of the project lies in it
    prefix: str | None = None  # the folder in the bucket; the pipeline's name
    region: str | None = None  # of jobs, bucket and image; `AWS_REGION`, or the profile's
    role: str | None = None  # ARN of the role that jobs run as
    image: str | None = None  # in a private ECR registry of the region; `own`: what `runner image push` builds
    python: str | None = None  # the image's; another one is refused when the job starts
    platform: str | None = None  # the newest platform tag of wheels that the image takes
    lock: str | None = None  # the packages of jobs, relative to pipeline.toml
    packages: Literal["lock", "image"] | None = None  # `image`: install nothing, and refuse what differs from the lock
    allow_other_versions: bool | None = None  # with `packages = "image"`: go on with what it has, recorded with the run
    include: list[str] | None = None  # patterns, as in .gitignore, of further files that notebooks read
    instance: str | None = None  # what a job runs on
    instance_count: int | None = None  # 1. Machines of a step's job, that its `cluster` is spread over
    volume_gb: int | None = None  # a job's disk
    together: bool | None = None  # steps one after the other that need the same machine share a job
    job: Literal["processing", "training"] | None = None  # what a step is made; by itself `processing`
    spot: bool | None = None  # a training job on instances that can be taken away, for less
    keep_warm_s: int | None = None  # that a training job's instance waits for the next one, 3600 at most
    timeout_s: int | None = None  # of a job whose step has no `timeout_s`
    tags: dict[str, str] | None = None  # on jobs, Pipeline and model package group
    vpc: Vpc | None = None  # it needs endpoints for S3, ECR, Logs, and Secrets Manager where there are secrets
    kms_key: str | None = None  # encrypts the jobs' volumes and every object that is written
    encrypt_traffic: bool | None = None  # between the machines of a job
    prices: str | None = None  # a table of your prices, relative to pipeline.toml
    poll_s: float | None = None  # seconds between two looks at a job
    small_mb: float | None = None  # outputs up to this size come back with the results
    serving_image: str | None = None  # of registered versions; SageMaker's XGBoost 3.2-0; `own`: as with `image`

    def written(self) -> dict[str, Any]:
        """The keys that are set, with their values."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


class StepSpec(Record, frozen=True, kw_only=True):
    notebook: AnyPath  # relative to pipeline.toml
    inputs: dict[FileName, InputSpec] = {}  # a parameter = where it comes from, or the long form
    outputs: dict[str, RelativePath] = {}  # a parameter = a file below the step, or with a last `/` a folder
    parameters: dict[str, Value] = {}  # values for this notebook, over those of `[parameters]`
    after: list[str] = []  # steps that run before, although nothing is taken from them
    timeout_s: float | None = None  # of the whole notebook
    cell_timeout_s: float | None = None  # of each cell
    retries: int = 0  # further attempts when it has failed
    map: dict[str, MapSource] = {}  # a parameter = the list of its keys, or the output that has it
    share: float = 1.0  # of the map's keys, how many must succeed
    cluster: ClusterSpec | None = None  # processes that share the step's work: `{ engine = "dask", workers = 4 }`
    sagemaker: SageMaker = SageMaker()  # what differs for this step


class Rule(Record, frozen=True, kw_only=True):
    """One rule of the gate: exactly one of `min` and `max`; a value equal to it passes.

    `confident`: the interval's worse end must satisfy the rule. `when`: judged exactly when this `step.input` is there.
    """

    metric: str  # `step.name`
    min: float | None = None  # the value must be at least this
    max: float | None = None  # the value must be at most this
    confident: bool = False  # the interval's worse end must satisfy the rule
    when: str | None = None  # a `step.input`: judged exactly when it is there
    each: Flag = msgspec.UNSET  # of a mapped step: every key must satisfy the rule
    share: Share = msgspec.UNSET  # of a mapped step's keys, how many must satisfy the rule

    @property
    def by_key(self) -> float | None:
        """The share of a mapped step's keys that must satisfy the rule; None where it judges one value."""
        if self.each is True:
            return 1.0
        return None if isinstance(self.share, msgspec.UnsetType) else self.share

    def __post_init__(self) -> None:
        thresholds = [threshold for threshold in (self.min, self.max) if threshold is not None]
        if len(thresholds) != 1 or not abs(thresholds[0]) < float("inf"):
            raise ValueError(f"{self.metric} needs exactly one of min and max, and a finite number there")


class StoreSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """[store]: `runs` is the s3:// address that several people and CI share runs through."""

    runs: str | None = None  # an s3:// address


class ApprovalSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """[approval]: who may decide (any where empty), and whether whoever started the run may not."""

    by: list[str] = []  # account names, or ARNs where SageMaker keeps the registry; anybody where it is empty
    not_starter: bool = False  # whoever started the run, or took it in, may not approve


class NotifySpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """[notify]: who is told what has happened. The addresses stand in the environment alone."""

    to: str | None = None  # `env:NAME`: the variable that has an address of apprise, or several
    on: list[NotifyEvent] | None = None  # `pending`, `failed`, `drift`, `decided`, `deployed`; all of them
    pages: str | None = None  # where `runner ui` or `runner site` is reached, for links


class Capture(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a target keeps of its requests and answers, for monitoring."""

    percent: int = 100  # of the requests; a request's id decides
    to: str | None = None  # a folder, `runs/captured/TARGET`; of an endpoint s3://…, `captured/TARGET/` in the bucket
    days: int | None = None  # 30. Older files are removed. Only of a process here: S3 has rules of its own
    max_mb: int | None = None  # 1000. All files together; the oldest are removed. Only of a process here
    hash: list[str] = []  # columns of which a keyed hash is kept in place of the value. Only of a process here
    leave_out: list[str] = []  # columns that are not kept. Only of a process here
    keep: list[str] = []  # columns that are kept though the model has them not, such as the key. Only of a process here


class Scaling(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Machines of an endpoint, by the requests a minute that each is to get."""

    min: int = 1  # machines
    max: int  # machines
    requests_per_minute: float = 1000.0  # that each machine is to get


class Serverless(Record, frozen=True, kw_only=True, omit_defaults=True):
    memory_mb: int = 2048  # of the endpoint
    concurrency: int = 5  # requests at a time


class AnyTarget(Record, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What both kinds of targets take."""

    requires: str | None = None  # the target at which the version must have served before, at any time
    second_approval: bool = False  # by somebody else: `runner approve NAME/VERSION --to TARGET`
    unknown: Literal["error", "missing"] = "error"  # a category the model has never seen: refused, or a missing value
    capture: Capture | None = None  # requests and answers are kept. They have customers' data in them

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class LocalTargetSpec(AnyTarget, frozen=True, kw_only=True, omit_defaults=True, tag="local"):
    """[targets.NAME] of a server on this machine."""

    host: str | None = None  # `127.0.0.1`. Where it is not loopback, `RUNNER_TOKEN` must be set when deploying
    port: int | None = None  # 8080. An address belongs to one target
    workers: int | None = None  # a process per core
    max_body_mb: float | None = None  # 6. Of one request
    timeout_s: float | None = None  # 30. For the headers to arrive, and for the body
    max_connections: int | None = None  # 512. Open at a time, in each worker


class SageMakerTargetSpec(AnyTarget, frozen=True, kw_only=True, omit_defaults=True, tag="sagemaker"):
    """[targets.NAME] of an endpoint; tags, vpc and kms_key are [sagemaker]'s where they are left out."""

    endpoint: str | None = None  # its name. `PROJECT-TARGET`
    role: str | None = None  # that it runs as. `[sagemaker] role`
    instance: str | None = None  # `ml.m5.large`
    instance_count: int | None = None  # 1
    serverless: Serverless | None = None  # instead of instances and scaling, without `capture` and `vpc`
    scaling: Scaling | None = None  # machines by the requests that come
    serving_image: str | None = None  # `own`, or an address. The one that the version was registered with
    tags: dict[str, str] | None = None  # those of `[sagemaker]`
    vpc: Vpc | None = None  # that of `[sagemaker]`
    kms_key: str | None = None  # that of `[sagemaker]`. Encrypts the instances' disks and what is captured


Target = LocalTargetSpec | SageMakerTargetSpec  # [targets.NAME]: where a version is served; `kind` says which


class ModelSpec(Record, frozen=True, kw_only=True):
    name: str  # letters, digits and `-`
    from_: str = msgspec.field(name="from")  # `step.output`: a folder written by `runner.model.save`
    registry: Literal["local", "sagemaker"] = "local"  # where versions are kept
    register: bool = True  # false, in a profile perhaps: a run registers nothing, `runner register RUN` does it later


class MonitorSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """[monitor] of a pipeline that watches what another one deployed. Both files lie in one folder."""

    of: FileName = "pipeline.toml"  # the file that has the targets and the model's registry
    retrain: FileName | None = None  # the file that is run where the gate says no; it registers by its own gate alone


class Pipeline(Record, frozen=True, kw_only=True):
    """pipeline.toml with one profile applied; paths are as written, relative to the file."""

    name: str  # of the project: letters, digits and `-`, at most 63
    parameters: dict[str, Value] = {}  # each reaches every notebook that declares the name
    steps: dict[FileName, StepSpec] = {}  # the notebooks
    gate: list[Rule] = []  # the rules, `[[gate]]`; all must pass
    model: ModelSpec | None = None  # what a run that passes registers
    skip: list[str] = []  # steps that are left out; only in a profile
    sagemaker: SageMaker = SageMaker()  # jobs, for `--on sagemaker`
    store: StoreSpec = StoreSpec()  # where runs are shared
    approval: ApprovalSpec = ApprovalSpec()  # who may approve
    notify: NotifySpec = NotifySpec()  # who is told
    targets: dict[str, Target] = {}  # where versions are served
    monitor: MonitorSpec | None = None  # whose targets this pipeline watches


class Metric(Record, frozen=True, kw_only=True):
    """A recorded number, with the interval and the direction where they were recorded too."""

    value: float
    low: float | None = None
    high: float | None = None
    better: Better | None = None


class RuleResult(Record, frozen=True, kw_only=True):
    """One rule, judged. `margin` is how far inside (+) or outside (-) the threshold the judged end lies."""

    rule: Rule
    outcome: Outcome | Literal["not judged"]
    sentence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None


class Verdict(Record, frozen=True, kw_only=True):
    """What the gate said; holds no run id and no time, so that equal evidence gives equal bytes."""

    format: int = FORMAT
    outcome: Outcome
    rules: list[RuleResult]
    metrics: dict[str, Metric]


class FileFact(Record, frozen=True, kw_only=True):
    sha256: Sha256
    size_bytes: int


class Artifact(Record, frozen=True, kw_only=True):
    """A file or folder by content. A folder's hash is over its sorted `sha256  size  path` lines."""

    path: RelativePath
    sha256: Sha256
    size_bytes: int
    files: dict[RelativePath, FileFact] | None = None  # relative path -> fact; None for a single file


class InputFact(Record, frozen=True, kw_only=True):
    """What a step was given. `source` is the address as resolved; `version` what a remote store calls it."""

    source: AnyPath
    present: bool = True
    as_: Literal["path", "uri"] = msgspec.field(name="as", default="path")
    artifact: Artifact | None = None  # None when absent
    version: str | None = None
    stamp: str = ""  # size, times and inodes as they were when it was hashed; "" where that was elsewhere
    value: OptionalPath = ""  # what the notebook's parameter is set to: relative to the step folder, an address, or ""
    listed: bool = False  # `artifact` is of a listing, as the bytes never came here

    @property
    def is_file(self) -> bool:
        """Whether the step reads a file or folder there: it is present, and not given as an address."""
        return self.present and self.as_ == "path"

    @property
    def kept(self) -> Artifact | None:
        """The artifact if its bytes stay with the run; None for a source outside, an address or a listing."""
        return self.artifact if self.is_file and not (self.stamp or self.listed) else None


class StepJob(Record, frozen=True, kw_only=True):
    """job.json: the whole contract of one step, readable by the remote side too. Paths are relative to its folder."""

    format: int = FORMAT
    run: OptionalPath
    step: FileName
    notebook: AnyPath  # where the source came from, for people; the file run is notebook.ipynb beside this one
    parameters: dict[str, Value] = {}
    secrets: dict[str, str] = {}  # parameter -> the environment variable that has its value
    inputs: dict[FileName, InputFact] = {}
    outputs: dict[str, RelativePath] = {}
    timeout_s: float | None = None
    cell_timeout_s: float | None = None
    kernel: str = STANDARD
    threads: int = 0  # OMP_NUM_THREADS of the kernel; 0 leaves it alone
    cluster: ClusterSpec | None = None
    beside: Count = msgspec.UNSET  # steps and keys that may run at once here: their clusters share the memory
    attempt: int = 1


class Opened(Record, frozen=True, kw_only=True):
    """A file of the project that a cell read without its being an input; `cell` is the n of [n]."""

    sha256: str
    cell: int | None = None


class CellFact(Record, frozen=True, kw_only=True):
    sha256: str
    first_line: str


class StepKey(Record, frozen=True, kw_only=True):
    """All that a step's result may depend on; equal keys (and equal `opened` files) make a cached result good."""

    code: list[CellFact]  # in order, so that the n-th is [n]; without the parameters cell
    parameters: dict[str, Value]  # every declared one, as resolved
    inputs: dict[str, OptionalPath]  # name -> sha256, "" where absent
    modules: dict[str, str]
    outputs: dict[str, str]
    python: str
    packages: dict[str, str]  # those imported, and what they require


class StepError(Record, frozen=True, kw_only=True):
    """Why a step did not succeed, for a person and for `runner debug`."""

    kind: Literal["exception", "stopped early", "kernel died", "timeout", "out of memory", "output missing",
                  "input changed", "interrupted", "refused", "remote", "pruned", "cluster lost"]  # fmt: skip
    ename: str
    evalue: str
    cell: int | None = None  # as after Run All: the number in [9]
    first_line: str = ""
    traceback: list[str] = []


class RemoteJob(Record, frozen=True, kw_only=True):
    """The job elsewhere that executed a step: where its outputs lie, on what it ran, and what that cost."""

    name: str
    at: str  # the address below which the result's paths lie; ends in `/`
    image: str
    instance: str
    machines: int = 1
    python: str
    environment: Literal["image", "lock"]  # the image's own packages, or those installed from the lock
    packages: dict[str, str]  # as found in the job
    billed_s: float | None = None  # of each machine
    price_usd: float | None = None  # billed seconds by the price table, None where it has no such instance


class ClusterFacts(Record, frozen=True, kw_only=True):
    """The cluster that a step worked on."""

    engine: str
    workers: int
    machines: int
    versions: dict[str, str]  # of the engine's packages
    restarts: int = 0  # workers that were started again after they had ended
    peak_memory_bytes: int = 0  # the most at one moment: scheduler, all workers and the notebook, resident


class StepResult(Record, frozen=True, kw_only=True):
    """result.json, written last: what one execution of a step folder came to."""

    format: int = FORMAT
    status: StepStatus
    started: str
    ended: str
    seconds: float
    cells: int  # code cells in the notebook
    cells_run: int
    metrics: dict[str, Metric] = {}
    problems: dict[str, str] = {}  # scrap name -> why it is not a metric
    inputs: dict[FileName, InputFact] = {}
    outputs: dict[str, Artifact] = {}
    undeclared: list[RelativePath] = []  # what else the notebook left in out/; not sealed, and taken nowhere
    executed: Artifact | None = None
    error: StepError | None = None
    kernel: str = STANDARD
    threads: int = 0
    registration: Registration | None = None
    mapped: Mapped | None = None  # of a step that executed its notebook once for each key
    opened: dict[RelativePath, Opened] = {}  # path relative to the project
    redacted: list[str] = []  # "cell [4]: AWS access key id": what was taken out of the executed notebook
    remote: RemoteJob | None = None  # None where it ran on this machine
    cluster: ClusterFacts | None = None

    def artifacts(self) -> list[Artifact]:
        """Everything the step leaves: its outputs, and the executed notebook or those of its keys."""
        own = [self.executed, self.mapped.files if self.mapped is not None else None]
        return [*self.outputs.values(), *(artifact for artifact in own if artifact is not None)]


class KeyResult(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A line about one key of a mapped step; `folder` below the step's `keys/` has the rest."""

    key: Key
    folder: FileName
    status: StepStatus
    seconds: float = 0.0
    metrics: dict[str, Metric] = {}
    problems: dict[str, str] = {}  # scrap name -> why it is not a metric
    error: str = ""  # "ValueError: no rows"
    cell: int | None = None  # that raised it
    from_run: FileName | None = None  # the run whose result was reused

    @property
    def complete(self) -> bool:
        return self.status in ("succeeded", "cached")


class Mapped(Record, frozen=True, kw_only=True):
    """The keys of a mapped step in their order, and `files`, what lies in its folder `keys/`."""

    parameter: str
    keys: list[KeyResult]
    files: Artifact

    @property
    def failed(self) -> list[KeyResult]:
        """Those that have not succeeded."""
        return [key for key in self.keys if not key.complete]


class Registration(Record, frozen=True, kw_only=True):
    """registration.json: what a notebook asks the run's owner to register, once, after the step is sealed."""

    format: int = FORMAT
    model_sha256: str
    card: str = ""  # Markdown
    description: str = ""


R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=msgspec.Struct)
_decoder = functools.cache(msgspec.json.Decoder)
_preparing = threading.Lock()


def encode(record: Record) -> bytes:
    """Indented JSON with sorted dictionary keys and a final newline: equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=1) + b"\n"


def typed(kind: type[S], data: bytes | str) -> S:
    """As msgspec.json.decode, which crashes (0.22) where two threads are the first to decode a type."""
    with _preparing:
        decoder: msgspec.json.Decoder[S] = _decoder(kind)
    return decoder.decode(data)


def decode(kind: type[R], data: bytes, *, where: str | Path) -> R:
    """The record in `data`. Raises NewerStore where `format` is above ours, Tampered where it is no such record."""
    try:
        return checked(typed(kind, data), where=where)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            checked(typed(_Format, data), where=where, newest=getattr(kind, "newest", FORMAT))
        raise Tampered(f"{where} is not a readable {kind.__name__}: {in_words(error)}") from error


def read(kind: type[R], path: Path) -> R:
    """The record in the file at `path`; raises as `decode`, and FileNotFoundError."""
    return decode(kind, path.read_bytes(), where=path)


def checked(record: S, *, where: str | Path, newest: int | None = None) -> S:
    """The record, unless a newer version of this program wrote it."""
    ours: int = getattr(record, "newest", FORMAT) if newest is None else newest
    theirs = getattr(record, "format", FORMAT)
    if theirs > ours:
        raise NewerStore(
            f"{where} has format {theirs}; this version reads up to {ours}. Nothing was changed. "
            "Update this program: `git pull` in its checkout, then `make run`."
        )
    return record


def utc_text(moment: datetime | None = None) -> str:
    """The moment, or now, as records have it: "2026-11-23T14:58:40.123Z"."""
    return (moment or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Format(msgspec.Struct):
    format: int = FORMAT
