"""A run can be checked, done again, carried elsewhere, debugged; and a version from long ago still leads to all of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import command, environment
from support.passed import TOML, passed, write_notebooks
from support.projects import PAGES, Project, parameters, recorded, text

from runner.failpoint import GC_NAMES, VARIABLE
from runner.model.registry import LocalRegistry
from runner.run import provenance


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one run that passed, version 1 approved."""
    project = passed(tmp_path_factory.mktemp("trust"))
    assert project.runner("approve", "thing/1", "--reason", "good").code == 0
    return project


@pytest.fixture
def project(origin: Project, tmp_path: Path) -> Project:
    """A copy, with its links."""
    subprocess.run(["cp", "-a", str(origin.folder), str(tmp_path / "project")], check=True)
    return Project(tmp_path / "project")


def out(project: Project, step: str, name: str) -> Path:
    return project.runs[-1] / "steps" / step / "out" / name


def overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


TAMPERED: dict[str, tuple[Callable[[Project], Path], str]] = {
    "an output": (lambda p: out(p, "make", "table.csv"), "table.csv was altered"),
    "a model": (lambda p: out(p, "fit", "model") / "model.json", "model.json was altered"),
    "an executed notebook": (lambda p: p.runs[-1] / "steps" / "fit" / "executed.ipynb", "executed.ipynb was altered"),
    "a notebook as run": (lambda p: p.runs[-1] / "steps" / "fit" / "notebook.ipynb", "notebook.ipynb was altered"),
    "a module": (lambda p: p.runs[-1] / "steps" / "make" / "modules" / "helper.py", "helper.py was altered"),
    "the bytes kept of a source": (lambda p: p.runs[-1] / "steps" / "make" / "in" / "source", "the bytes kept of"),
    "the verdict": (lambda p: p.runs[-1] / "verdict.json", "verdict"),
}


