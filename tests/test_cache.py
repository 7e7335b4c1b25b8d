"""A step runs again exactly when something it depends on is another, and the reason is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
from support.commands import Done, environment
from support.projects import PAGES, Project, parameters, text

TOML = """
name = "cached"
[steps.first]
notebook = "first.ipynb"
inputs = { source = "./in.csv" }
outputs = { table = "t.csv" }
[steps.second]
notebook = "second.ipynb"
inputs = { table = "first.table" }
parameters = { depth = 5 }
"""
FIRST = ("import helper", "rows = open(source).read()\nopen(table, 'w').write(helper.clean(rows))")
SECOND = ("from pathlib import Path", "n = len(open(table).read()) + depth", "import scrapbook\nscrapbook.glue('n', n)")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one run; each test changes a copy of it, so the run is made once."""
    project = Project(tmp_path_factory.mktemp("cache") / "project")
    project.folder.mkdir()
    (project.folder / "in.csv").write_text("a\n1\n")
    (project.folder / "helper.py").write_text("import deeper\n\ndef clean(rows):\n    return deeper.strip(rows)\n")
    (project.folder / "deeper.py").write_text("def strip(rows):\n    return rows.strip()\n")
    (project.folder / "config.yml").write_text("offset: 0\n")
    first(project)
    second(project)
    project.toml(TOML)
    done = project.runner("run")
    assert done.code == 0, done.err
    return project


@pytest.fixture
def project(origin: Project, tmp_path: Path) -> Project:
    import shutil

    shutil.copytree(origin.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def first(project: Project, *cells: str) -> None:
    project.write("first.ipynb", text("# One"), parameters('source: str = ""\ntable: str = ""'), *(cells or FIRST))


def second(project: Project, *cells: str, prose: str = "# Two", default: int = 5) -> None:
    project.write(
        "second.ipynb",
        text(prose),
        parameters(f'table: str = ""\ndepth: int = {default}  # {prose}'),
        *(cells or (*SECOND, "open('config.yml').read()")),
    )


def plan(project: Project, *arguments: str) -> dict[str, tuple[str, str]]:
    """Step -> (what it would do, why)."""
    done: Done = project.runner("run", "--dry-run", "--json", *arguments)
    assert done.code == 0, done.err
    return {step["name"]: (step["action"], step["why"]) for step in done.json}


def test_nothing_changed_takes_everything_from_the_earlier_run(project: Project) -> None:
    origin = project.runs[-1].name
    done = project.runner("run", "--json", env=PAGES)
    assert [step["status"] for step in done.json["steps"]] == ["cached", "cached"]
    assert done.json["metrics"] == {"second.n": {"value": 8.0, "low": None, "high": None}}
    assert len(project.runs) == 2
    assert project.step("second")["from_run"] == origin
    assert Path(done.json["steps"][1]["executed"]).exists()
    assert (project.runs[-1] / "steps" / "first" / "out" / "t.csv").read_text() == "a\n1"
    assert Path(done.json["report"]).exists()


@pytest.mark.soak
def test_the_way_back_for_an_unchanged_run_says_the_same_and_notices_every_change(project: Project) -> None:
    assert project.runner("run", "--json").code == 0
    slow = project.runner("run", "--json", "--tag", "other")
    quick = project.runner("run", "--json")
    assert (quick.code, slow.code) == (0, 0)
    assert quick.json["run"] == project.runs[-1].name
    assert {**quick.json, "run": "", "report": "", "steps": []} == {**slow.json, "run": "", "report": "", "steps": []}
    assert [step["status"] for step in quick.json["steps"]] == ["cached", "cached"]
    assert all(Path(step["executed"]).exists() for step in quick.json["steps"])
    assert project.runner("verify", "--all").code == 0
    for name in ("helper.py", "in.csv", "config.yml", "second.ipynb"):
        path = project.folder / name
        before = path.read_bytes()
        path.write_bytes(before.replace(b"n = len", b"n = 1 + len") if name == "second.ipynb" else before + b"# 2\n")
        assert project.runner("run", "--json").json["steps"][-1]["status"] in ("succeeded", "cached")
        assert project.manifest["steps"][0 if name in ("helper.py", "in.csv") else 1]["status"] == "succeeded", name
        path.write_bytes(before)
        assert [step["status"] for step in project.runner("run", "--json").json["steps"]] == ["cached", "cached"]
    output = project.runs[-1] / "steps" / "first" / "out" / "t.csv"
    output.chmod(0o644)
    output.write_bytes(output.read_bytes() + b" ")
    assert "succeeded" in [step["status"] for step in project.runner("run", "--json").json["steps"]]


def test_prose_outputs_and_metadata_do_not_count(project: Project) -> None:
    second(project, prose="# Two, in other words")
    path = project.folder / "second.ipynb"
    document = json.loads(path.read_text())
    document["metadata"]["kernelspec"]["name"] = "elsewhere"
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    path.write_text(json.dumps(document))
    assert {would for would, _ in plan(project).values()} == {"cached"}


def test_a_default_that_is_overridden_does_not_count_and_a_value_does(project: Project) -> None:
    second(project, default=9)
    assert plan(project)["second"][0] == "cached"
    assert plan(project, "-p", "second.depth=6")["second"] == ("run", "depth 5 → 6")


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (
            (SECOND[0], "n = len(open(table).read()) - depth", *SECOND[2:], "open('config.yml').read()"),
            "cell [3] changed",
        ),
        ((*SECOND, "open('config.yml').read()", "more = 1"), "cell [6] added"),
        (SECOND, "1 cell removed"),
        ((SECOND[1], SECOND[0], SECOND[2], "open('config.yml').read()"), "cells [2], [3] changed"),
    ],
)
def test_changed_code_is_named_by_cell_and_reruns_only_that_step(
    project: Project, cells: tuple[str, ...], why: str
) -> None:
    second(project, *cells)
    found = plan(project)
    assert found["first"][0] == "cached"
    assert found["second"] == ("run", why)


