"""What has to hold before anything is run, as checks of one line each: this machine's part.

What has to hold in AWS is `runner.aws.doctor`'s.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.errors import PipelineError, Refused, RunnerError, UsageError
from runner.records import LOCK, StepJob, encode
from runner.run.store import Store

OLDEST = (3, 11)
STUDIO = Path("/opt/ml/metadata/resource-metadata.json")  # of a space of SageMaker Studio
STUDIO_LOG = ".runner-studio.log"  # infra/studio-lifecycle.sh
LOW_BYTES = 2_000_000_000  # free space below this fills up within a few runs
SHOWN = 5  # packages or findings in a line


@dataclass(frozen=True)
class Check:
    """One line: what was found, and where it failed the command or the line to write. `code` is its exit code."""

    name: str
    status: Literal["ok", "failed", "unknown"]
    said: str
    fix: str = ""
    code: int = 0


def ok(name: str, said: str) -> Check:
    return Check(name, "ok", said)


def failed(name: str, said: str, fix: str, *, code: int = UsageError.exit_code) -> Check:
    return Check(name, "failed", said, fix, code)


def unknown(name: str, said: str) -> Check:
    """`said` says why it cannot be told from here."""
    return Check(name, "unknown", said)


def machine(pipeline: Path, store: Store) -> Iterator[Check]:
    """The checks of this machine, each made when it is asked for. Nothing is left behind."""
    yield python()
    yield packages(pipeline.parent / LOCK)
    yield kernel()
    yield runs(store)
    yield sound(pipeline)
    yield from kernels(pipeline)
    if STUDIO.exists():
        yield studio(Path.home() / STUDIO_LOG)


def python() -> Check:
    where = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return failed("python", where, f"make the environment with Python >= {wanted}: `make PYTHON=python{wanted}`")
    return ok("python", where)


def packages(lock: Path) -> Check:
    """Whether what is installed is what the lock pins for this machine."""
    if not lock.is_file():
        return unknown("packages", f"there is no {lock.name} beside the pipeline file to compare with")
    pins = _pins(lock)
    different = []
    for name, version in sorted(pins.items()):
        found = _installed(name)
        if found != version:
            different.append(f"{name} {found or 'missing'} (lock: {version})")
    if different:
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        return failed(
            "packages",
            f"{len(different)} of {len(pins)} differ from {lock.name}: {', '.join(different[:SHOWN])}{more}",
            f"`uv pip install --require-hashes -r {lock.name}`, or lock again where the lock is what is old",
        )
    return ok("packages", f"the {len(pins)} of {lock.name} are installed as pinned")


def studio(log: Path) -> Check:
    """What the lifecycle script has left, in a space of Studio."""
    by_hand = "`make studio` in the project does the same"
    if not log.is_file():
        return unknown("studio", f"no lifecycle script has run in this space ({log}); {by_hand}")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    broken = next((line for line in reversed(lines) if ": failed;" in line), None)
    if broken is not None:
        return failed("studio", broken, by_hand)
    return ok("studio", f"the lifecycle script has made its projects ready ({log})")


def kernel() -> Check:
    """Execute a notebook of one cell, as a step is."""
    from runner.step.execute import JOB, SOURCE, execute  # papermill

    cell: dict[str, object] = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": "6 * 7",
        "outputs": [],
        "execution_count": None,
    }
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="doctor-") as scratch:
        folder = Path(scratch)
        (folder / SOURCE).write_text(json.dumps(notebook), encoding="utf-8")
        (folder / JOB).write_bytes(encode(StepJob(run="doctor", step="doctor", notebook="doctor.ipynb")))
        try:
            result = execute(folder, cwd=folder, stop=threading.Event(), on_progress=lambda _: None)
        except (RunnerError, OSError) as error:
            return failed("kernel", _line(error), "make the environment anew: `make clean run`")
    if result.status != "succeeded":
        why = f"{result.error.ename}: {result.error.evalue}" if result.error else result.status
        return failed("kernel", f"a notebook of one cell ended {why}", "make the environment anew: `make clean run`")
    return ok("kernel", f"a notebook of one cell ran in {time.monotonic() - began:.1f} s")


def runs(store: Store) -> Check:
    """Whether runs can be kept: written, linked and locked, with some space left."""
    import fcntl

    there = store.root.exists()
    try:
        store.prepare()
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=store.root) as scratch:
            first = Path(scratch, "a")
            first.write_bytes(b"")
            os.link(first, Path(scratch, "b"))
            with first.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = shutil.disk_usage(store.root).free
    except (Refused, OSError) as error:
        return failed("runs", _line(error), "move the project to a disk of your own that has links and locks")
    finally:
        if not there:
            shutil.rmtree(store.root, ignore_errors=True)
    if free < LOW_BYTES:
        return failed(
            "runs", f"{free / 1e9:.1f} GB are free in {store.root}", "`runner gc --dry-run`, then `runner gc`"
        )
    return ok("runs", f"{store.root.absolute()} takes files, links and locks; {free / 1e9:.0f} GB are free")


def sound(pipeline: Path) -> Check:
    """What `runner check` says, in a line."""
    from runner.pipeline.plan import plan

    try:
        found = plan(pipeline)
    except PipelineError as error:
        more = f" (and {len(error.findings) - 1} more)" if len(error.findings) > 1 else ""
        said = f"{' '.join(error.findings[0].split())}{more}"
        return failed("pipeline", said, "change that; `runner check` lists everything", code=error.exit_code)
    return ok("pipeline", found.summary)


def kernels(pipeline: Path) -> Iterator[Check]:
    """The kernels of notebooks in other languages than Python, where one is missing."""
    from runner.kernel.kernelspec import kernel_for
    from runner.pipeline.plan import plan

    with contextlib.suppress(PipelineError):  # `sound` has said so
        for step in plan(pipeline).steps:
            if step.notebook.language != "python":
                try:
                    kernel_for(step.notebook.language, step.notebook.kernel_name)
                except PipelineError as error:
                    said, _, fix = str(error).rstrip(".").partition(": ")
                    yield failed("kernel", f"{step.spec.notebook}: {said}", fix)


def _pins(lock: Path) -> dict[str, str]:
    """Package -> version of the lock's lines that apply to this Python here."""
    from packaging.requirements import InvalidRequirement, Requirement

    text = re.sub(r"\\\r?\n", " ", lock.read_text(encoding="utf-8"))
    found = {}
    for line in text.splitlines():
        try:
            wanted = Requirement(re.sub(r"\s(#|--hash).*", "", line).strip())
        except InvalidRequirement:  # a comment, an option of the installer, a blank line
            continue
        exact = [part.version for part in wanted.specifier if part.operator == "=="]
        if exact and (wanted.marker is None or wanted.marker.evaluate()):
            found[wanted.name] = exact[0]
    return found


def _installed(name: str) -> str:
    """The installed version; "" where there is none. A full build stands for the one without its accelerator."""
    for candidate in (name, name.removesuffix("-cpu")):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
