"""The lock's packages as wheels for the job's image: which apply, downloaded once, put into the bucket once.

Wheels lie by content at `wheels/files/<sha256>/<file name>`, so that a changed lock uploads its new wheels only, and
`wheels/<digest>/index.json` lists those of one lock. The index is written last: where it is, they all are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from runner.aws.bucket import Bucket
from runner.content import file_fact
from runner.errors import RemoteError, UsageError

FILES = "wheels/files/"
THREADS = 8
LEGACY = {"2_17": "manylinux2014", "2_12": "manylinux2010", "2_5": "manylinux1"}  # names that older wheels bear
LATEST_PATCH = 99  # an image's Python is a late one of its series; locks tell patches apart by the first few
_HASH = re.compile(r"--hash[= ]sha256:([0-9a-f]{64})")
_PLATFORM = re.compile(r"manylinux_2_(\d+)_(x86_64|aarch64)")
_NONE_FOUND = re.compile(r"No matching distribution found for (\S+)")


class _LockedPackage(NamedTuple):
    name: str
    version: str
    hashes: frozenset[str]


@dataclass(frozen=True)
class Wheel:
    filename: str
    sha256: str
    size_bytes: int
    path: Path

    @property
    def key(self) -> str:
        return f"{FILES}{self.sha256}/{self.filename}"


def kept_folder() -> Path:
    """The folder of downloaded wheels, for all projects of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runner" / "wheels"


def pins(lock: Path, *, python: str, platform: str) -> dict[str, str]:
    """Package -> version of what the lock has for that Python ("3.12", or a patch of it) on that platform.

    Raises UsageError for a lock that is missing, has no hashes or does not pin.
    """
    return {pin.name: pin.version for pin in _applying(lock, python, platform)}


def wheels(lock: Path, *, python: str, platform: str, cache: Path) -> list[Wheel]:
    """Exactly the wheels of `pins`, by file name; those that `cache` does not have are downloaded into it.

    Raises UsageError for a package without a wheel, RemoteError where the download failed or the hashes differ.
    """
    packages = _applying(lock, python, platform)
    folder = cache / f"cp{''.join(python.split('.')[:2])}-{platform}"
    folder.mkdir(parents=True, exist_ok=True)
    arrived = _choose(packages, folder, python, platform)
    absent = [pin for pin in packages if pin.name not in arrived]
    if absent:
        _download(absent, folder, python, platform)
        arrived |= _choose(absent, folder, python, platform)
    lost = [f"{pin.name}=={pin.version}" for pin in packages if pin.name not in arrived]
    if lost:
        raise RemoteError(f"No wheel with a hash of {lock} arrived for {', '.join(lost)}. Make the lock again.")
    return sorted(arrived.values(), key=lambda wheel: wheel.filename)


def digest(wheels: Sequence[Wheel]) -> str:
    lines = sorted(f"{wheel.filename}  {wheel.sha256}\n" for wheel in wheels)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def missing_bytes(bucket: Bucket, wheels: Sequence[Wheel]) -> int:
    """The bytes that `upload` would move."""
    return sum(wheel.size_bytes for wheel in missing(bucket, wheels))


def missing(bucket: Bucket, wheels: Sequence[Wheel]) -> list[Wheel]:
    """The wheels that `upload` would move."""
    if not wheels or bucket.size(_index(wheels)) is not None:
        return []
    present = dict(bucket.keys(FILES))
    return [wheel for wheel in wheels if present.get(wheel.key) != wheel.size_bytes]


def upload(bucket: Bucket, wheels: Sequence[Wheel]) -> int:
    """Put the wheels into the bucket; the bytes moved, 0 if they are there. Safe to call again after a failure."""
    if not any(wheel.filename.startswith("uv-") for wheel in wheels):
        raise UsageError("The lock has no uv, which makes the environment in the job. Add uv to it and lock again.")
    if bucket.size(_index(wheels)) is not None:
        return 0
    with ThreadPoolExecutor(THREADS) as pool:
        uploads = pool.map(
            lambda wheel: bucket.upload(wheel.key, wheel.path, missing_only=False), missing(bucket, wheels)
        )
        moved = sum(uploads)
    index = json.dumps(described(bucket, wheels)["keys"], indent=1).encode()
    bucket.put(_index(wheels), index)
    return moved + len(index)


def described(bucket: Bucket, wheels: Sequence[Wheel]) -> dict[str, Any]:
    """`wheels` in environment.json: where in the bucket they are, once they are uploaded. Keys are without a prefix."""
    files = {
        wheel.filename: {"key": bucket.prefix + wheel.key, "sha256": wheel.sha256, "size": wheel.size_bytes}
        for wheel in sorted(wheels, key=lambda wheel: wheel.filename)
    }
    return {"bucket": bucket.name, "region": bucket.session.region, "keys": files}


def _index(wheels: Sequence[Wheel]) -> str:
    return f"wheels/{digest(wheels)}/index.json"


