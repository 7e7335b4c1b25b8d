"""Sixteen trainings on all cores: `runner sweep` beside code that imports once, forks and runs the cells in a loop."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from benchmarks.paths import DRAWING
from runner.pipeline.plan import Plan, plan

GRID = {"max_depth": (3, 4, 5, 6), "eta": (0.1, 0.2, 0.3, 0.4)}
JOBS = os.cpu_count() or 1
LIMIT = """
import contextlib, importlib, os
import matplotlib; matplotlib.use("agg")

def run(cells, **values):
    here = {{"__name__": "__main__"}}
    for cell, tagged in cells:
        exec(compile(cell, "cell", "exec"), here)
        if tagged:
            here.update(values)

DATA, TRAIN, EVALUATE = {data!r}, {train!r}, {evaluate!r}
run(DATA, **{data_values!r})
for name in {imports!r}:
    with contextlib.suppress(ImportError):  # a class, as in `from pathlib import Path`
        importlib.import_module(name)
workers = []
for worker in range({jobs}):
    pid = os.fork()
    if pid == 0:
        for number, values in list(enumerate({grid!r}))[worker::{jobs}]:
            run(TRAIN, **{train_values!r} | values | {{"model": f"work/train/model-{{number}}"}})
        os._exit(0)
    workers.append(pid)
failed = [os.waitpid(pid, 0)[1] for pid in workers]
assert not any(failed)
run(EVALUATE, **{evaluate_values!r} | {{"model": "work/train/model-0"}})
"""


def combinations() -> list[dict[str, float]]:
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def limit(project: Path, *, drawn: bool = False) -> list[str]:
    """The plain limit: data once, the step's imports once, a process a core, the winner's evaluation."""
    from runner.kernel.choose import Imports

    made = plan(project / "pipeline.toml")
    steps = {step.name: step for step in made.steps}
    script = project / "notebooks" / "limit.py"
    script.write_text(
        (DRAWING if drawn else "")
        + LIMIT.format(
            data=_cells(made, "data"), train=_cells(made, "train"), evaluate=_cells(made, "evaluate"),
            data_values=steps["data"].parameters, train_values=steps["train"].parameters,
            evaluate_values=steps["evaluate"].parameters, imports=Imports(steps["train"].notebook).ahead,
            grid=combinations(), jobs=JOBS,
        )
    )  # fmt: skip
    return ["env", f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // JOBS)}", sys.executable, "-P", str(script)]


def ours(project: Path, *more: str) -> list[str]:
    values = [f"-ptrain.{name}={','.join(map(str, tried))}" for name, tried in GRID.items()]
    return [
        sys.executable, "-m", "runner", "sweep", "train", *values, "-j", str(JOBS), "--metric", "train.validation_auc",
        "--pipeline", str(project / "pipeline.toml"), *more,
    ]  # fmt: skip


def _cells(made: Plan, name: str) -> list[tuple[str, bool]]:
    step = next(step for step in made.steps if step.name == name)
    return [(cell.source, "parameters" in cell.tags) for cell in step.notebook.code]
