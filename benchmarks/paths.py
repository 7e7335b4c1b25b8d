"""The ways to run the four notebooks that are compared, each a command line in a fresh folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from runner.pipeline.plan import plan

ROOT = Path(__file__).parents[1]

# outside a notebook `figure` shows nothing to anybody, and draws nothing
DRAWING = """
import io, runner.scraps
def _drawn(name, fig, *, alt, caption=""):
    import matplotlib.pyplot as plt
    fig.savefig(io.BytesIO(), format="png", dpi=110, bbox_inches="tight")
    plt.close(fig)
runner.scraps.figure = _drawn
"""
STOCK = """
import sys, papermill
for notebook, parameters in {steps!r}:
    papermill.execute_notebook(notebook, notebook + ".out.ipynb", parameters=parameters, kernel_name="python3",
                               progress_bar=False, cwd={cwd!r})
"""


def copy_project(target: Path) -> Path:
    """The parts of the project that a run needs, in a folder of their own."""
    target.mkdir(parents=True)
    for name in ("pipeline.toml", "notebooks", "data"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("work", "runs", ".ipynb_checkpoints"))
        else:
            shutil.copyfile(source, target / name)
    return target


def code_cell(id_: str, source: str, *tags: str) -> dict[str, Any]:
    """A cell of a notebook file."""
    metadata = {"tags": list(tags)} if tags else {}
    return {
        "id": id_,
        "cell_type": "code",
        "metadata": metadata,
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def notebook(cells: list[dict[str, Any]], kernel: str) -> str:
    """The text of a notebook file."""
    kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5})


def plain_script(project: Path, *, drawn: bool = False) -> list[str]:
    """All code cells of all notebooks, one after the other in one process, on the notebooks' own default paths."""
    planned = plan(project / "pipeline.toml")
    lines = ["import matplotlib; matplotlib.use('agg')", *([DRAWING] if drawn else [])]
    for step in planned.steps:
        for cell in step.notebook.code:
            lines.append(cell.source)
            if "parameters" in cell.tags:
                lines += [f"{name} = {value!r}" for name, value in step.parameters.items()]
    script = project / "notebooks" / "plain.py"
    script.write_text("\n\n".join(lines))
    return [sys.executable, "-P", str(script)]


def runner(project: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "runner", "run", "--pipeline", str(project / "pipeline.toml"), "--json", *more]


def papermill_api(project: Path) -> list[str]:
    """papermill's own function on stock settings, four times in one process."""
    planned = plan(project / "pipeline.toml")
    script = project / "stock.py"
    steps = [(str(step.notebook.path), step.parameters) for step in planned.steps]
    script.write_text(STOCK.format(steps=steps, cwd=str(project / "notebooks")))
    return [sys.executable, "-P", str(script)]


def papermill_cli(project: Path) -> list[str]:
    """The papermill command, once a notebook."""
    commands = []
    for step in plan(project / "pipeline.toml").steps:
        file, path = project / f"{step.name}.json", step.notebook.path
        file.write_text(json.dumps(step.parameters))
        options = f"--no-progress-bar -k python3 -f {file} --cwd {path.parent}"
        commands.append(f"{sys.executable} -m papermill {options} {path} {path}.out.ipynb")
    return ["sh", "-c", " && ".join(commands)]