def test_a_changed_source_is_named_and_what_follows_depends_on_it(project: Project) -> None:
    (project.folder / "in.csv").write_text("a\n2\n")
    found = plan(project)
    assert found["first"][0] == "run"
    assert found["first"][1].startswith("input source changed")
    assert found["second"] == ("maybe", "depends on what first gives")


def test_equal_regenerated_outputs_stop_the_rerun(project: Project) -> None:
    (project.folder / "in.csv").write_text("a\n1\n\n\n")
    done = project.runner("run", "--json")
    assert [step["status"] for step in done.json["steps"]] == ["succeeded", "cached"]


@pytest.mark.parametrize("module", ["helper.py", "deeper.py"])
def test_a_changed_module_is_named_also_one_that_a_module_imports(project: Project, module: str) -> None:
    path = project.folder / module
    path.write_text(path.read_text() + "# changed\n")
    assert plan(project)["first"] == ("run", f"{module} changed")


def test_a_file_that_was_read_without_being_declared_is_watched_and_named(project: Project) -> None:
    assert list(project.step("second")["result"]["opened"]) == ["config.yml"]
    assert "config.yml" in project.runner("check").out
    (project.folder / "config.yml").write_text("offset: 1\n")
    assert plan(project)["second"] == ("run", "config.yml, read by cell [5], changed")
    (project.folder / "config.yml").unlink()
    assert plan(project)["second"] == ("run", "config.yml, read by cell [5], is gone")


def test_an_altered_output_is_refused_and_said(project: Project) -> None:
    output = project.runs[-1] / "steps" / "first" / "out" / "t.csv"
    output.chmod(0o644)
    output.write_text("a\n2")
    for copy in (project.folder / "runs" / "objects").glob("*"):
        if copy.samefile(output) or copy.read_text() == "a\n1":
            copy.chmod(0o644)
            copy.write_text("a\n2")
    assert plan(project)["first"] == ("run", "an output was altered")
    assert project.runner("run").code == 0
    assert (project.runs[-1] / "steps" / "first" / "out" / "t.csv").read_text() == "a\n1"


def test_forced_runs_run_and_never_run_is_said(project: Project) -> None:
    assert plan(project, "--force")["first"] == ("run", "forced")
    project.toml(TOML.replace("steps.second", "steps.third"))
    assert plan(project)["third"] == ("run", "never run")


def test_a_changed_package_is_named_when_a_notebook_stands_on_it(project: Project) -> None:
    # the recorded key of the earlier run, as another environment would have written it
    for file in (project.folder / "runs" / "cache" / "second").glob("*.json"):
        entries = json.loads(file.read_text())
        for entry in entries["entries"]:
            assert "pandas" in entry["key"]["packages"]  # scrapbook requires it
            entry["key"]["packages"]["pandas"] = "2.0.0"
        file.write_text(json.dumps(entries))
        if file.name != "latest.json":
            file.unlink()
    would, why = plan(project)["second"]
    assert would == "run"
    assert why.startswith("pandas 2.0.0 → ")


def test_what_the_cache_keeps_may_be_damaged_or_lost(project: Project) -> None:
    for file in (project.folder / "runs" / "cache").rglob("*.json"):
        file.write_bytes(file.read_bytes()[:-20])
    assert {would for would, _ in plan(project).values()} <= {"run", "maybe"}
    assert project.runner("run").code == 0


def installed(place: Path, name: str, version: str = "1.0", *requires: str, modules: tuple[str, ...] = ()) -> None:
    """What an installed package leaves for importlib.metadata in a folder of sys.path."""
    folder = place / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}\n")
    (folder / "RECORD").write_text("".join(f"{module}.py,,\n" for module in modules))


