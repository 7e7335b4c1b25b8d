"""A step of a run as a notebook to debug: its own code, parameters and inputs, away from everything sealed.

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
from runner.records import StepError, StepJob, Value
from runner.run import folder as run_folder
from runner.run.contents import copy_code
from runner.run.inputs import copy, recorded
from runner.run.store import Store

DEBUG = "debug"
FAILED = "failed-cell"  # the tag of the cell that raised


def prepare(manifest: RunManifest, step: str, *, store: Store, project: Path) -> Path:
    """The notebook to open; what an earlier call left for this step is replaced.

    Run All in a fresh kernel does what the step did: in its working folder, on its inputs (whose hashes the first cell
    checks), with its parameters. Raises UsageError for a step that did not run, Refused where an input is gone, Tampered
    where the run's own code was altered.
    """
    state = next((state for state in manifest.steps if state.name == step), None)
    if state is None or state.job is None:
        known = ", ".join(state.name for state in manifest.steps if state.job is not None) or "none"
        raise UsageError(f"Run {manifest.run} did not run a step {step!r}; it ran: {known}.")
    source = run_folder.step_folder(store, manifest.run, step)
    target = (store.root / DEBUG / f"{manifest.run}-{step}").absolute()
    shutil.rmtree(target, ignore_errors=True)
    copy_code(state, source, target)
    values, checked = _place(manifest, state, state.job, target, store)
    cwd = (project / state.notebook).parent.absolute()
    document = json.loads((target / run_folder.SOURCE).read_bytes())
    _mark(document, target, state)
    _inject(
        document, values, state.job.secrets, _preamble(manifest, step, cwd if cwd.is_dir() else target, target, checked)
    )
    made = target / Path(state.notebook).name
    (target / run_folder.SOURCE).unlink()
    atomic_write(made, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
    return made


def _place(
    manifest: RunManifest, state: StepState, job: StepJob, target: Path, store: Store
) -> tuple[dict[str, Value], dict[str, str]]:
    """What the notebook's parameters are set to, and the hash of each input that was put there."""
    values: dict[str, Value] = dict(job.parameters)
    checked = {}
    for name, given in job.inputs.items():
        if not given.present or given.as_ == "uri":
            values[name] = given.value
            continue
        place = target / "in" / name
        place.parent.mkdir(exist_ok=True)
        fact = recorded(manifest, state.name, name)
        copy(fact, place, f"Input {name} of step {state.name}", store)
        values[name] = str(place)
        checked[str(place)] = artifact(place, name=name).sha256
    for name, path in job.outputs.items():
        place = target / "out" / path
        (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        values[name] = str(place)
    return values, checked


def _preamble(manifest: RunManifest, step: str, cwd: Path, target: Path, checked: dict[str, str]) -> str:
    """A cell that brings a fresh kernel to where the step's was, or says that an input is another by now."""
    modules = str(target / run_folder.MODULES)
    return f"""\
# step {step} of run {manifest.run}: its working folder, its modules, its inputs
import os, sys
from pathlib import Path
from runner.content import artifact
os.chdir({str(cwd)!r})
sys.path[:0] = [{modules!r}, {str(cwd)!r}]
for path, sha256 in {checked!r}.items():
    assert artifact(Path(path), name="input").sha256 == sha256, f"{{path}} was changed; run `runner debug` again"
del path, sha256"""


def _inject(document: dict[str, Any], values: dict[str, Value], secrets: dict[str, str], preamble: str) -> None:
    """Put the preamble first, and the run's values right after the cell tagged `parameters`."""
    cells = document["cells"]
    at = next((i for i, cell in enumerate(cells) if "parameters" in _tags(cell)), -1)
    lines = ["# Parameters of the run", *(f"{name} = {value!r}" for name, value in values.items())]
    lines += [f"{name} = os.environ[{variable!r}]  # secret" for name, variable in secrets.items()]
    if len(lines) > 1:
        cells.insert(at + 1, _code("\n".join(lines), "injected-parameters"))
    cells.insert(0, _code(preamble, "runner-debug"))
    for number, cell in enumerate(cells):
        if document.get("nbformat_minor", 0) >= 5:
            cell.setdefault("id", f"debug-{number}")


def _mark(document: dict[str, Any], target: Path, state: StepState) -> None:
    """Say above the cell that failed what it raised, and tag it."""
    error = state.result.error if state.result else None
    if error is None or error.cell is None:
        return
    numbers = [cell.number for cell in read_notebook(target / run_folder.SOURCE).cells]
    at = next((i for i, number in enumerate(numbers) if number == error.cell), None)
    if at is None:
        return
    cell = document["cells"][at]
    cell.setdefault("metadata", {}).setdefault("tags", []).append(FAILED)
    document["cells"].insert(at, {"cell_type": "markdown", "metadata": {}, "source": _words(error)})


def _words(error: StepError) -> str:
    said = f"{error.ename}: {error.evalue}".replace("`", "'")
    return f"---\n**▼ The cell below, [{error.cell}], failed in the run:** `{said[:500]}`"


def _code(source: str, tag: str) -> dict[str, Any]:
    metadata = {"tags": [tag]}
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "execution_count": None}


def _tags(cell: dict[str, Any]) -> list[str]:
    return list((cell.get("metadata") or {}).get("tags") or ())
