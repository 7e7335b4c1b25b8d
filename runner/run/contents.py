"""Which files of a run's folder its manifest knows. Others were added by somebody, and are never executed or copied."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from runner.cluster import log_files
from runner.content import file_fact
from runner.errors import RunnerError, Tampered
from runner.manifest import RunManifest, StepState
from runner.pipeline.file import REGISTRATION
from runner.run import folder as run_folder
from runner.run import layout
from runner.run.orchestrate import VERDICT_FILE
from runner.run.progress import PROGRESS
from runner.run.store import LOCK, OWNED, Store, files_of

# made from records, or temporary
OF_A_RUN = (LOCK, OWNED, PROGRESS, VERDICT_FILE, "report.html")
OF_A_STEP = ("executed.html", "executed.partial", "job.log", "request.json", "opened.jsonl")
BYTECODE = "__pycache__"
# temporary files of a killed process
UNFINISHED = re.compile(
    r"(?P<folder>(.*/)?)(\.(?P<name>[^/]+)-[0-9a-f]{8}|(?P<other>[^/]+)(\.partial|\.[0-9a-f]{8}))\Z"
)
LOOKED_AT = (".ipynb_checkpoints", ".DS_Store")  # left by Jupyter and macOS when somebody looks at the folder


def key_page(key_folder: str) -> str:
    """The page of one key of a mapped step, in the step's folder; not in the key's, which is sealed."""
    return f"pages/{key_folder}.html"


def unknown_files(manifest: RunManifest, store: Store) -> Iterator[Path]:
    """Files in the run's folder that its manifest does not know, sorted; links and pipes are included.

    Of a step that has not succeeded, any file but code may be there.
    """
    folder, known = store.folder(manifest.run), _known(manifest)
    open_steps = {state.name for state in manifest.steps if not state.complete}
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
    paths = {*OF_A_RUN, *layout.records(manifest)}
    paths |= {path for artifact in layout.placed(manifest) for path, _ in files_of(artifact)}
    for state in manifest.steps:
        at = f"{run_folder.STEPS}/{state.name}"
        paths |= {f"{at}/{name}" for name in OF_A_STEP}
        paths |= {f"{at}/in/{name}" for name in (state.job.inputs if state.job else ())}  # a link to a source outside
        if state.result is not None and state.result.mapped is not None:
            paths |= {f"{at}/{key_page(key.folder)}" for key in state.result.mapped.keys}
        if state.result is not None and state.result.cluster is not None:
            mapped = state.result.mapped
            folders = [at] if mapped is None else [f"{at}/{run_folder.KEYS}/{key.folder}" for key in mapped.keys]
            paths |= {f"{folder}/{name}" for folder in folders for name in log_files(state.result.cluster.workers)}
        if state.result is not None:
            outputs = [*state.result.undeclared, *([REGISTRATION] if state.result.registration else [])]
            paths |= {f"{at}/{run_folder.OUT}/{path}" for path in outputs}
    return paths


def check_code(manifest: RunManifest, step: str, store: Store) -> None:
    """Raises Tampered where the step's notebook or a module in its folder was altered or added since the run began.

    Bytecode, which Python would execute instead of a module, is removed.
    """
    state = manifest.step(step)
    folder = run_folder.step_folder(store, manifest.run, step)
    for cache in sorted((folder / run_folder.MODULES).rglob(BYTECODE)):
        shutil.rmtree(cache) if cache.is_dir() and not cache.is_symlink() else cache.unlink()
    for path in _files(folder / run_folder.MODULES):
        if path.relative_to(folder).as_posix() not in state.snapshot:
            raise Tampered(f"{path} was not there when the run began. It is not executed; remove it.")
    for name, sha256 in state.snapshot.items():
        _check_hash(folder / name, sha256, folder / name)


def copy_code(state: StepState, source: Path, target: Path) -> None:
    """Copy the step's notebook and modules, and nothing else. Raises Tampered where one was altered."""
    for name, sha256 in state.snapshot.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # the check that follows reports it
            shutil.copyfile(source / name, target / name)
        _check_hash(target / name, sha256, source / name)


def _check_hash(path: Path, sha256: str, name: Path) -> None:
    """Raises Tampered where the file does not have this hash; `name` is its path in the message."""
    try:
        now = file_fact(path).sha256
    except (OSError, RunnerError) as error:
        raise Tampered(f"{name} cannot be read. The run's own code is needed: put it back from a copy.") from error
    if now != sha256:
        raise Tampered(f"{name} was altered since its run: its hash is {now[:12]}, recorded {sha256[:12]}.")


def _unfinished(name: str) -> str:
    """The final path of a temporary file; "" where it is not one."""
    match = UNFINISHED.match(name)
    return "" if match is None else match["folder"] + (match["name"] or match["other"])


def _files(folder: Path) -> Iterator[Path]:
    """Everything below the folder that is not a folder, sorted; links are not followed."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path
