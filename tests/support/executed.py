"""A notebook's cells executed by a step and by papermill, and what they left."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError
from traitlets.config import Config

from runner.records import StepJob, encode
from runner.step.local import LocalExecutor
from support.projects import notebook

Cells = list[dict[str, Any] | str]
Executed = dict[str, Any]
WIDGETS: Cells = [
    "import ipywidgets\nfrom IPython.display import display, clear_output",
    "out = ipywidgets.Output(); display(out)",
    *(f"with out: print('line {n}')" for n in range(6)),
    "'after'",
    "@ipywidgets.interact(x=(0, 5))\ndef shown(x=3): print('x is', x)",
    "with out:\n    display({'text/plain': 'shown'}, raw=True); clear_output(wait=True); print('kept')",
    "with out:\n    print('before'); 1 / 0",
    "inner = ipywidgets.Output()\nwith out:\n    print('out')\n    with inner: print('in')\n    print('out again')",
    "out.outputs, inner.outputs",
    "slider = ipywidgets.IntSlider(3); slider.value = 4; slider",
]


def by_step(folder: Path, cells: Cells, kernel: str, executor: LocalExecutor) -> Executed:
    """The executed notebook of a step folder made of `cells`."""
    (folder / "modules").mkdir(parents=True)
    (folder / "notebook.ipynb").write_text(json.dumps(notebook(*cells)))
    job = StepJob(run="r", step="s", notebook="n.ipynb", parameters={}, outputs={}, kernel=kernel)
    (folder / "job.json").write_bytes(encode(job))
    result = executor.run(folder, cwd=None, stop=threading.Event(), on_progress=lambda _: None)
    assert result.kernel == ("standard" if cells is WIDGETS else kernel)
    made: Executed = json.loads((folder / "executed.ipynb").read_text())
    return made


@contextlib.contextmanager
def without_ports() -> Iterator[Config]:
    """For papermill's own client: the free ports that it chooses may be another's before its kernel has them."""
    with tempfile.TemporaryDirectory() as sockets:
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}})


def by_papermill(folder: Path, cells: Cells, engine: str | None = None) -> Executed:
    folder.mkdir()
    source, target = folder / "notebook.ipynb", folder / "executed.ipynb"
    source.write_text(json.dumps(notebook(*cells)))
    options: dict[str, Any] = {"kernel_name": "python3", "progress_bar": False, "cwd": folder, "engine_name": engine}
    for _ in range(1 if engine else 4):
        # its own client loses the reply to a widget's cell now and then
        with contextlib.suppress(CellTimeoutError), without_ports() as config:
            with contextlib.suppress(papermill.PapermillExecutionError):
                options |= {} if engine else {"config": config}
                papermill.execute_notebook(source, target, execution_timeout=20, **options)
            break
    made: Executed = json.loads(target.read_text())
    made["cells"] = [
        cell for cell in made["cells"] if "papermill-error-cell-tag" not in cell["metadata"].get("tags", [])
    ]
    return made


VARYING = [
    (re.compile(r"0x[0-9a-f]{6,}"), "0x…"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "id"),
    (re.compile(r"ipykernel_\d+/\d+"), "ipykernel_…/…"),
    (re.compile(r"(?m)^(CPU times|Wall time|CPU user|.* per loop).*\n?"), ""),
    (re.compile(r"/[^\s'\"]*/(?:forked|standard|papermill|engine)\b(?:/modules)?"), "/folder"),
]


def plain(value: Any) -> Any:
    """Without addresses, process numbers, times and places."""
    if isinstance(value, str):
        for form, instead in VARYING:
            value = form.sub(instead, value)
        return value
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def outputs(cell: dict[str, Any]) -> list[Any]:
    """A cell's outputs; streams that were cut by a moment's flush are one again."""
    joined: list[dict[str, Any]] = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            said = "".join(output["text"])
            if joined and joined[-1].get("name") == output["name"]:
                joined[-1]["text"] += said
            else:
                joined.append({**output, "text": said})
        else:
            joined.append(output)
    return [plain(output) for output in joined]
