"""A run in one file, with all bytes it stands on: made by `pack`, taken in by `unpack` on another machine.

    pack.json            which run, and for a version its registry's rows and events
    run/…                the run's folder without what is an object
    objects/<sha256>     every input, output and executed notebook

Equal runs give equal files. What is taken in is untrusted: nothing is kept before every hash fits.
"""

from __future__ import annotations

import gzip
import io
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import msgspec

from runner.errors import Refused, Tampered
from runner.manifest import RunManifest, StepState
from runner.model.versions import Event, ModelVersion
from runner.records import FORMAT, Artifact, Record, decode, encode
from runner.run import folder as run_folder
from runner.run.ids import RUN_ID
from runner.run.inputs import copy, recorded
from runner.run.store import LOCK, MANIFEST, Store, facts_of, inside
from runner.run.verify import Verifier

PACK = "pack.json"
OBJECT = re.compile(r"objects/[0-9a-f]{64}\Z")
RATIO, FREE_BYTES = 200, 100_000_000  # a file may unpack to so many times its size, beyond the first bytes
LEFT_OUT = (LOCK, "opened.jsonl")


class Pack(Record, frozen=True, kw_only=True):
    """pack.json. `versions` and `events` are those of the packed version's name, for an audit elsewhere."""

    format: int = FORMAT
    run: str
    versions: list[ModelVersion] = []
    events: list[Event] = []


def pack(manifest: RunManifest, store: Store, target: Path, evidence: Pack) -> int:
    """Write the run to `target` and give its size in bytes. Raises Refused where an input's bytes are gone."""
    folder = store.folder(manifest.run)
    beside = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    scratch = Store(store.root / f".pack-{secrets.token_hex(4)}")
    try:
        with (
            beside.open("wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            _add(archive, PACK, encode(evidence))
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                relative = path.relative_to(folder)
                if is_record(relative):
                    _add(archive, f"run/{relative.as_posix()}", path.read_bytes())
            for sha256, path in sorted(_objects(manifest, store, scratch)):
                _add_file(archive, f"objects/{sha256}", path)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
        shutil.rmtree(scratch.root, ignore_errors=True)
    return target.stat().st_size


def unpack(file: Path, store: Store) -> Pack:
    """Take the run in `file` into the store. A run that is there already with the same manifest is left as it is.

    Raises Tampered where anything in it is not what its manifest says, Refused where a different run of that id is
    there, or the file is no pack. Nothing of it is kept then.
    """
    store.prepare()
    scratch = Store(store.root / f".import-{secrets.token_hex(4)}")
    try:
        found = _extracted(file, scratch)
        folder = scratch.folder(found.run)
        manifest = scratch.manifest_as_written(found.run)
        if manifest.run != found.run:
            raise Tampered(f"{file} says it is run {found.run}, and its manifest says {manifest.run}.")
        if _is_there(folder, store):
            return found
        for state, artifact in _placed(manifest):
            scratch.link(artifact, run_folder.step_folder(scratch, found.run, state.name) / artifact.path.rstrip("/"))
        findings = list(Verifier(scratch).run(manifest))
        if findings:
            raise Tampered(f"{file} is not sound, so nothing of it was kept: {findings[0]}")
        for state, artifact in _placed(manifest):
            store.seal(run_folder.step_folder(scratch, found.run, state.name), artifact)
        try:
            folder.rename(store.folder(found.run))
        except OSError:  # unless another process took the same run in meanwhile
            if not _is_there(folder, store):
                raise
        return found
    except (tarfile.TarError, OSError, EOFError, msgspec.MsgspecError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Refused(f"{file} is no whole pack of a run: {error}.") from error
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)


def _is_there(folder: Path, store: Store) -> bool:
    """Whether the store has the run in `folder` already. Raises Refused where that is another of the same id."""
    there = store.folder(folder.name) / MANIFEST
    if not there.exists():
        return False
    if there.read_bytes() != (folder / MANIFEST).read_bytes():
        raise Refused(f"Another run {folder.name} is in {store.root} already; this one is not taken in.")
    return True


def _placed(manifest: RunManifest) -> Iterator[tuple[StepState, Artifact]]:
    """Everything that lies in a step's folder as objects, with its path there: inputs, outputs, executed notebook."""
    for state in manifest.steps:
        for name, given in state.job.inputs.items() if state.job else ():
            fact = recorded(manifest, state.name, name)
            if given.present and given.as_ == "path" and fact.artifact is not None:
                slash = "/" if fact.artifact.files is not None else ""
                yield state, msgspec.structs.replace(fact.artifact, path=f"in/{name}{slash}")
        if state.result is not None:
            for artifact in (*state.result.outputs.values(), *filter(None, [state.result.executed])):
                yield state, artifact


def _objects(manifest: RunManifest, store: Store, scratch: Store) -> Iterator[tuple[str, Path]]:
    """(sha256, a file with those bytes), each once; inputs that only lie outside are copied and checked first."""
    seen: set[str] = set()
    for state, artifact in _placed(manifest):
        facts = {relative: fact for relative, fact in facts_of(artifact).items() if fact.sha256 not in seen}
        if not facts:
            continue
        seen |= {fact.sha256 for fact in facts.values()}
        name = PurePosixPath(artifact.path)
        root: Path | None = None
        if name.parts[0] == "in":
            root = scratch.root / state.name / name
            copy(recorded(manifest, state.name, name.name), root, f"Input {name.name} of step {state.name}", store)
        for relative, fact in facts.items():
            yield fact.sha256, store.object(fact) if root is None else root / relative if relative else root


def is_record(relative: Path) -> bool:
    """Whether a file of the run's folder is carried as it is; what is an object is carried as one."""
    name = relative.name
    if name in LEFT_OUT or name.endswith(".partial") or name.startswith("."):
        return False
    in_step = relative.parts[2:] if relative.parts[0] == run_folder.STEPS else ()
    return not in_step or (in_step[0] not in ("in", "out", "executed.ipynb"))


def _extracted(file: Path, scratch: Store) -> Pack:
    """Write the archive's files below the scratch store; only regular files, under names that stay there."""
    scratch.objects.mkdir(parents=True)
    allowed = FREE_BYTES + RATIO * file.stat().st_size
    found: Pack | None = None
    with tarfile.open(file, mode="r:gz") as archive:
        for member in archive:
            allowed -= member.size
            if not member.isreg() or allowed < 0:
                what = "is no regular file" if allowed >= 0 else "makes it unpack to far more than its size"
                raise Refused(f"{file}: {member.name!r} {what}; nothing of it was kept.")
            content = archive.extractfile(member)
            assert content is not None
            if member.name == PACK and found is None:
                found = decode(Pack, content.read(), where=f"{file}: {PACK}")
                if not RUN_ID.match(found.run):
                    raise Refused(f"{file}: {found.run!r} is no run id.")
            elif found is not None and (OBJECT.match(member.name) or member.name.startswith("run/")):
                _write(content, scratch.root / inside(member.name.replace("run", found.run, 1)))
            else:
                raise Refused(f"{file}: {member.name!r} has no place in a pack; nothing of it was kept.")
    if found is None:
        raise Refused(f"{file} is no pack of a run: it has no {PACK}.")
    return found


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    archive.addfile(_plain(name, len(content)), io.BytesIO(content))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as file:
        archive.addfile(_plain(name, path.stat().st_size), file)


def _plain(name: str, size: int) -> tarfile.TarInfo:
    """A member without owner and time, so that equal content gives an equal file."""
    made: Any = tarfile.TarInfo(name)
    made.size, made.mode = size, 0o644
    return made  # type: ignore[no-any-return]
