"""A step of a run as a notebook to debug: its own code, parameters and inputs, as copies.

runs/debug/<run>-<step>/<notebook>.ipynb   the run's own copy, with its values in it and the failing cell marked
                        modules/ in/ out/  what it imports, reads and writes, as copies
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from runner.content import artifact, atomic_write
from runner.errors import UsageError
from runner.manifest import RunManifest, StepState
from runner.notebook.source import read_notebook
from runner.records import Mapped, StepJob, Value
from runner.run import folder as run_folder
from runner.run.contents import copy_code
from runner.run.inputs import copy, recorded_input
from runner.run.mapped import of_key
from runner.run.store import Store

DEBUG = "debug"
NAMED = 5  # keys in a sentence
FAILED = "failed-cell"  # the tag of the cell that raised


def prepare(manifest: RunManifest, step: str, *, store: Store, project: Path) -> Path:
    """Make the notebook to open; replaces what an earlier call made for this step.

    Run All in a fresh kernel does what the step did: in its working folder, on its inputs (the first cell checks their
    hashes), with its parameters. `step` is `step/key` for a key of a mapped step, whose first failure it is without.
    Raises UsageError for a step that did not run, Refused where an input is gone, Tampered where the run's own code was
    altered.
    """
    step, _, key = step.partition("/")
    state = manifest.find_step(step)
    if state is None or state.job is None:
        known = ", ".join(state.name for state in manifest.steps if state.job is not None) or "none"
        raise UsageError(f"Run {manifest.run} did not run a step {step!r}; it ran: {known}.")
    source = run_folder.step_folder(store, manifest.run, step)
    if state.result is not None and state.result.mapped is not None:
        key = _key_folder(state.result.mapped, step, key)
        state, step = of_key(state, key, store), f"{step}-{key}"
    assert state.job is not None
    target = (store.root / DEBUG / f"{manifest.run}-{step}").absolute()
    shutil.rmtree(target, ignore_errors=True)
    copy_code(state, source, target)
    values, hashes = _place(manifest, state, state.job, target, store)
    cwd = (project / state.notebook).parent.absolute()
    document = json.loads((target / run_folder.SOURCE).read_bytes())
    _mark(document, target, state)
    preamble = _preamble(manifest, step, cwd if cwd.is_dir() else target, target, hashes)
    _inject(document, values, state.job.secrets, preamble)
    notebook = target / Path(state.notebook).name
    (target / run_folder.SOURCE).unlink()
    atomic_write(notebook, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
    return notebook


def _key_folder(mapped: Mapped, step: str, key: str) -> str:
    """The folder of the key that is asked for, by its text or its folder's name; without one, of the first failure."""
    executed = [line for line in mapped.keys if line.status != "skipped"]
    wanted = [line for line in executed if key in (str(line.key), line.folder)]
    wanted = wanted if key else [line for line in executed if not line.complete]
    if not wanted:
        missing = f"has no key {key!r}" if key else "has no key that failed"
        known = ", ".join(f"{step}/{line.folder}" for line in executed[:NAMED])
        raise UsageError(f"Step {step} {missing}. Name one: {known or 'none was executed'}.")
    return wanted[0].folder


def _place(
    manifest: RunManifest, state: StepState, job: StepJob, target: Path, store: Store
) -> tuple[dict[str, Value], dict[str, str]]:
    """The values of the notebook's parameters, and the hash of each copied input by its path."""
    values: dict[str, Value] = dict(job.parameters)
    hashes = {}
    for name, fact in job.inputs.items():
        if not fact.is_file:
            values[name] = fact.value
            continue
        place = target / "in" / name
        place.parent.mkdir(exist_ok=True)
        copy(recorded_input(manifest, state.name, name), place, f"Input {name} of step {state.name}", store)
        values[name] = str(place)
        hashes[str(place)] = artifact(place, name=name).sha256
    for name, path in job.outputs.items():
        place = target / "out" / path
        (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        values[name] = str(place)
    return values, hashes


def _preamble(manifest: RunManifest, step: str, cwd: Path, target: Path, hashes: dict[str, str]) -> str:
    """A cell that gives a fresh kernel the step's folder and modules, and checks the inputs."""
    modules = str(target / run_folder.MODULES)
    return f"""\
# step {step} of run {manifest.run}: its working folder, its modules, its inputs
import os, sys
from pathlib import Path
from runner.content import artifact
os.chdir({str(cwd)!r})
sys.path[:0] = [{modules!r}, {str(cwd)!r}]
for path, sha256 in {hashes!r}.items():
    assert artifact(Path(path), name="input").sha256 == sha256, f"{{path}} was changed; run `runner debug` again"
del path, sha256"""


def _inject(document: dict[str, Any], values: dict[str, Value], secrets: dict[str, str], preamble: str) -> None:
    """Put the preamble first, and the run's values right after the cell tagged `parameters`."""
    cells = document["cells"]
    tags = [(cell.get("metadata") or {}).get("tags") or () for cell in cells]
    at = next((i for i, names in enumerate(tags) if "parameters" in names), -1)
    lines = ["# Parameters of the run", *(f"{name} = {value!r}" for name, value in values.items())]
    lines += [f"{name} = os.environ[{variable!r}]  # secret" for name, variable in secrets.items()]
    if len(lines) > 1:
        cells.insert(at + 1, _code("\n".join(lines), "injected-parameters"))
    cells.insert(0, _code(preamble, "runner-debug"))
    for number, cell in enumerate(cells):
        if document.get("nbformat_minor", 0) >= 5:
            cell.setdefault("id", f"debug-{number}")


def _mark(document: dict[str, Any], target: Path, state: StepState) -> None:
    """Tag the cell that failed, and put the error above it."""
    error = state.result.error if state.result else None
    if error is None or error.cell is None:
        return
    numbers = [cell.number for cell in read_notebook(target / run_folder.SOURCE).cells]
    at = next((i for i, number in enumerate(numbers) if number == error.cell), None)
    if at is None:
        return
    cell = document["cells"][at]
    cell.setdefault("metadata", {}).setdefault("tags", []).append(FAILED)
    words = f"{error.ename}: {error.evalue}".replace("`", "'")[:500]
    source = f"---\n**▼ The cell below, [{error.cell}], failed in the run:** `{words}`"
    document["cells"].insert(at, {"cell_type": "markdown", "metadata": {}, "source": source})


def _code(source: str, tag: str) -> dict[str, Any]:
    metadata = {"tags": [tag]}
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "execution_count": None}