@pytest.mark.cases(5)
@pytest.mark.parametrize("what", TAMPERED)
def test_verify_names_what_was_altered(project: Project, what: str) -> None:
    find, said = TAMPERED[what]
    overwrite(find(project), flipped)
    for reference in ("latest", "--all"):
        done = project.runner("verify", reference)
        assert done.code == 4, done.out
        assert said in done.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["metrics"]["fit.score"].update(value=0.99), "metrics"),
        (lambda m: m["steps"][1]["result"]["metrics"]["score"].update(value=0.99), "does not say what run.json says"),
        (lambda m: m["verdict"].update(outcome="fail"), "verdict"),
        (lambda m: m["steps"][0]["result"].update(cells_run=99), "does not say what run.json says"),
    ],
)
def test_verify_notices_a_manifest_that_tells_another_story(
    project: Project, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    manifest = project.manifest
    change(manifest)
    (project.runs[-1] / "run.json").write_text(json.dumps(manifest))
    done = project.runner("verify", "thing/1")
    assert done.code == 4
    assert said in done.out


def test_verify_of_a_sound_project_reads_everything(project: Project) -> None:
    done = project.runner("verify", "--all", "--json")
    assert (done.code, done.json["sound"], done.json["findings"]) == (0, True, [])
    assert done.json["files"] >= 10
    assert project.runner("verify", "thing/1").code == 0
    assert project.runner("verify").code == 2


STATISTICS = "import pathlib\npathlib.Path({!r}).write_text('executed')\n"


def bytecode(source: str, instead_of: Path) -> bytes:
    """What Python would execute in place of the module: compiled from other source, under its size and time."""
    status = instead_of.stat()
    fits = int(status.st_mtime).to_bytes(4, "little") + status.st_size.to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + bytes(4) + fits + marshal.dumps(compile(source, "helper.py", "exec"))


def add_everywhere(run: Path, marker: Path) -> list[Path]:
    """Files that somebody puts into a sealed run, each of which would write the marker if it were executed."""
    steps, source = run / "steps", STATISTICS.format(str(marker))
    cache = steps / "make" / "modules" / "__pycache__"
    cache.mkdir()
    (cache / f"helper.{sys.implementation.cache_tag}.pyc").write_bytes(
        bytecode(source, steps / "make" / "modules" / "helper.py")
    )
    (steps / "ghost").mkdir()
    (steps / "fit" / "modules" / "package").symlink_to(run.parent.parent / "notebooks")
    os.mkfifo(steps / "fit" / "modules" / "pipe.py")
    for place in (
        *("make/modules/statistics.py", "fit/out/model/features.py", "enter/in/model/features.py", "make/out/more.csv"),
        *("fit/notes.txt", "enter/sitecustomize.py", "ghost/notebook.ipynb"),
    ):
        (steps / place).write_text(source)
    (run / "extra.html").write_text(source)
    return [
        *(cache.iterdir()),
        *(steps / "fit" / "modules" / name for name in ("package", "pipe.py")),
        *(steps / "make" / name for name in ("modules/statistics.py", "out/more.csv")),
        *(steps / name for name in ("fit/out/model/features.py", "enter/in/model/features.py", "fit/notes.txt")),
        *(steps / "enter" / "sitecustomize.py", steps / "ghost" / "notebook.ipynb", run / "extra.html"),
    ]


@pytest.mark.soak
def test_files_added_to_a_sealed_run_are_named_and_neither_executed_nor_taken(project: Project, tmp_path: Path) -> None:
    run, marker = project.runs[-1], tmp_path / "marker"
    assert project.runner("report", "latest").code == 0  # pages, and what somebody left who looked, are not a finding
    checkpoints = run / "steps" / "fit" / ".ipynb_checkpoints"
    checkpoints.mkdir()
    shutil.copy(run / "steps" / "fit" / "executed.ipynb", checkpoints / "executed-checkpoint.ipynb")
    assert project.runner("verify", "--all").code == 0
    added = add_everywhere(run, marker)
    for reference in ("latest", "--all"):
        done = project.runner("verify", reference, "--json")
        named = [
            place for place in added if any(str(place.relative_to(project.folder)) in f for f in done.json["findings"])
        ]
        assert (done.code, named, len(done.json["findings"])) == (4, added, len(added)), done.out
    for arguments, code in (
        (("reproduce", "thing/1"), 0),
        (("debug", "latest", "fit", "--no-open"), 0),
        (("open", "fit", "--run", "latest", "--no-open"), 0),
        (("run", "--json"), 0),  # takes outputs from the run, and nothing beside them
        (("predict", "thing", "in.csv"), 2),  # no table's columns can be looked at before the model is refused
        (("serve", "thing"), 8),
    ):
        answer = project.runner(*arguments)
        assert answer.code == code or (arguments[0] == "predict" and answer.code == 8), (arguments, answer.err)
        assert "Traceback" not in answer.err
    assert not marker.exists()
    taken = [
        path for path in (project.folder / "runs" / "debug").rglob("*") if path.name in {one.name for one in added}
    ]
    assert taken == []
    for place in added:
        place.unlink()
    assert project.runner("verify", "--all").code == 0
    module = run / "steps" / "make" / "modules" / "helper.py"
    module.write_text(STATISTICS.format(str(marker)) + module.read_text())
    done = project.runner("reproduce", "thing/1")
    assert (done.code, "helper.py was altered since its run" in done.err, marker.exists()) == (8, True, False), done.err


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "what", ["an added module", "bytecode in a module's place", "an altered module", "the notebook"]
)
def test_a_run_is_not_resumed_with_code_that_was_put_into_it(project: Project, tmp_path: Path, what: str) -> None:
    flag, marker = tmp_path / "flag", tmp_path / "marker"
    source = STATISTICS.format(str(marker))
    project.write(
        "notebooks/make.ipynb",
        parameters('source: str = ""\ntable: str = ""\nseed: int = 0'),
        "import helper, statistics",
        f"import pathlib\nassert pathlib.Path({str(flag)!r}).exists(), 'not yet'",
        "assert open(table, 'w').write(helper.clean(open(source).read()) * seed)",
    )
    assert project.runner("run").code == 3
    flag.touch()
    folder = project.runs[-1] / "steps" / "make"
    module = folder / "modules" / "helper.py"
    match what:
        case "an added module":
            place = folder / "modules" / "statistics.py"
            place.write_text(source)
        case "bytecode in a module's place":
            place = folder / "modules" / "__pycache__" / f"helper.{sys.implementation.cache_tag}.pyc"
            place.parent.mkdir()
            place.write_bytes(bytecode(source + "def clean(text):\n    return 'x'\n", module))
        case "an altered module":
            place = module
            place.write_text(place.read_text() + source)
        case _:
            place = folder / "notebook.ipynb"
            place.write_text(place.read_text().replace("import helper, statistics", "import helper"))
    done = project.runner("resume", "latest")
    if place.suffix == ".pyc":  # a killed run leaves some, so it is removed instead
        assert done.code == 0, done.err
    else:
        assert (done.code, place.name in done.err) == (8, True), done.err
        other = project.runner("debug", "latest", "make", "--no-open")
        assert other.code == (0 if what == "an added module" else 8), other.err
    assert not marker.exists()
    assert (project.runner("verify", "--all").code, done.code) in ((0, 0), (4, 8))


