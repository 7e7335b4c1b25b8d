"""A small pipeline for jobs, in the ways in which its steps can end."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from small_sagemaker import SmallSageMaker
from small_sagemaker.trying import read_log

from support.projects import Project, parameters, recorded, text

WRITE = parameters("out: str = 'work/x.txt'  # what it writes\nnumber: int = 3  # how many lines, 1 to 9")
TOML = """
name = "tiny"
[steps.make]
notebook = "nb/make.ipynb"
inputs = { source = "./in.txt" }
outputs = { out = "x.txt" }
[steps.judge]
notebook = "nb/judge.ipynb"
inputs = { table = "make.out" }
outputs = { folder = "folder/" }
"""
GATE = """
[[gate]]
metric = "judge.score"
min = 0.5
"""
NEEDS = """
[steps.after]
notebook = "nb/after.ipynb"
inputs = { verdict = "gate.verdict" }
"""


@dataclass(frozen=True)
class Case:
    """Cells of the two notebooks, further TOML, and the exit code that it comes to."""

    make: tuple[Any, ...] = ("open(out, 'w').write(open(source).read() * number)",)
    judge: tuple[Any, ...] = (
        "import pathlib; pathlib.Path(folder, 'a').mkdir(); pathlib.Path(folder, 'a', 'b.txt').write_text(open(table).read())",
        recorded("score", "0.75"),
    )
    toml: str = GATE + NEEDS
    code: int = 0


SLOW = "import time\ntime.sleep(600)"


def made_project(project: Project, case: Case, name: str) -> None:
    (project.folder / "in.txt").write_text("one line\n")
    first = parameters("source: str = ''  # a text\n" + WRITE["source"])
    project.write("nb/make.ipynb", text("Makes."), first, *case.make)
    project.write("nb/judge.ipynb", parameters("table: str = ''\nfolder: str = ''"), *case.judge)
    project.write("nb/after.ipynb", parameters("verdict: str = ''"), "print(open(verdict).read())")
    limit = "cell_timeout_s = 1.5\n" if case.make == (SLOW,) else ""
    project.toml(TOML.replace("tiny", name).replace("[steps.judge]", f"{limit}[steps.judge]") + case.toml)


def plain(value: Any, folder: Path) -> Any:
    """JSON without what differs from place to place: paths, times, ids."""
    said = json.dumps(value, sort_keys=True)
    said = re.sub(re.escape(str(folder)) + r"/runs/[^/\"]+/steps/\w+|/tmp/runner-work/step", "STEP", said)
    said = re.sub(re.escape(str(folder / "nb")) + r"|/tmp/runner-work/project/nb", "CWD", said)
    said = re.sub(r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN", said)
    said = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z?(\+00:00)?", "TIME", said)
    said = re.sub(r"ipykernel_\d+/\d+", "ipykernel", said)
    return json.loads(said)


def executed(project: Project, step: str) -> Any:
    """The executed notebook without its times."""
    found = project.executed(step)
    found["metadata"].pop("papermill", None)
    for cell in found["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
        cell.pop("id", None)
    return plain(found, project.folder)


FIELDS = ("status", "cells", "cells_run", "metrics", "problems", "outputs", "error", "kernel", "redacted")


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def notebook_begun(cloud: SmallSageMaker, name: str) -> bool:
    """Whether the job's log tells of a first cell that has run."""
    try:
        return any(line.startswith("runner:progress [1,") for line in read_log(cloud.client("logs"), name))
    except (ClientError, ValueError):  # there is no log yet
        return False
