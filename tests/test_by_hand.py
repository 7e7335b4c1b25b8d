"""What a person does in Jupyter: the registered kernel, a run's inputs in work/, and nothing sealed can be harmed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import environment
from support.projects import ROOT, RUN_ALL, Project, code, parameters, text

from runner.notebook.defaults import with_defaults


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("by-hand"))
    project.write(
        "notebooks/01_make.ipynb",
        parameters('size: int = 3  # rows\ntable: str = "work/make/table.csv"\nparts: str = "work/make/parts"'),
        "import pathlib\npathlib.Path(parts).mkdir(parents=True, exist_ok=True)",
        "pathlib.Path(table).write_text('row\\n' * size)\npathlib.Path(parts, 'one').write_text(str(size))",
    )
    project.write(
        "notebooks/02_count.ipynb",
        parameters('table: str = "work/make/table.csv"\nparts: str = "work/make/parts"'),
        "from runner.scraps import metric\nimport pathlib",
        "metric('rows', len(open(table).readlines()))\nassert pathlib.Path(parts, 'one').exists()",
    )
    project.toml(
        'name = "hand"\n[steps.make]\nnotebook = "notebooks/01_make.ipynb"\n'
        'outputs = { table = "table.csv", parts = "parts/" }\nparameters = { size = 7 }\n'
        '[steps.count]\nnotebook = "notebooks/02_count.ipynb"\n'
        'inputs = { table = "make.table", parts = "make.parts" }\n'
    )
    done = project.runner("run", "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"]["count.rows"]["value"] == 7
    return project


def test_a_notebook_runs_under_the_plain_papermill_command(project: Project, tmp_path: Path) -> None:
    source = project.folder / "notebooks" / "01_make.ipynb"
    subprocess.run(
        [sys.executable, "-m", "papermill", str(source), "done.ipynb", "-k", "python3", "-p", "size", "5",
         "-p", "table", "t.csv", "-p", "parts", "parts"],
        cwd=tmp_path, env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "t.csv").read_text() == "row\n" * 5


def test_open_puts_a_runs_inputs_where_the_source_notebook_reads_them(project: Project) -> None:
    before = (project.folder / "notebooks" / "02_count.ipynb").read_bytes()
    done = project.runner("open", "count", "--run", "latest", "--no-open")
    assert done.code == 0, done.err
    assert Path(done.out.strip()) == Path("notebooks", "02_count.ipynb")
    work = project.folder / "notebooks" / "work" / "make"
    assert (work / "table.csv").read_text() == "row\n" * 7
    assert (work / "parts" / "one").read_text() == "7"
    assert (project.folder / "notebooks" / "02_count.ipynb").read_bytes() == before


def test_overwriting_everything_in_work_harms_no_sealed_file(project: Project) -> None:
    assert project.runner("open", "count", "--run", "latest", "--no-open").code == 0
    for path in (project.folder / "notebooks" / "work").rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:  # in place: through a link, the object itself would change
                file.write(b"overwritten")
            os.truncate(path, 3)
    assert project.runner("verify", "--all").code == 0
    assert project.runner("open", "count", "--run", "latest", "--no-open").code == 0
    assert (project.folder / "notebooks" / "work" / "make" / "table.csv").read_text() == "row\n" * 7


def test_open_names_an_unknown_step_and_a_run_without_it(project: Project) -> None:
    done = project.runner("open", "cuont", "--no-open")
    assert (done.code, "count" in done.err) == (2, True)
    assert project.runner("run", "make", "--force").code == 0
    done = project.runner("open", "count", "--run", "latest", "--no-open")
    assert done.code == 2
    assert "did not run step count" in done.err


def by_hand(folder: Path, *notebooks: str, kernels: Path) -> subprocess.CompletedProcess[str]:
    """Run All in each, in order, by the registered kernel."""
    return subprocess.run(
        [sys.executable, "-c", RUN_ALL, *notebooks], cwd=folder, env=environment({"JUPYTER_PATH": str(kernels)}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def kernels(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    assert project.runner("kernel", "--prefix", str(prefix)).code == 0
    return prefix / "share" / "jupyter"


@pytest.mark.soak
def test_open_brings_the_runs_parameters_so_that_run_all_does_what_the_run_did(
    project: Project, kernels: Path, tmp_path: Path
) -> None:
    own = Project(shutil.copytree(project.folder, tmp_path / "own", symlinks=True))
    assert own.runner("run", "make", "-p", "make.size=9").code == 0
    source = own.folder / "notebooks" / "01_make.ipynb"
    before = json.loads(source.read_bytes())
    done = own.runner("open", "make", "--run", "latest", "--no-open")
    assert done.code == 0, done.err
    assert "parameters of the run, in the parameters cell of 01_make.ipynb now:\n    size = 9   (was 3)\n" in done.err
    cell = before["cells"][0]
    cell["source"] = cell["source"].replace("size: int = 3  # rows", "size: int = 9  # rows")
    assert json.loads(source.read_bytes()) == before
    assert by_hand(source.parent, source.name, kernels=kernels).returncode == 0
    made = own.runs[-1] / "steps" / "make" / "out" / "table.csv"
    assert (source.parent / "work" / "make" / "table.csv").read_bytes() == made.read_bytes() == b"row\n" * 9
    kept = source.read_bytes()
    done = own.runner("open", "make", "--run", "latest", "--no-open")
    assert (done.code, "parameters" in done.err, source.read_bytes() == kept) == (0, False, True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: float = 1.0  # é, above 0", "a: float = 2.5  # é, above 0"),
        ("é = 'é'; a = 1  # two", "é = 'é'; a = 2.5  # two"),
        ("a: list[int] = [  # many\n    1,\n    2,\n]  # end\nb = 1", "a: list[int] = 2.5  # end\nb = 1"),
        ("%matplotlib inline\na = -1\n!ls", "%matplotlib inline\na = 2.5\n!ls"),
        ("a = today()\nb = a", "a = 2.5\nb = a"),
        ("a: float\na.b = 1\nc = d = 1", "a: float\na.b = 1\nc = d = 1"),
    ],
)
def test_only_the_default_itself_is_replaced(before: str, after: str) -> None:
    assert with_defaults(before, {"a": 2.5}) == after
    assert with_defaults(before, {"other": 2.5}) == before
    assert with_defaults("a = 1", {"a": float("-inf")}) == 'a = float("-inf")'
    assert with_defaults("a = 1", {"a": [None, True, "é'"]}) == """a = [None, True, "é'"]"""


@pytest.mark.soak
def test_the_notebook_that_the_guide_shows_runs_by_hand_in_a_fresh_folder_and_in_a_run(
    kernels: Path, tmp_path: Path
) -> None:
    section = (ROOT / "docs" / "own-notebooks.md").read_text()
    declared, work = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    steps = re.findall(r"^```toml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]
    project = Project(tmp_path)
    project.write("prepare.ipynb", text("# Prepare"), parameters(declared.strip()), code(work.strip()))
    (tmp_path / "prices.csv").write_text("price\n1\n\n2\n")
    done = by_hand(tmp_path, "prepare.ipynb", kernels=kernels)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "prepare" / "table.parquet").exists()
    project.toml(steps.partition("[steps.fit]")[0])
    ran = project.runner("run")
    assert ran.code == 0, ran.err