@pytest.mark.soak
def test_what_a_notebook_leaves_beside_its_outputs_is_no_finding_nor_what_a_killed_run_left(project: Project) -> None:
    (project.folder / "notebooks" / "package").mkdir()
    (project.folder / "notebooks" / "package" / "__init__.py").write_text("from . import inner\n")
    (project.folder / "notebooks" / "package" / "inner.py").write_text("VALUE = 1\n")
    project.write(
        "notebooks/make.ipynb",
        parameters('source: str = ""\ntable: str = ""\nseed: int = 0'),
        "import helper, package, pathlib\naside = pathlib.Path(table).parent / 'aside'\naside.mkdir()",
        "(aside / 'log.txt').write_text('x')\npathlib.Path(table + '.tmp').write_text('y')",
        "assert open(table, 'w').write(open(source).read())",
    )
    for at in ("notebook half saved", "result written:make", "verdict written"):
        assert project.runner("run", "--force", env={VARIABLE: at}).code == -9
        done = project.runner("verify", "--all")
        assert done.code == 0, (at, done.out)
    assert project.runner("resume", "latest").code == 0
    assert project.runner("run").code == 0  # the same again, by links
    assert project.step("make")["result"]["undeclared"] == ["aside/log.txt", "table.csv.tmp"]
    assert project.runner("verify", "--all").code == 0
    assert not list(project.runs[-1].rglob("modules/**/__pycache__"))


def test_reproduce_gives_the_same_bytes_though_everything_around_has_changed(project: Project) -> None:
    (project.folder / "in.csv").write_text("overwritten")
    write_notebooks(project, extra="\nraise SystemError('the working tree is not what is reproduced')")
    (project.folder / "notebooks" / "helper.py").write_text("raise SystemError")
    done = project.runner("reproduce", "thing/1", "--json")
    assert done.code == 0, done.out + done.err
    assert (done.json["reproduced"], done.json["same"]) == (True, ["make", "fit", "enter"])
    assert len(project.runs) == 1  # in a folder of its own


def test_reproduce_catches_what_is_not_seeded_and_names_the_first_step(project: Project) -> None:
    project.write(
        "notebooks/make.ipynb",
        parameters('source: str = ""\ntable: str = ""\nseed: int = 0'),
        "import random\nassert open(table, 'w').write(str(random.random()))",
    )
    assert project.runner("run").code == 0
    done = project.runner("reproduce", "latest", "--json")
    assert (done.code, done.json["step"], done.json["same"]) == (4, "make", [])
    assert done.json["differences"] == ["output table differs"]
    assert "not seeded" in done.json["cause"]


@pytest.mark.soak
def test_reproduce_takes_a_tolerance_for_metrics(project: Project) -> None:
    project.write(
        "notebooks/fit.ipynb",
        parameters('table: str = ""\nmodel: str = ""'),
        "import pathlib, os\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)\n"
        "(place / 'model.json').write_text('{}')\n(place / 'signature.json').write_text('{}')",
        recorded("score", "0.75 + 0.001 * (os.getpid() % 7)"),
    )
    assert project.runner("run").code == 0
    assert project.runner("reproduce", "latest", "--tolerance", "0.01").code == 0


def test_reproduce_says_when_a_source_is_gone_and_what_to_do(project: Project) -> None:
    project.toml(TOML.replace("keep = true", "keep = false"))
    assert project.runner("run", "--force").code == 0
    (project.folder / "in.csv").write_text("another table")
    (project.folder / "runs" / "objects" / hashlib.sha256(b"a\n1\n2\n").hexdigest()).unlink()  # kept by the first run
    done = project.runner("reproduce", "latest")
    assert done.code == 8
    assert "keep = true" in done.err