def test_packages_that_no_step_imports_are_no_reason_to_run_again(project: Project, tmp_path: Path) -> None:
    later = tmp_path / "later"
    known = {distribution.name for distribution in distributions()}
    optional = {re.split(r"[^\w.-]", line)[0] for line in requires("pandas") or () if "extra ==" in line} - known
    assert len(optional) > 10
    for name in (*sorted(optional), *(f"other{number}" for number in range(100))):
        installed(later, name, "99.0")
    plan(project)  # which packages there are is known by now
    done = project.runner("run", "--dry-run", "--json", env={"PYTHONPATH": str(later)})
    assert {step["action"] for step in done.json} == {"cached"}, done.json


def test_many_packages_that_are_others_are_one_line_with_their_number_and_the_first(project: Project) -> None:
    for file in (project.folder / "runs" / "cache" / "second").glob("*.json"):
        entries = json.loads(file.read_text())
        for entry in entries["entries"]:
            packages = entry["key"]["packages"]
            gone = sorted(name for name in packages if name not in ("pandas", "runner"))[:12]
            packages |= {f"old{number:03}": "1.0" for number in range(119)} | {"pandas": "2.0.0"}
            for name in gone:
                del packages[name]
        file.write_text(json.dumps(entries))
        if file.name != "latest.json":
            file.unlink()
    would, why = plan(project)["second"]
    assert would == "run"
    assert re.fullmatch(
        rf"12 packages were installed since the last run: {gone[0]} \S+, {gone[1]} \S+, {gone[2]} \S+ …, "
        r"119 packages were removed since the last run: old000, old001, old002 …, pandas 2\.0\.0 → \S+",
        why,
    ), why


def test_a_step_depends_on_what_it_imports_with_all_that_requires_here(tmp_path: Path) -> None:
    place = tmp_path / "place"
    installed(place, "app", "1.0", "lib[fast,odd] (>=1)", "never; extra == 'dev'", "win; sys_platform == 'win32'",
              "here; python_version >= '3.8'", modules=("app",))  # fmt: skip
    installed(place, "lib", "2.0", "base", 'quick>1; extra == "fast"', 'slow; extra == "slow"', "app", modules=("lib",))
    for name in ("base", "quick", "slow", "never", "win", "here", "odd"):
        installed(place, name, "3.0", modules=(name,))
    code = (
        "import json, sys, pathlib; from runner.run.packages import closure; "
        "print(json.dumps(closure(['app.inner'], index_file=pathlib.Path(sys.argv[1]))))"
    )
    for _ in range(2):  # without and with the index that is kept
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "index.json")], capture_output=True, text=True, check=True,
            env=environment({"PYTHONPATH": str(place)}),
        )  # fmt: skip
        assert json.loads(done.stdout) == {"app": "1.0", "base": "3.0", "here": "3.0", "lib": "2.0", "quick": "3.0"}


@pytest.mark.soak
def test_code_that_is_imported_from_where_it_is_written_is_a_dependency_however_it_is_found(
    project: Project, tmp_path: Path
) -> None:
    """As with an editable package, whose version stays while its code changes; one that it imports too."""
    place = tmp_path / "written"
    (place / "mylib").mkdir(parents=True)
    (place / "mylib" / "__init__.py").write_text("from mybase import value\n")
    (place / "mybase.py").write_text("value = 1\n")
    second(project, *SECOND, "import mylib\nopen('config.yml').read()")
    env = {"PYTHONPATH": str(place)}

    def run() -> tuple[str, str]:
        done = project.runner("run", "--json", env=env)
        assert done.code == 0, done.err
        return done.json["steps"][1]["status"], project.step("second")["why"]

    assert run()[0] == "succeeded"
    for _ in range(2):
        assert run() == ("cached", "")
    (place / "mybase.py").write_text("value = 2\n")
    assert run() == ("succeeded", "the code of mybase changed")
    (place / "mylib" / "more.py").write_text("")
    assert run() == ("succeeded", "the code of mylib changed")
    assert run() == ("cached", "")


def test_what_pandas_reads_a_file_by_is_a_dependency_of_a_step_that_has_it_read_one(project: Project) -> None:
    place = project.folder.parent / "excel"
    installed(place, "openpyxl", modules=("openpyxl",))

    def stands_on() -> bool:
        assert project.runner("run", "second", env={"PYTHONPATH": str(place)}).code == 0
        return "openpyxl" in project.step("second")["key"]["packages"]

    assert not stands_on()
    second(project, *SECOND, "import pandas\ntry:\n    pandas.read_excel('none.xlsx')\nexcept Exception:\n    pass")
    assert stands_on()
