"""[sagemaker] with a step's own keys over it and the defaults under it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import PipelineError, UsageError
from runner.records import LOCK, Pipeline, SageMaker, Vpc

LONGEST_S = 9 * 24 * 3600  # of a processing job (botocore: ProcessingMaxRuntimeInSeconds)
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
    timeout_s: int = 24 * 3600
    tags: dict[str, str] = field(default_factory=dict)
    vpc: Vpc | None = None
    kms_key: str | None = None
    encrypt_traffic: bool = False
    prices: str | None = None
    poll_s: float = 5.0
    small_mb: float = 5.0
    serving_image: str | None = None  # an address, or OWN


def settings(pipeline: Pipeline, step: str | None = None) -> Settings:
    """What applies to a step, or to the pipeline. Raises PipelineError naming the keys that are missing or wrong."""
    own = pipeline.steps[step].sagemaker if step is not None else SageMaker()
    found = {**_set(pipeline.sagemaker), **_set(own)}
    missing = [key for key in NEEDED if key not in found]
    if missing:
        raise PipelineError(
            *(f"[sagemaker] {key} is not set; `runner doctor --on sagemaker` says what it is for." for key in missing)
        )
    wrong = [f"[sagemaker] {key} = {found[key]!r} is out of range." for key in found if not _sound(key, found[key])]
    if wrong:
        raise PipelineError(*wrong)
    prefix = str(found.get("prefix", pipeline.name)).strip("/")
    if found["image"] == OWN:
        found.setdefault("packages", "image")  # it has the lock's
    return Settings(**{**found, "prefix": f"{posixpath.normpath(prefix)}/"})


def lock_file(chosen: Settings, root: Path) -> Path:
    """The project's lock file. Raises UsageError where there is none."""
    path = root / chosen.lock
    if not path.exists():
        raise UsageError(
            f"There is no {path}, which says what packages a job runs with. Write it with "
            f"`uv pip compile --universal --generate-hashes -o {chosen.lock} pyproject.toml`, or name it in [sagemaker] lock."
        )
    return path


def one_machine(pipeline: Pipeline, *steps: str) -> bool:
    """Whether these steps, one after the other, share a job: all say so, and what makes the machine is the same."""
    return all(settings(pipeline, step).together for step in steps) and could_share(pipeline, *steps)


def could_share(pipeline: Pipeline, *steps: str) -> bool:
    """Whether they would with `together`."""
    unlike: dict[str, Any] = {"together": False, "timeout_s": 0, "include": [], "poll_s": 0.0, "small_mb": 0.0}
    made = [replace(settings(pipeline, step), **unlike) for step in steps]
    return all(one == made[0] for one in made)


def _set(spec: SageMaker) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(spec).items() if value is not None}


def _sound(key: str, value: object) -> bool:
    match key, value:
        case "instance_count", int():
            return value == 1
        case "volume_gb", int():
            return 1 <= value <= 16384
        case "timeout_s", int():
            return 1 <= value <= LONGEST_S
        case "poll_s" | "small_mb", float() | int():
            return 0 <= value <= 3600
        case "bucket" | "role" | "image" | "prefix", str():
            return bool(value.strip("/ ")) and ".." not in value.split("/")
    return True