def tiny(folder: Path, version: str) -> dict[str, str]:
    """An installed package in two files; the environment in which it is found."""
    metadata = folder / f"tinypkg-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tinypkg\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("tinypkg\n")
    (folder / "tinypkg.py").write_text(f"VALUE = {version}\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.soak
def test_reproduce_names_the_package_that_changed_the_result_and_the_cache_notices_it(
    project: Project, tmp_path: Path
) -> None:
    before, after = tiny(tmp_path / "before", "1.5"), tiny(tmp_path / "after", "2.5")
    project.write(
        "notebooks/make.ipynb",
        parameters('source: str = ""\ntable: str = ""\nseed: int = 0'),
        "import tinypkg\nassert open(table, 'w').write(str(tinypkg.VALUE))",
    )
    assert project.runner("run", env=before).code == 0
    same = project.runner("reproduce", "latest", env=before)
    assert same.code == 0, same.out
    other = project.runner("reproduce", "latest", "--json", env=after)
    assert (other.code, other.json["step"], other.json["differences"]) == (4, "make", ["output table differs"])
    assert "tinypkg 1.5 → 2.5" in other.json["environment"]
    assert other.json["cause"].startswith("package versions: tinypkg 1.5 → 2.5")
    planned = project.runner("run", "--dry-run", "--json", env=after).json
    assert (planned[0]["action"], planned[0]["why"]) == ("run", "tinypkg 1.5 → 2.5")


@pytest.mark.soak
def test_a_run_is_reproduced_in_the_environment_it_recorded(project: Project, tmp_path: Path) -> None:
    """Builds it from the package index; a package that changed the result since makes the difference."""
    assert project.runner("reproduce", "thing/1", "--env", "recorded").code == 0
    done = project.runner("reproduce", "thing/1", "--env", "recorded", "--json", env=tiny(tmp_path / "x", "9"))
    assert done.code == 0, done.err


def failing(project: Project) -> Path:
    return project.write(
        "notebooks/fit.ipynb",
        parameters('table: str = ""\nmodel: str = ""\nboost: float = 0.0'),
        text("## Regions"),
        "import helper\nsize = len(helper.clean(open(table).read())) + boost",
        "regions = {'north': size}\nregions['south']",
        "never = 1",
    )


RUN_ALL = """
import sys, warnings
warnings.simplefilter("ignore")
import nbclient, nbformat
made = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(made, timeout=60, kernel_name="python3", resources={"metadata": {"path": "/"}}).execute()
except nbclient.exceptions.CellExecutionError as error:
    print(error.ename, error.evalue)
"""


def raised(path: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, path], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.soak
def test_debug_brings_the_failure_into_a_fresh_kernel_and_leaves_the_source(project: Project) -> None:
    source = failing(project)
    before = source.read_bytes()
    done = project.runner("run", "-p", "fit.boost=2")
    assert done.code == 3
    assert "runner debug" in done.err
    failing(project)
    (project.folder / "in.csv").write_text("another table by now")
    made = project.runner("debug", "latest", "fit", "--no-open")
    assert made.code == 0, made.err
    path = Path(made.out.strip())
    assert path.name == "fit.ipynb"
    assert raised(str(path)) == "KeyError 'south'"
    cells = json.loads(path.read_text())["cells"]
    marked = next(number for number, cell in enumerate(cells) if "failed-cell" in cell["metadata"].get("tags", []))
    assert "regions['south']" in cells[marked]["source"]
    assert "failed in the run" in cells[marked - 1]["source"]
    assert any("boost = 2.0" in "".join(cell["source"]) for cell in cells)
    assert source.read_bytes() == before
    (path.parent / "in" / "table").write_text("changed by hand")
    assert "AssertionError" in raised(str(path))
    assert project.runner("verify", "--all").code == 0


def test_debug_names_a_step_that_did_not_run(project: Project) -> None:
    done = project.runner("debug", "latest", "evaluate", "--no-open")
    assert done.code == 2
    assert "it ran: make, fit, enter" in done.err


def test_a_packed_version_is_verified_reproduced_and_debugged_elsewhere(project: Project, tmp_path: Path) -> None:
    done = project.runner("pack", "thing/1", "-o", "thing.tar.gz")
    assert done.code == 0, done.err
    first = (project.folder / "thing.tar.gz").read_bytes()
    assert project.runner("pack", "thing/1", "-o", "again.tar.gz").code == 0
    assert (project.folder / "again.tar.gz").read_bytes() == first  # equal runs, equal files
    laptop = Project(tmp_path / "laptop of mine")
    laptop.folder.mkdir()
    shutil.copy(project.folder / "thing.tar.gz", laptop.folder)
    shutil.rmtree(project.folder)
    taken = laptop.runner("import", "thing.tar.gz", "--json")
    assert taken.code == 0, taken.err
    assert taken.json["versions"] == ["thing/1"]
    for arguments in (
        ("verify", "thing/1"),
        ("verify", "--all"),
        ("reproduce", "thing/1"),
        ("report", "thing/1"),
        ("debug", "thing/1", "fit", "--no-open"),
    ):
        answer = laptop.runner(*arguments)
        assert answer.code == 0, (arguments, answer.out, answer.err)
    (version,) = laptop.runner("models", "--json").json
    assert (version["status"], version["claim"].startswith("approved in trust by ")) == ("pending", True)
    assert (
        laptop.runner("approve", "thing/1", "--reason", "reproduced").code == 0
    )  # a version is approved by a decision here
    assert laptop.runner("import", "thing.tar.gz").code == 0  # again: nothing new
    assert len(laptop.runs) == 1


def test_a_pack_that_cannot_be_written_is_said_and_two_imports_at_once_are_as_good_as_one(
    origin: Project, tmp_path: Path
) -> None:
    for place, said in ((tmp_path / "none" / "run.tar.gz", "There is no folder"), (tmp_path, "is a directory")):
        done = origin.runner("pack", "latest", "-o", str(place))
        assert (done.code, said in done.err) == (2, True), done.err
    assert origin.runner("pack", "thing/1", "-o", str(tmp_path / "run.tar.gz")).code == 0
    laptop = Project(tmp_path / "laptop")
    laptop.folder.mkdir()
    going = [laptop.start("import", str(tmp_path / "run.tar.gz")) for _ in range(3)]
    said_by = [process.communicate(timeout=60)[1] for process in going]
    assert [process.returncode for process in going] == [0, 0, 0], said_by
    assert len(laptop.runs) == 1
    assert laptop.runner("verify", "--all").code == 0


@pytest.mark.soak
def test_a_run_is_packed_with_a_source_that_it_did_not_keep(project: Project, tmp_path: Path) -> None:
    project.toml(TOML.replace("keep = true", "keep = false"))
    assert project.runner("run", "make", "--force").code == 0
    assert project.runner("pack", "latest", "-o", str(tmp_path / "run.tar.gz")).code == 0
    laptop = Project(tmp_path / "laptop")
    laptop.folder.mkdir()
    assert laptop.runner("import", str(tmp_path / "run.tar.gz")).code == 0
    (project.folder / "in.csv").unlink()
    assert laptop.runner("reproduce", "latest").code == 0


def test_a_pack_cut_short_is_refused(origin: Project, tmp_path: Path) -> None:
    assert origin.runner("pack", "latest", "-o", str(tmp_path / "good.tar.gz")).code == 0
    whole = (tmp_path / "good.tar.gz").read_bytes()
    laptop = Project(tmp_path / "laptop")
    laptop.folder.mkdir()
    for size in (0, 10, len(whole) // 2, len(whole) * 9 // 10):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:size])
        done = laptop.runner("import", str(tmp_path / "cut.tar.gz"))
        assert (done.code, "Traceback" in done.err) == (8, False), done.err


def test_resume_goes_on_with_the_runs_own_code_and_says_that_the_tree_differs(project: Project) -> None:
    failing(project)
    flag = project.folder / "flag"
    project.write(
        "notebooks/fit.ipynb",
        parameters('table: str = ""\nmodel: str = ""'),
        f"import pathlib\nassert pathlib.Path({str(flag)!r}).exists(), 'not yet'",
        "place = pathlib.Path(model)\nplace.mkdir(exist_ok=True)\n(place / 'model.json').write_text('{}')\n"
        "(place / 'signature.json').write_text('{}')",
        recorded("score", "0.6"),
    )
    assert project.runner("run").code == 3
    flag.touch()
    project.write("notebooks/fit.ipynb", parameters('table: str = ""\nmodel: str = ""'), "raise SystemError")
    done = project.runner("resume", "latest", "--json")
    assert done.code == 0, done.err
    assert "notebooks/fit.ipynb has changed since" in done.err
    assert done.json["model_version"]["version"] == 2
    assert project.runner("verify", "--all").code == 0


@pytest.mark.soak
def test_resume_goes_on_with_every_option_that_the_run_was_started_with(project: Project) -> None:
    flag = project.folder / "flag"
    wait = f"import pathlib\nassert pathlib.Path({str(flag)!r}).exists(), 'not yet'"
    for name in ("a", "b", "c"):
        project.write(f"{name}.ipynb", parameters("x: int = 1"), *([wait] if name == "a" else []), "pathlib = x")
    steps = "".join(f'[steps.{name}]\nnotebook = "{name}.ipynb"\n' for name in ("a", "b", "c"))
    project.toml('name = "options"\n' + steps.replace("b.ipynb", 'b.ipynb"\nafter = ["a"]\n#'))
    flag.touch()
    assert project.runner("run").code == 0  # from which a run that is not forced would take everything
    flag.unlink()
    options = ["a", "b", "-p", "x=2", "--kernel", "standard", "-j", "2", "--force", "--no-report", "--no-register"]
    assert project.runner("run", *options, "-m", "a note", "--tag", "t", env=PAGES).code == 3
    first = project.manifest
    flag.touch()
    done = project.runner("resume", "latest", "--json", env=PAGES)
    assert done.code == 0, done.err
    now = project.manifest
    assert [(step["status"], step["why"]) for step in now["steps"]] == [
        ("succeeded", "forced"), ("succeeded", "forced"), ("skipped", "not asked for")
    ]  # fmt: skip
    assert [step["result"]["kernel"] for step in now["steps"][:2]] == ["standard", "standard"]
    assert now["chosen"] == {"jobs": 2, "kernel": "standard", "force": True, "report": False}
    kept = ("targets", "overrides", "profile", "note", "tags", "on", "register", "chosen")
    assert {name: now[name] for name in kept} == {name: first[name] for name in kept}
    assert not list(project.runs[-1].rglob("*.html"))


def test_resume_refuses_a_source_that_is_another_by_now(project: Project) -> None:
    project.toml(TOML.replace("keep = true", "keep = false"))
    project.write("notebooks/make.ipynb", parameters('source: str = ""\ntable: str = ""\nseed: int = 0'), "1 / 0")
    assert project.runner("run").code == 3
    (project.folder / "in.csv").write_text("another")
    done = project.runner("resume", "latest")
    assert done.code == 8
    assert "has changed since the run was started" in done.err


def test_gc_keeps_what_was_approved_pinned_or_is_new_and_says_so_before(project: Project) -> None:
    approved = project.runs[-1].name
    for number, tags in ((2, ("--tag", "pinned")), (3, ()), (4, ())):
        assert project.runner("run", "-p", f"seed={number}", "--no-register", *tags).code == 0
    runs = [run.name for run in project.runs]
    said = project.runner("gc", "--keep", "1", "--dry-run").out
    assert ("would free 1 run, " in said, said.endswith("; 3 runs kept\n")) == (True, True), said
    preview = project.runner("gc", "--keep", "1", "--dry-run", "--json").json
    assert preview["runs"] == [runs[2]]
    assert preview["kept"] == {approved: "approved", runs[1]: "tagged pinned", runs[3]: "among the newest 1"}
    assert len(project.runs) == 4
    freed = project.runner("gc", "--keep", "1", "--json").json
    assert (freed["runs"], freed["objects"]) == (preview["runs"], preview["objects"])
    assert freed["objects"] > 0
    assert [run.name for run in project.runs] == [approved, runs[1], runs[3]]
    assert project.runner("verify", "--all").code == 0
    again = project.runner("run", "-p", "seed=2", "--no-register", "--json").json
    assert [step["status"] for step in again["steps"]] == ["cached", "cached", "cached"]


def two_versions(project: Project) -> tuple[str, str]:
    """thing/1 is approved; thing/2 of a second run is rejected. Their runs."""
    assert project.runner("run", "-p", "fit.boost=0.1").code == 0
    assert project.runner("reject", "thing/2", "--reason", "worse").code == 0
    return project.runs[0].name, project.runs[1].name


def test_gc_records_what_it_removes_and_everything_says_so_afterwards(project: Project) -> None:
    kept, gone = two_versions(project)
    manifest = (project.folder / "runs" / gone / "run.json").read_bytes()
    done = project.runner("gc", "--keep", "0", "--keep-tag", "a b")
    assert re.search(r"^freed 1 run, \d+ objects, [\d,]+ bytes; 1 run kept$", done.out, re.M), done
    assert [run.name for run in project.runs] == [kept]
    record = json.loads((project.folder / "runs" / "removed" / f"{gone}.json").read_text())
    told = {"run": gone, "who": provenance.who(), "command": "runner gc --keep 0 --keep-tag 'a b'", "status": "succeeded",
            "verdict": "pass", "versions": ["thing/2"], "manifest_sha256": hashlib.sha256(manifest).hexdigest()}  # fmt: skip
    assert {name: record[name] for name in told} == told
    said = f"removed by {provenance.who()} on {record['at'][:10]}"
    for reference in ("--all", "thing/2"):
        done = project.runner("verify", reference, "--json")
        assert (done.code, done.json["sound"], done.json["findings"]) == (0, True, []), done.out
        (note,) = done.json["notes"]
        assert note.startswith(f"thing/2 (rejected): its run {gone} was {said}")
    for arguments in (
        ("show", "thing/2"),
        ("report", "thing/2"),
        ("pack", "thing/2"),
        ("show", gone),
        ("verify", gone[:15]),
    ):
        done = project.runner(*arguments)
        assert (done.code, said in done.err) == (2, True), (arguments, done.err)
    last = project.runner("history", "thing", "--json").json[-1]
    assert (last["version"], last["kind"], last["why"], last["data"]) == (
        2, "run removed", "runner gc --keep 0 --keep-tag 'a b'", {"run": gone}
    )  # fmt: skip


@pytest.mark.soak
def test_a_run_that_was_removed_by_other_means_is_a_finding(project: Project) -> None:
    kept, gone = two_versions(project)
    runs = project.folder / "runs"
    (runs / gone).rename(project.folder / "aside")
    done = project.runner("verify", "--all")
    assert (done.code, f"thing/2: its run {gone} was removed; `runner gc` did not do it" in done.out) == (4, True), (
        done.out
    )
    (project.folder / "aside").rename(runs / gone)
    assert project.runner("gc", "--keep", "0").code == 0
    record = json.loads((runs / "removed" / f"{gone}.json").read_text())
    (runs / "removed" / f"{gone}.json").unlink()
    done = project.runner("verify", "thing/2")
    assert (done.code, "was removed" in done.out) == (4, True), done.out
    (runs / kept).rename(project.folder / "aside")  # of an approved version, with a record made by hand
    (runs / "removed" / f"{kept}.json").write_text(json.dumps({**record, "run": kept, "versions": ["thing/1"]}))
    done = project.runner("verify", "thing/1")
    assert (done.code, "the history of thing does not say so" in done.out) == (4, True), done.out
    LocalRegistry(runs / "registry.db").record("thing", 1, "run removed", who="eve", why="gc", data={"run": kept})
    done = project.runner("verify", "thing/1")
    assert (done.code, "though it was approved before" in done.out) == (4, True), done.out


@pytest.mark.soak
@pytest.mark.parametrize("at", GC_NAMES)
def test_gc_killed_half_way_leaves_a_sound_project_and_goes_on_the_next_time(project: Project, at: str) -> None:
    kept, gone = two_versions(project)
    assert project.runner("gc", "--keep", "0", env={VARIABLE: at}).code == -9
    assert [run.name for run in project.runs] == ([kept, gone] if at == "removal recorded" else [kept])
    done = project.runner("verify", "--all")
    assert (done.code, "removed by" in done.out) == (0, at != "removal recorded"), done.out
    assert project.runner("run", "--no-register").code == 0
    assert project.runner("gc", "--keep", "1").code == 0
    assert gone not in [run.name for run in project.runs]
    assert [path.name for path in (project.folder / "runs" / "removed").iterdir()][1:] == []
    done = project.runner("verify", "--all")
    assert (done.code, "thing/2 (rejected)" in done.out) == (0, True), done.out


@pytest.mark.soak
def test_gc_beside_runs_imports_and_readers_harms_none_of_them(project: Project, tmp_path: Path) -> None:
    assert project.runner("pack", "latest", "-o", str(tmp_path / "run.tar.gz")).code == 0
    flag = tmp_path / "flag"
    project.write(
        "notebooks/make.ipynb",
        parameters('source: str = ""\ntable: str = ""\nseed: int = 0'),
        f"import pathlib, time\nwhile not pathlib.Path({str(flag)!r}).exists():\n    time.sleep(0.02)",
        "assert open(table, 'w').write(open(source).read())",
    )
    going = project.start("run", "--no-register")
    while len(project.runs) == 1:
        assert going.poll() is None
        time.sleep(0.02)
    done = project.runner("gc", "--keep", "0")
    assert (done.code, "is in use" in done.err) == (8, True), done.err
    assert project.runner("gc", "--keep", "0", "--dry-run").code == 0
    assert project.runner("verify", "--all").code == 0
    flag.touch()
    assert (going.communicate(timeout=120), going.returncode)[1] == 0
    # gc again and again, while others begin at any moment
    loop = f"while [ ! -e stop ]; do {shlex.join(command('gc', '--keep', '0'))} >> gc.log 2>&1; done"
    collecting = subprocess.Popen(["sh", "-c", loop], cwd=project.folder, env=environment())
    try:
        for arguments in (
            ("run", "--force", "--no-register"),
            ("verify", "--all"),
            ("import", str(tmp_path / "run.tar.gz")),
            ("reproduce", "thing/1"),
            ("run", "--no-register"),
            ("debug", "thing/1", "fit", "--no-open"),
        ):
            done = project.runner(*arguments)
            assert (done.code, done.err if "Traceback" in done.err else "") == (0, ""), (arguments, done.err)
    finally:
        (project.folder / "stop").touch()
        collecting.wait(timeout=60)
    assert "Traceback" not in (project.folder / "gc.log").read_text()
    assert project.runner("verify", "--all").code == 0


def test_a_run_without_its_manifest_that_has_results_is_kept_and_named(project: Project) -> None:
    (project.runs[-1] / "run.json").rename(project.folder / "aside.json")
    done = project.runner("verify", "--all")
    assert (done.code, "has no run.json, though steps of it have ended" in done.out) == (4, True), done.out
    assert project.runner("gc", "--keep", "0", "--json").json["runs"] == []


@pytest.mark.soak
def test_the_auditors_question_is_answered_after_a_year(project: Project) -> None:
    """Table overwritten, helper edited, notebooks rewritten, garbage collected, the version revoked: it still leads to all."""
    head = project.runner("history", "thing", "--head").out.split()
    run = project.runs[-1].name
    (project.folder / "in.csv").write_text("next year's table\n")
    write_notebooks(project, extra="  # rewritten")
    (project.folder / "notebooks" / "helper.py").write_text("def clean(text):\n    return text.upper()\n")
    assert project.runner("run").code == 0
    between = project.runner("history", "thing", "--json").json[-1]["at"]
    assert project.runner("reject", "thing/1", "--reason", "replaced").code == 0
    assert project.runner("gc", "--keep", "1").code == 0
    then = project.runner("history", "thing", "--at", between, "--json").json
    assert then["approved"] == 1
    (first, second) = then["versions"]
    assert (first["run"], first["status"], first["reason"]) == (run, "approved", "good")
    assert (second["version"], second["status"]) == (2, "pending")
    assert first["sources"] == {"make.source": hashlib.sha256(b"a\n1\n2\n").hexdigest()}
    assert project.runner("history", "thing", "--at", "2020-01-01T00:00Z", "--json").json["approved"] is None
    assert project.runner("verify", "thing/1").code == 0
    assert project.runner("reproduce", "thing/1").code == 0
    shown = project.runner("show", "thing/1").out
    assert run in shown
    events = project.runner("history", "thing", "--json").json
    assert events[int(head[1]) - 1]["hash"] == head[2]  # the head noted a year ago is in today's chain


@pytest.mark.soak
def test_runs_are_ranked_and_shown_with_what_the_gate_judges(project: Project) -> None:
    for boost in ("0.2", "0.1"):
        assert project.runner("run", "-p", f"fit.boost={boost}", "--no-register", "--tag", "sweep").code == 0
    best = project.runner("runs", "--best", "fit.score", "--json").json
    assert [round(run["metrics"]["fit.score"]["value"], 2) for run in best] == [0.95, 0.85, 0.75]
    assert len(project.runner("runs", "--tag", "sweep", "--json").json) == 2
    assert "0.95" in project.runner("runs").out
    wrong = project.runner("runs", "--best", "fit.scroe")
    assert (wrong.code, "fit.score" in wrong.err) == (2, True)


def test_a_failed_run_as_markdown_shows_error_cell_and_next_command(project: Project) -> None:
    failing(project)
    assert project.runner("run").code == 3
    page = project.runner("show", "latest", "--md").out
    assert page.startswith("## ❌ `trust`: step `fit` failed")
    assert "`KeyError: 'south'` in cell [3] of `notebooks/fit.ipynb`" in page
    assert "```python\nregions = {'north': size}\nregions['south']\n```" in page
    assert "runner debug" in page
    passed = project.runner("show", "thing/1", "--md").out
    assert "## ✅ `trust`: the gate passed" in passed
    assert "| ✅ | `fit.score` |" in passed
