"""What is known of a target, as inputs of a run: what it captured, what serves there, and how that was made.

captured:TARGET    requests.parquet, records.parquet and capture.json, of the window from the step's `since` to `until`
deployed:TARGET    the model folder of the version that serves there, by the history
reference:TARGET   the Parquet files of that version's run that have the model's columns; absent where the run is gone
promised:TARGET    a JSON file: the version and the metrics it was approved by

Each is pinned as bytes in the store, so that a run that looked at them can be repeated once all has changed.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import msgspec

from runner.content import artifact, file_fact, folder_artifact
from runner.errors import Refused, RunnerError, UsageError
from runner.model.captured import time_text
from runner.model.served import Deployment, recorded
from runner.model.signature import Signature
from runner.model.versions import ModelVersion, Registry
from runner.pipeline.file import DEPLOYED, PROMISED, REFERENCE
from runner.pipeline.plan import PlannedStep
from runner.records import Artifact, FileFact, InputFact, InputSpec, decode, encode, utc_text
from runner.run import sources
from runner.run.ports import WatchedTarget
from runner.run.store import Store, facts_of

SIGNATURE, CAPTURE = "signature.json", "capture.json"
ENDS = ("since", "until")  # of a window, as its step's parameters
AGO = re.compile(r"(\d+)\s*([mhdw])\Z")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Watching(Protocol):
    """What is asked about targets; a run's `World` is one."""

    @property
    def store(self) -> Store: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def target(self) -> Callable[[str], WatchedTarget]:
        """Raises UsageError where there is no such target."""

    def outputs_of(self, version: ModelVersion) -> Iterable[tuple[str, Artifact]]:
        """What the steps of the version's run have made, by name, with bytes that the store gives; none where the run
        is gone."""


def of_target(spec: InputSpec, step: str, window: tuple[str, str], world: Watching) -> InputFact:
    """The input of the step, pinned; `window` is its `since` and `until` as they are written.

    Raises Refused where nothing serves at the target, unless the input is optional.
    """
    target = spec.from_.partition(":")[2]
    kind = spec.from_.removesuffix(target)
    watched = world.target(target)  # says where there is no such target
    try:
        deployed, version = serving(world.registry, target)
    except Refused:
        if spec.optional:
            return sources.absent(spec.from_)
        raise
    if kind == DEPLOYED:
        return pinned_version(spec.from_, version, world.store)
    if kind == PROMISED:
        return _promised(spec.from_, deployed, version, world.store)
    if kind == REFERENCE:
        return _reference(spec.from_, version, world)
    since, until = (window_end(written, step, end) for written, end in zip(window, ENDS, strict=True))
    return _captured(spec.from_, watched, version, (since, until), world.store)


def serving(registry: Registry, target: str) -> tuple[Deployment, ModelVersion]:
    """What the history says serves at the target. Raises Refused where nothing does."""
    last = recorded(registry, target)
    if last is None or last.kind == "removed":
        raise Refused(
            f"Nothing is served at {target}, so there is nothing to watch: runner deploy NAME/1 --to {target}"
        )
    return last, registry.get(last.name, last.version)


def window_end(written: str, step: str, name: str, *, now: datetime | None = None) -> str:
    """A time in UTC as records have it, of "7d", "12h" or "30m" ago, or of a time; "" is no bound.

    Raises UsageError for anything else.
    """
    text = written.strip()
    if not text:
        return ""
    if ago := AGO.match(text):
        return utc_text((now or datetime.now(UTC)) - timedelta(**{UNITS[ago[2]]: int(ago[1])}))
    try:
        return time_text(text)
    except ValueError:
        raise UsageError(
            f"-p {step}.{name}={written!r}: write how long ago, 7d, 12h or 30m, or a time, 2026-11-29T12:00Z."
        ) from None


