"""What a run's folder holds by its manifest, and what lies there besides: that was put there by somebody else, and is
neither executed nor taken anywhere."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from runner.content import file_fact
from runner.errors import RunnerError, Tampered
from runner.manifest import RunManifest, StepState
from runner.pipeline.file import REGISTRATION
from runner.run import folder as run_folder
from runner.run import layout
from runner.run.orchestrate import VERDICT_FILE
from runner.run.store import LOCK, OWNED, Store, files_of

# made from what is recorded, or of the moment
OF_A_RUN = (LOCK, OWNED, VERDICT_FILE, "report.html")
OF_A_STEP = ("executed.html", "executed.partial", "job.log", "request.json", "opened.jsonl")
BYTECODE = "__pycache__"
# of a write that was killed; what Jupyter and a Mac leave where somebody looks
UNFINISHED = re.compile(
    r"(?P<folder>(.*/)?)(\.(?P<name>[^/]+)-[0-9a-f]{8}|(?P<other>[^/]+)(\.partial|\.[0-9a-f]{8}))\Z"
)
LOOKED_AT = (".ipynb_checkpoints", ".DS_Store")
SEALED = ("succeeded", "cached")


def unknown_files(manifest: RunManifest, store: Store) -> Iterator[Path]:
    """Files in the run's folder that its manifest does not know, sorted; links and pipes among them.

    Of a step that has not succeeded, what it may have left in the middle is not known, but for its code.
    """
    folder, known = store.folder(manifest.run), _known(manifest)
    open_steps = {state.name for state in manifest.steps if state.status not in SEALED}
    for path in _files(folder):
        if not _is_known(path.relative_to(folder), known, open_steps):
            yield path


def _is_known(relative: Path, known: set[str], open_steps: set[str]) -> bool:
    name, parts = relative.as_posix(), relative.parts
    step, inner = (parts[1], parts[2]) if parts[0] == run_folder.STEPS and len(parts) > 2 else ("", "")
    if name in known:
        return True
    if inner == run_folder.MODULES:
        return step in open_steps and BYTECODE in parts  # `check_code` removes it before anything is executed
    if step in open_steps or any(part in LOOKED_AT for part in parts):
        return True
    return inner != run_folder.OUT and _unfinished(name) in known


def _known(manifest: RunManifest) -> set[str]:
    """The paths that files can have in the run's folder."""
    found = {*OF_A_RUN, *layout.records(manifest)}
    found |= {path for artifact in layout.placed(manifest) for path, _ in files_of(artifact)}
    for state in manifest.steps:
        at = f"{run_folder.STEPS}/{state.name}"
        found |= {f"{at}/{name}" for name in OF_A_STEP}
        found |= {f"{at}/in/{name}" for name in (state.job.inputs if state.job else ())}  # a link to a source outside
        if state.result is not None:
            left = [*state.result.undeclared, *([REGISTRATION] if state.result.registration else [])]
            found |= {f"{at}/{run_folder.OUT}/{path}" for path in left}
    return found


def check_code(manifest: RunManifest, step: str, store: Store) -> None:
    """Raises Tampered where the step's notebook or a module in its folder is not as the run began, or was added.

    Bytecode, which would be executed in a module's place, is removed.
    """
    state = next(state for state in manifest.steps if state.name == step)
    folder = run_folder.step_folder(store, manifest.run, step)
    for cache in sorted((folder / run_folder.MODULES).rglob(BYTECODE)):
        shutil.rmtree(cache) if cache.is_dir() and not cache.is_symlink() else cache.unlink()
    for path in _files(folder / run_folder.MODULES):
        if path.relative_to(folder).as_posix() not in state.snapshot:
            raise Tampered(f"{path} was not there when the run began. It is not executed; remove it.")
    for name, sha256 in state.snapshot.items():
        _same(folder / name, sha256, folder / name)


def copy_code(state: StepState, source: Path, target: Path) -> None:
    """Copy the step's notebook and modules, and nothing else. Raises Tampered where one was altered."""
    for name, sha256 in state.snapshot.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # said by what follows
            shutil.copyfile(source / name, target / name)
        _same(target / name, sha256, source / name)


def _same(path: Path, sha256: str, named: Path) -> None:
    """Raises Tampered where the file is not the one of this hash."""
    try:
        found = file_fact(path).sha256
    except (OSError, RunnerError) as error:
        raise Tampered(f"{named} cannot be read. The run's own code is needed: put it back from a copy.") from error
    if found != sha256:
        raise Tampered(f"{named} was altered since its run: its hash is {found[:12]}, recorded {sha256[:12]}.")


def _unfinished(name: str) -> str:
    """What the file was to become; "" where it is not an unfinished one."""
    found = UNFINISHED.match(name)
    return "" if found is None else found["folder"] + (found["name"] or found["other"])


def _files(folder: Path) -> Iterator[Path]:
    """Everything below the folder that is not a folder, sorted; links are not followed."""
    if not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)
