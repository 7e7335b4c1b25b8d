"""What a person does in Jupyter: the registered kernel, a run's inputs in work/, and nothing sealed can be harmed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project, environment, parameters


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