def pinned_version(source: str, version: ModelVersion | None, store: Store) -> InputFact:
    """The version's folder. Raises Refused where its bytes are not those that were registered."""
    if version is None:
        return sources.absent(source)
    for path, fact in facts_of(version.artifact).items():
        if version.location and not store.has(fact):
            store.note_address(fact, version.location + path)
        if file_fact(store.object(fact)) != fact:
            raise Refused(
                f"The approved {version.label} was altered: object {fact.sha256[:12]} has other bytes. "
                f"Restore it, or revoke it with `runner reject {version.label} --reason …`."
            )
    return InputFact(source=source, artifact=version.artifact, version=version.label)


def window_of(step: PlannedStep) -> tuple[str, str]:
    """The step's `since` and `until`, as they are written."""
    since, until = (_parameter(step, end) for end in ENDS)
    return since, until


def _parameter(step: PlannedStep, name: str) -> str:
    """The step's value, or the default of its cell; "" where the notebook does not declare it."""
    declared = step.notebook.parameters.get(name)
    value = step.parameters.get(name, declared.default if declared is not None else "")
    return str(value or "")


def _signature(version: ModelVersion, store: Store) -> Signature:
    pinned_version("", version, store)  # its bytes are here, and are the registered ones
    fact = facts_of(version.artifact)[SIGNATURE]
    return decode(Signature, store.object(fact).read_bytes(), where=f"{version.label}: {SIGNATURE}")


def _captured(
    source: str, watched: WatchedTarget, version: ModelVersion, window: tuple[str, str], store: Store
) -> InputFact:
    from runner.model.captured_tables import captured_columns, to_parquet  # pyarrow

    signature, (since, until) = _signature(version, store), window
    columns = captured_columns(signature, watched.capture)
    with _scratch(store) as folder:
        requests, _ = to_parquet(watched.captured(since, until), folder, columns, labels=signature.labels)
        if not requests:
            words = f"since {since or 'the beginning'}{f' and before {until}' if until else ''}"
            raise Refused(
                f"{source.partition(':')[2]} captured no request {words}. Write `capture = {{ percent = 100 }}` at the "
                "target and deploy again, or look at a longer window: -p since=30d"
            )
        (folder / CAPTURE).write_bytes(encode(watched.capture))
        content = artifact(folder, name="captured")
        _keep(folder, content, store)
    return InputFact(source=source, artifact=content, version=f"{since}/{until or utc_text()}")


def _reference(source: str, version: ModelVersion, world: Watching) -> InputFact:
    import pyarrow.parquet as pq

    store = world.store
    names = {column.name for column in _signature(version, store).columns}
    files: dict[str, FileFact] = {}
    for name, output in world.outputs_of(version):
        if output.files is None and output.path.endswith(".parquet"):
            fact = FileFact(sha256=output.sha256, size_bytes=output.size_bytes)
            with contextlib.suppress(RunnerError, OSError):  # removed, or not Parquet
                if names <= {*pq.read_schema(store.object(fact)).names}:
                    files.setdefault(f"{name}.parquet", fact)
    if not files:
        return sources.absent(source)
    return InputFact(source=source, artifact=folder_artifact("reference", files), version=version.label)


def _promised(source: str, deployed: Deployment, version: ModelVersion, store: Store) -> InputFact:
    facts = {
        "version": version.label,
        "run": version.run,
        "target": deployed.target,
        "since": deployed.at,
        "metrics": msgspec.to_builtins(version.metrics),
    }
    with _scratch(store) as folder:
        file = folder / "promised.json"
        file.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        content = artifact(file, name=file.name)
        _keep(folder, content, store)
    return InputFact(source=source, artifact=content, version=version.label)


def _keep(folder: Path, content: Artifact, store: Store) -> None:
    for relative, fact in facts_of(content).items():
        path = relative or content.path
        store.seal(folder, Artifact(path=path, sha256=fact.sha256, size_bytes=fact.size_bytes))


@contextlib.contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """A folder on the store's disk, so that what is written there becomes an object without being copied."""
    folder = store.objects / f".target-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
