"""[sagemaker] with a step's own keys over it and the defaults under it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runner.errors import PipelineError, UsageError
from runner.records import LOCK, Pipeline, SageMaker, Vpc

# of a processing job (botocore: ProcessingMaxRuntimeInSeconds); a training job may take 28 days
LONGEST_S = 9 * 24 * 3600
LONGEST_WARM_S = 3600  # by the guide to warm pools
NEEDED = ("bucket", "role", "image")
OWN = "own"  # an image, or a serving image, that is made from the lock: `runner.aws.own_image`


@dataclass(frozen=True)
class Settings:
    """What a job is made with. Defaults are those of SageMaker Distribution 4.4 on one ml.m5.xlarge."""

    bucket: str
    prefix: str  # ends in `/`
    role: str
    image: str  # an address, or OWN
    region: str | None = None
    python: str = "3.12"
    platform: str = "manylinux_2_28_x86_64"
    lock: str = LOCK
    packages: str = "lock"
    allow_other_versions: bool = False
    include: list[str] = field(default_factory=list)
    instance: str = "ml.m5.xlarge"
    instance_count: int = 1
    volume_gb: int = 30
    together: bool = False
    job: Literal["processing", "training"] = "processing"
    spot: bool = False
    keep_warm_s: int = 0
    timeout_s: int = 24 * 3600
    tags: dict[str, str] = field(default_factory=dict)
    vpc: Vpc | None = None
    kms_key: str | None = None
    encrypt_traffic: bool = False
    prices: str | None = None
    poll_s: float = 5.0
    small_mb: float = 5.0
    serving_image: str | None = None  # an address, or OWN

    @property
    def trains(self) -> bool:
        """Whether the step is a training job."""
        return self.job == "training"

    @property
    def kind(self) -> str:
        """As the service's quotas call such a job."""
        return f"{'spot ' * self.spot}{self.job} job"


def settings(pipeline: Pipeline, step: str | None = None) -> Settings:
    """What applies to a step, or to the pipeline. Raises PipelineError naming the keys that are missing or wrong."""
    own = pipeline.steps[step].sagemaker if step is not None else SageMaker()
    values = {**pipeline.sagemaker.written(), **own.written()}
    if missing := [key for key in NEEDED if key not in values]:
        raise PipelineError(
            *(f"[sagemaker] {key} is not set; `runner doctor --on sagemaker` says what it is for." for key in missing)
        )
    if wrong := [key for key, value in values.items() if not _in_range(key, value)]:
        raise PipelineError(*(f"[sagemaker] {key} = {values[key]!r} is out of range." for key in wrong))
    prefix = str(values.get("prefix", pipeline.name)).strip("/")
    if values["image"] == OWN:
        values.setdefault("packages", "image")  # it has the lock's
    return Settings(**{**values, "prefix": f"{posixpath.normpath(prefix)}/"})


def lock_file(aws: Settings, root: Path) -> Path:
    """The project's lock file. Raises UsageError where there is none."""
    path = root / aws.lock
    if not path.exists():
        command = f"uv pip compile --universal --generate-hashes -o {aws.lock} pyproject.toml"
        raise UsageError(
            f"There is no {path}, which says what packages a job runs with. Write it with `{command}`, "
            "or name it in [sagemaker] lock."
        )
    return path


def one_machine(pipeline: Pipeline, *steps: str) -> bool:
    """Whether these steps, one after the other, share a job: all say so, and what makes the machine is the same."""
    return all(settings(pipeline, step).together for step in steps) and could_share(pipeline, *steps)


def could_share(pipeline: Pipeline, *steps: str) -> bool:
    """Whether they would with `together`, which is for processing jobs on one machine."""
    may_differ: dict[str, Any] = {"together": False, "timeout_s": 0, "include": [], "poll_s": 0.0, "small_mb": 0.0}
    machines = [replace(settings(pipeline, step), **may_differ) for step in steps]
    first = machines[0]
    return all(machine == first for machine in machines) and not first.trains and first.instance_count == 1


def _in_range(key: str, value: object) -> bool:
    match key, value:
        case "keep_warm_s", int():
            return 0 <= value <= LONGEST_WARM_S
        case "volume_gb", int():
            return 1 <= value <= 16384
        case "timeout_s", int():
            return 1 <= value <= LONGEST_S
        case "poll_s" | "small_mb", float() | int():
            return 0 <= value <= 3600
        case "bucket" | "role" | "image" | "prefix", str():
            return bool(value.strip("/ ")) and ".." not in value.split("/")
    return True