def _applying(lock: Path, python: str, platform: str) -> list[_LockedPackage]:
    environment = _markers(python, platform)
    packages: dict[str, _LockedPackage] = {}
    for line in _lines(lock):
        text, hashes = _HASH.sub("", line).strip(), frozenset(_HASH.findall(line))
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(f"{lock} has a line that is not a pinned package: {text}. Lock again.") from error
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        exact = [part.version for part in requirement.specifier if part.operator == "==" and "*" not in part.version]
        if len(exact) != 1 or not hashes or requirement.url:
            raise UsageError(
                f"{lock} does not give {requirement.name} one version with its hashes. "
                "Make it with `uv pip compile --universal --generate-hashes`."
            )
        name = canonicalize_name(requirement.name)
        package = _LockedPackage(name, exact[0], hashes)
        if packages.setdefault(name, package) != package:
            raise UsageError(f"{lock} has two versions of {name} for Python {python} on {platform}. Lock again.")
    return sorted(packages.values())


def _lines(lock: Path) -> Iterator[str]:
    """Requirements with their continuations; comments and options of the installer are left out."""
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{lock}: {error.strerror}. Name the lock file in [sagemaker] lock.") from error
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line.startswith(("-e", "-r", "-c", "--editable", "--requirement", "--constraint")):
            raise UsageError(f"{lock} refers elsewhere: {line}. A lock has every package in itself; lock again.")
        if line and not line.startswith("-"):
            yield line


def _markers(python: str, platform: str) -> dict[str, str]:
    full = _full(python)
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": _machine(platform)[1],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": ".".join(full.split(".")[:2]),
        "sys_platform": "linux",
    }


def _full(python: str) -> str:
    parts = python.split(".")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        raise UsageError(f'[sagemaker] python = "{python}" is not a version such as 3.12.')
    return python if len(parts) == 3 else f"{python}.{LATEST_PATCH}"


def _machine(platform: str) -> tuple[int, str]:
    """(the newest glibc 2.n, machine) of the platform's name."""
    match = _PLATFORM.fullmatch(platform)
    if match is None:
        raise UsageError(
            f'[sagemaker] platform = "{platform}" is not one of manylinux_2_<n>_x86_64 and manylinux_2_<n>_aarch64.'
        )
    return int(match[1]), match[2]


def _platforms(platform: str) -> list[str]:
    """The platform and the older ones whose wheels run on it, newest first, each with its former name."""
    newest, machine = _machine(platform)
    names = []
    for minor in range(newest, 4, -1):
        names += [f"manylinux_2_{minor}_{machine}"]
        names += [f"{LEGACY[f'2_{minor}']}_{machine}"] if f"2_{minor}" in LEGACY else []
    return [*names, f"linux_{machine}"]


def _tags(python: str, platform: str) -> dict[Tag, int]:
    """Every tag that fits, the best first."""
    major, minor = (int(part) for part in python.split(".")[:2])
    platforms = _platforms(platform)
    fitting = [
        *cpython_tags((major, minor), platforms=platforms),
        *compatible_tags((major, minor), f"cp{major}{minor}", platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(fitting)))}


def _choose(packages: list[_LockedPackage], folder: Path, python: str, platform: str) -> dict[str, Wheel]:
    """The best wheel in the folder for each package, by its name, of those whose bytes the lock has."""
    ranks = _tags(python, platform)
    by_pin: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in folder.glob("*.whl"):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        fitting = [ranks[tag] for tag in tags if tag in ranks]
        if fitting:
            by_pin.setdefault((name, str(version)), []).append((min(fitting), path))
    best: dict[str, Wheel] = {}
    for pin in packages:
        for _, path in sorted(by_pin.get((pin.name, pin.version), [])):
            fact = file_fact(path)
            if fact.sha256 in pin.hashes:
                best[pin.name] = Wheel(path.name, fact.sha256, fact.size_bytes, path)
                break
    return best


def _download(packages: list[_LockedPackage], folder: Path, python: str, platform: str) -> None:
    """Download the packages' wheels into the folder; each appears there when it is complete."""
    with tempfile.TemporaryDirectory(prefix=".arriving-", dir=folder) as place:
        arriving = Path(place)
        lines = arriving / "lock.txt"
        hashes = {pin: " ".join(f"--hash=sha256:{value}" for value in sorted(pin.hashes)) for pin in packages}
        lines.write_text("".join(f"{pin.name}=={pin.version} {hashes[pin]}\n" for pin in packages), encoding="utf-8")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet", "--no-input"]
        options += ["--implementation=cp", "--dest", str(arriving)]
        options += [f"--platform={name}" for name in _platforms(platform)]
        command = [*_pip(), "download", *options, f"--python-version={_full(python)}", "-r", str(lines)]
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
        if process.returncode != 0:
            raise _failed(process.stderr, python, platform)
        for wheel in arriving.glob("*.whl"):
            wheel.replace(folder / wheel.name)


def _pip() -> list[str]:
    """pip, as uv cannot download wheels (astral-sh/uv#1681); where the environment has none, uv runs one."""
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    return [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--python", sys.executable, "--from", "pip", "pip"]


def _failed(output: str, python: str, platform: str) -> UsageError | RemoteError:
    package = _NONE_FOUND.search(output)
    if package is not None:
        return UsageError(
            f"{package[1]} has no wheel for Python {python} on {platform}. Lock a version that has one, or make the "
            'image from infra/Dockerfile and write [sagemaker] packages = "image".'
        )
    last = " ".join(output.split())[-600:]
    return RemoteError(f"The lock's wheels could not be downloaded: {last or 'no reason was given'}. Run again.")
