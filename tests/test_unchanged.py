"""A run of which nothing has changed: the way back answers exactly as the ordinary way, or not at all.

Drawn changes of a project, its store, git, environment and packages are made one after the other. After each, the way
back is asked first; what it answers is compared with what the ordinary way answers then: every file of the run's
folder, both outputs and the exit code. Both run in forks of one process that has everything imported, so that hundreds
of changes take no longer than some runs.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.commands import environment
from support.projects import Project, parameters, program, recorded
from support.some import some

from runner.cli.git import install
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion
from runner.records import Artifact, FileFact

DECLINED = 99
# asked as a line of JSON on stdin; both ways as `runner.__main__` goes them
ASKED = f"""
import json, os, site, sys
import runner.__main__, runner.cli, runner.cli.run, runner.cli.fast_path, runner.run.orchestrate, runner.step.local
import runner.pipeline.plan, runner.cli.display, runner.cli.reporting, runner.run.fast_path
site_folder = sys.argv[1]
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        for number in (1, 2):
            os.dup2(os.open(asked["said"] + str(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        site.addsitedir(site_folder)  # as an interpreter that starts now
        sys.argv = ["runner", "run", *asked["arguments"]]
        code = 1
        try:
            if asked["way"] == "ordinary":
                code = runner.cli.entry(sys.argv[1:])
            else:
                runner.cli.entry = lambda arguments: {DECLINED}
                runner.__main__.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stdout.flush()
            os._exit(code or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
TOML = """
name = "drawn"
[parameters]
level = 2
[steps.first]
notebook = "first.ipynb"
inputs.source = "./link.csv"
inputs.kept = { from = "./kept.csv", keep = true }
inputs.extra = { from = "./extra.csv", optional = true }
outputs = { table = "t.csv", parts = "parts/" }
parameters = { token = "env:DRAWN_TOKEN" }
[steps.second]
notebook = "second.ipynb"
inputs = { table = "first.table", champion = "approved:drawn" }
[[gate]]
metric = "second.n"
min = 1
[profiles.other]
parameters = { level = 3 }
"""
FIRST = (
    "import helper, pathlib\nimport pack",
    "try:\n    import drawnlib\nexcept ImportError:\n    pass",
    "pathlib.Path(table).write_text(helper.clean(open(source).read()) + open('config.yml').read())",
    "pathlib.Path(parts).mkdir(exist_ok=True)\npathlib.Path(parts, 'one').write_text(str(level))",
)


@dataclass
class Answer:
    code: int
    out: str
    err: str
    run: str
    files: dict[str, str]


@dataclass
class Drawn:
    """A project in some place of some repository, and the process that runs it."""

    project: Project
    top: Path  # of the work tree; the project's folder where there is no repository
    scratch: Path
    process: subprocess.Popen[str]
    packages: Path
    random: random.Random
    variables: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    number: int = 0

    def ask(self, way: str) -> Answer | None:
        """What that way answers; None where it leaves it to the other."""
        before = set(self.project.runs)
        said = self.scratch / "said"
        line = {
            "cwd": str(self.project.folder),
            "environment": {**environment(), "DRAWN_TOKEN": "s3cret", **self.variables},
            "arguments": self.arguments,
            "way": way,
            "said": str(said),
        }
        for name in [name for name, value in self.variables.items() if value == ""]:
            line["environment"].pop(name)  # type: ignore[attr-defined]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        made = [run for run in self.project.runs if run not in before]
        if code == DECLINED:
            assert not made
            return None
        out, err = (Path(f"{said}{number}").read_text() for number in (1, 2))
        assert len(made) <= 1
        run = made[0].name if made else "no run"
        files = contents(made[0]) if made else {}
        return Answer(code, masked(out, run), masked(err, run), run, files)

    def git(self, *arguments: str, cwd: Path | None = None) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
        subprocess.run([program("git"), *author, *arguments], cwd=cwd or self.top, check=False, capture_output=True)

    def write(self, name: str, text: str) -> None:
        path = self.project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def new(self) -> int:
        self.number += 1
        return self.number


def contents(run: Path) -> dict[str, str]:
    """Every file, folder and link in a run's folder, with what differs from run to run left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name == "lock":
            found[name] = "a folder" if path.is_dir() else "a lock"
        else:
            text = path.read_bytes().decode("utf-8", "surrogateescape")
            found[name] = masked(text, run.name) + f" mode {path.stat().st_mode & 0o777:o}"
    return found


def masked(text: str, run: str) -> str:
    text = re.sub(rf"(runner report ){run.rpartition('-')[2]}\b", r"\1SHORT", text.replace(run, "RUN"))
    text = re.sub(r'^( "(?:started|ended)": )".*"', r"\1TIME", text, flags=re.M)  # the manifest's own, not its steps'
    return re.sub(r"(RUN · |ended</th><td>|started</th><td>)[\d-]+ [\d:]+ UTC", r"\1TIME", text)


def set_up(drawn: Drawn) -> None:
    folder = drawn.project.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "a.csv": "a\n1\n",
        "b.csv": "b\n2\n",
        "kept.csv": "k\n",
        "config.yml": "x: 1\n",
        "helper.py": "def clean(rows):\n    return rows.strip()\n",
        "pack/__init__.py": "from . import inner\n",
        "pack/inner.py": "y = 1\n",
        "README.md": "text\n",
    }.items():
        drawn.write(name, text)
    (folder / "link.csv").symlink_to("a.csv")
    first(drawn)
    second(drawn)
    drawn.project.toml(TOML)
    (drawn.top / ".gitignore").write_text("runs/\n__pycache__/\n")


def first(drawn: Drawn, *more: str) -> None:
    cell = 'source: str = ""\nkept: str = ""\nextra: str = ""\ntable: str = ""\nparts: str = ""\nlevel: int = 1\n'
    drawn.project.write("first.ipynb", parameters(cell + 'token: str = ""  # secret'), *FIRST, *more)


def second(drawn: Drawn, *more: str) -> None:
    cell = 'table: str = ""\nchampion: str = ""\nlevel: int = 1'
    drawn.project.write("second.ipynb", parameters(cell), recorded("n", "len(open(table).read()) + level"), *more)


# where the project lies


def plain(drawn: Drawn) -> None:
    set_up(drawn)


def at_the_top(drawn: Drawn) -> None:
    set_up(drawn)
    drawn.git("init", "-q", "-b", "main")
    drawn.git("add", ".")
    drawn.git("commit", "-qm", "a")


def in_a_subfolder(drawn: Drawn) -> None:
    drawn.top = drawn.project.folder
    drawn.project = Project(drawn.top / "some folder")
    at_the_top(drawn)


def in_a_worktree(drawn: Drawn) -> None:
    main = drawn.scratch / "main"
    own = drawn.project
    drawn.project, drawn.top = Project(main), main
    at_the_top(drawn)
    drawn.git("worktree", "add", "-q", str(own.folder), "-b", "beside")
    drawn.project, drawn.top = own, own.folder


def in_a_submodule(drawn: Drawn) -> None:
    own, inner = drawn.project, drawn.scratch / "inner"
    drawn.project, drawn.top = Project(inner), inner
    at_the_top(drawn)
    outer = own.folder
    drawn.git("init", "-q", "-b", "outer", cwd=outer)
    drawn.git("submodule", "add", "-q", str(inner), "part", cwd=outer)
    drawn.git("commit", "-qam", "with a part", cwd=outer)
    drawn.project, drawn.top = Project(outer / "part"), outer / "part"


def with_reftable(drawn: Drawn) -> None:
    set_up(drawn)
    drawn.git("init", "-q", "-b", "main", "--ref-format=reftable")
    drawn.git("add", ".")
    drawn.git("commit", "-qm", "a")


def without_a_commit(drawn: Drawn) -> None:
    set_up(drawn)
    drawn.git("init", "-q")


PLACES = [plain, at_the_top, in_a_subfolder, in_a_worktree, in_a_submodule, without_a_commit, with_reftable]


# what changes; each gives what takes it back, where something must


Undo = Callable[[], object] | None
Change = Callable[[Drawn], Undo]


def edited(name: str) -> Change:
    def change(drawn: Drawn) -> Undo:
        path = drawn.project.folder / name
        if path.exists():
            path.write_text(path.read_text() + f"# {drawn.new()}\n")
        return None

    return change


def touched(name: str) -> Change:
    return lambda drawn: os.utime(drawn.project.folder / name)


def replaced_by_the_same(name: str) -> Change:
    def change(drawn: Drawn) -> Undo:
        path = drawn.project.folder / name
        shutil.copy(path, drawn.scratch / "copy")
        shutil.move(drawn.scratch / "copy", path)
        return None

    return change


def changed_behind_the_back(drawn: Drawn) -> Undo:
    """Same size, and the time set back."""
    path = drawn.project.folder / drawn.random.choice(["helper.py", "a.csv", "config.yml", "first.ipynb"])
    times, text = path.stat(), path.read_text()
    path.write_text(text.replace("1", "7", 1) if "1" in text else text.replace("7", "1", 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return None


def another_source(drawn: Drawn) -> Undo:
    link = drawn.project.folder / "link.csv"
    target = "b.csv" if link.readlink() == Path("a.csv") else "a.csv"
    link.unlink()
    link.symlink_to(target)
    return None


def optional_source(drawn: Drawn) -> Undo:
    path = drawn.project.folder / "extra.csv"
    path.unlink() if path.exists() else path.write_text("e\n")
    return None


def new_module(drawn: Drawn) -> Undo:
    """A file that an import would find now."""
    name = drawn.random.choice(
        ["drawnlib.py", "pack/helper.py", "pathlib/__init__.py", "pack.py", "drawnlib/__init__.py"]
    )
    drawn.write(name, "z = 1\n")
    path = drawn.project.folder / name
    return lambda: shutil.rmtree(path.parent) if path.name == "__init__.py" else path.unlink()


def shadow(drawn: Drawn) -> Undo:
    drawn.write("runner.py", "")
    return (drawn.project.folder / "runner.py").unlink


def no_source(drawn: Drawn) -> Undo:
    path = drawn.project.folder / "kept.csv"
    text = path.read_text()
    path.unlink()
    return lambda: path.write_text(text)


def a_pipe_for_a_file(drawn: Drawn) -> Undo:
    path = drawn.project.folder / "kept.csv"
    text = path.read_text()
    path.unlink()
    os.mkfifo(path)

    def undo() -> None:
        path.unlink()
        path.write_text(text)

    return undo


def prose(drawn: Drawn) -> Undo:
    path = drawn.project.folder / "second.ipynb"
    document = json.loads(path.read_text())
    document["metadata"]["drawn"] = drawn.new()
    path.write_text(json.dumps(document))
    return None


def other_code(drawn: Drawn) -> Undo:
    drawn.random.choice([first, second])(drawn, f"other = {drawn.random.randrange(3)}")
    return None


def toml(drawn: Drawn) -> Undo:
    level = drawn.random.randrange(3)
    drawn.project.toml(TOML.replace("level = 2", f"level = {level}") + "\n# one more\n" * drawn.random.randrange(2))
    return None


def arguments(drawn: Drawn) -> Undo:
    drawn.arguments = drawn.random.choice(
        [[], ["--json"], ["--tag", "t"], ["-m", "@run@ 4c"], ["--profile", "other"], ["first"], ["-p", "level=5"],
         ["--no-register"], ["--pipeline", "pipeline.toml"], ["-j", "2"]]
    )  # fmt: skip
    return None


def forced(drawn: Drawn) -> Undo:
    kept, drawn.arguments = drawn.arguments, ["--force"]
    drawn.ask("ordinary")
    drawn.arguments = kept
    return None


def collected(drawn: Drawn) -> Undo:
    drawn.project.runner("gc", "--keep", str(drawn.random.choice([1, 2, 5])))
    return None


def run_removed(drawn: Drawn) -> Undo:
    if runs := drawn.project.runs:
        shutil.rmtree(drawn.random.choice(runs[-2:]))
    return None


def in_a_run_removed(drawn: Drawn) -> Undo:
    if runs := drawn.project.runs:
        files = [path for path in runs[-1].rglob("*") if path.is_file() and path.name not in ("run.json", "lock")]
        drawn.random.choice(files).unlink()
    return None


def in_a_run_altered(drawn: Drawn) -> Undo:
    """By a writer that replaces the file, so that the object stays as it was."""
    if runs := drawn.project.runs:
        tables = [path for path in runs[-1].rglob("t.csv") if path.is_file()]
        for path in tables[:1]:
            path.unlink()
            path.write_text("altered")
    return None


def object_altered(drawn: Drawn) -> Undo:
    objects = sorted((drawn.project.folder / "runs" / "objects").iterdir())
    path = drawn.random.choice(objects)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"#")
    return None


def cache_damaged(drawn: Drawn) -> Undo:
    entries = sorted((drawn.project.folder / "runs" / "cache").glob("*/*.json"))
    if entries:
        path = drawn.random.choice(entries)
        path.write_bytes(path.read_bytes()[:-9])
    return None


def registry(drawn: Drawn) -> Undo:
    """A version is registered, approved or revoked."""
    local = LocalRegistry(drawn.project.folder / "runs" / "registry.db")
    known = list(local.list())
    open_ = [version for version in known if version.status != "rejected"]
    if open_ and drawn.random.random() < 0.6:
        version = drawn.random.choice(open_)
        decision = "rejected" if version.status == "approved" else "approved"
        local.decide("drawn", version.version, decision, who="a", why="b")  # type: ignore[arg-type]
        return None
    table = drawn.project.manifest["steps"][0]["result"]["outputs"]["table"] if drawn.project.runs else None
    if table is not None:
        fact = FileFact(sha256=table["sha256"], size_bytes=table["size_bytes"])
        model = Artifact(path="steps/first/out/t.csv", sha256=fact.sha256, size_bytes=fact.size_bytes)
        run = f"20200101-000000-{drawn.new():04x}"
        local.register(
            NewVersion(name="drawn", run=run, sha256=fact.sha256, artifact=model, metrics={}, created_by="a")
        )
    return None


def git(*arguments: str) -> Change:
    return lambda drawn: drawn.git(*[part.replace("NEW", f"b{drawn.new()}") for part in arguments])


def attributes(drawn: Drawn) -> Undo:
    """What git compares by is another: line ends, or a filter that takes out what was changed."""
    rules = ["", "*.csv text eol=crlf\n", "*.csv filter=drawn\n", "*.md filter=drawn\n"]
    (drawn.top / ".gitattributes").write_text(drawn.random.choice(rules))
    drawn.git("config", "filter.drawn.clean", drawn.random.choice(["cat", "grep -v '^# '", "sed s/1/2/"]))
    return None


def cleaned_notebooks(drawn: Drawn) -> Undo:
    """As `setup-git` does it, and a notebook that was executed by hand."""
    if not (drawn.top / ".git").exists():
        return None
    install(drawn.top)
    path = drawn.project.folder / "second.ipynb"
    document = json.loads(path.read_text())
    document["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": str(drawn.new())}]
    path.write_text(json.dumps(document))
    return None


def unborn(drawn: Drawn) -> Undo:
    drawn.git("checkout", "-q", "--orphan", f"o{drawn.new()}")
    return lambda: drawn.git("checkout", "-q", "-f", "-B", f"back{drawn.new()}", "main")


def another_repository(drawn: Drawn) -> Undo:
    """GIT_DIR names one with other commits."""
    other = drawn.scratch / f"other{drawn.new()}"
    other.mkdir()
    drawn.git("init", "-q", "-b", "elsewhere", cwd=other)
    drawn.git("commit", "-qm", "x", "--allow-empty", cwd=other)
    drawn.variables["GIT_DIR"] = str(other / ".git")
    return lambda: drawn.variables.pop("GIT_DIR")


def variable(name: str, *values: str) -> Change:
    """Set to one of the values, or unset; taken back so that not all that follows is refused."""

    def change(drawn: Drawn) -> Undo:
        drawn.variables[name] = drawn.random.choice(values)
        return lambda: drawn.variables.pop(name, None)

    return change


def package(drawn: Drawn) -> Undo:
    """Installed, upgraded or removed: imported by the notebook, or by nobody; also as an editable one."""
    name = drawn.random.choice(["drawnlib", "nobodys"])
    there = list(drawn.packages.glob(f"{name}-*.dist-info"))
    for folder in there:
        shutil.rmtree(folder)
    if not there or drawn.random.random() < 0.7:
        made = drawn.packages / f"{name}-{drawn.new()}.dist-info"
        made.mkdir()
        (made / "METADATA").write_text(f"Name: {name}\nVersion: {drawn.number}\nRequires-Dist: click\n")
        if drawn.random.random() < 0.5:
            (made / "RECORD").write_text(f"__editable__.{name}.pth,,\n")
            (made / "top_level.txt").write_text(f"{name}\n")
            (drawn.packages / f"__editable__.{name}.pth").write_text(f"{drawn.scratch}\n")
        else:
            (made / "RECORD").write_text(f"{name}/__init__.py,,\n")
    return None


def path_file(drawn: Drawn) -> Undo:
    """A .pth file with a further folder, which has a package."""
    other = drawn.scratch / f"site{drawn.new()}"
    (other / f"drawnlib-{drawn.new()}.dist-info").mkdir(parents=True)
    file = drawn.packages / "further.pth"
    file.unlink() if file.exists() else file.write_text(f"{other}\n")
    return None


FILES = ("a.csv", "b.csv", "kept.csv", "config.yml", "helper.py", "pack/inner.py", "README.md")
GIT = (
    "commit -qam all", "commit -q --amend -m NEW", "add -A", "tag main", "checkout -q -b NEW", "branch -m NEW", "gc -q",
    "pack-refs --all", "stash -q", "commit -q --allow-empty -m x", "rm -q --cached README.md", "checkout -q --detach",
    "update-index --assume-unchanged README.md", "config core.autocrlf true", "config --unset core.autocrlf",
    "status", "checkout -q -- .", "symbolic-ref HEAD refs/other/NEW",
)  # fmt: skip
VARIABLES = {
    "TZ": ("UTC", "Asia/Tokyo"), "OMP_NUM_THREADS": ("1", "2"), "UNRELATED": ("1",), "RUNNER_NO_REPORT": ("0", "1"),
    "RUNNER_KERNEL": ("standard", "nonsense"), "DRAWN_TOKEN": ("", "other"), "LOGNAME": ("somebody",),
    "HOME": ("/nowhere",), "GIT_WORK_TREE": ("/tmp",), "GIT_INDEX_FILE": ("/nowhere/index",), "PATH": ("/nowhere",),
    "GIT_CEILING_DIRECTORIES": ("/",),
}  # fmt: skip
CHANGES: dict[str, Change] = {
    **{f"{name} is edited": edited(name) for name in FILES},
    **{f"{name} is touched": touched(name) for name in (*FILES[:5], "first.ipynb", "pipeline.toml")},
    **{f"{name} is replaced by the same": replaced_by_the_same(name) for name in (*FILES[:5], "second.ipynb")},
    **{f"git {words}": git(*words.split()) for words in GIT},
    **{f"{name} is set": variable(name, *values) for name, values in VARIABLES.items()},
    **{
        change.__name__: change
        for change in (
            changed_behind_the_back, another_source, optional_source, new_module, shadow, no_source, a_pipe_for_a_file,
            prose, other_code, toml, arguments, forced, collected, run_removed, in_a_run_removed, in_a_run_altered,
            object_altered, cache_damaged, registry, unborn, another_repository, package, path_file, attributes,
            cleaned_notebooks,
        )
    },
    "nothing": lambda _: None,
}  # fmt: skip
OFTEN = {"nothing": 16, "arguments": 3, "registry": 3, "package": 4, "path_file": 2}


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    packages = tmp_path / "packages"
    packages.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED, str(packages)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        yield process, packages
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def walk(place: Callable[[Drawn], None], seed: int, steps: int, asking: Any, tmp_path: Path) -> tuple[int, int]:
    """(how often the way back answered, how often it was asked) along a walk of drawn changes."""
    process, packages = asking
    folder, scratch = tmp_path / "project", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    drawn = Drawn(Project(folder), folder, scratch, process, packages, random.Random(seed))
    place(drawn)
    answered, told = 0, [f"{place.__name__}, seed {seed}"]
    for _ in range(steps):
        weights = [OFTEN.get(name, 1) for name in CHANGES]
        names = drawn.random.choices(list(CHANGES), weights, k=drawn.random.choice([1, 1, 2]))
        undo = [CHANGES[name](drawn) for name in names]
        told.append(" and ".join(names))
        for what in ("changed", "left"):
            quick = drawn.ask("back")
            if quick is None and what == "left":
                break
            slow = drawn.ask("ordinary")
            if quick is not None:
                answered += 1
                assert slow is not None
                same(quick, slow, [*told, what])
                break
        for back in reversed(undo):
            if callable(back):
                back()
    return answered, steps


def same(quick: Answer, slow: Answer, told: list[str]) -> None:
    where = "\n".join(told[-4:])
    assert (quick.code, quick.out, quick.err) == (slow.code, slow.out, slow.err), where
    assert sorted(quick.files) == sorted(slow.files), where
    for name, text in quick.files.items():
        assert text == slow.files[name], f"{name}, {where}"


@pytest.mark.parametrize("place", some(PLACES[:5], [plain]), ids=lambda place: place.__name__)
def test_the_way_back_answers_as_the_ordinary_way_or_not_at_all(
    place: Callable[[Drawn], None], asking: Any, tmp_path: Path
) -> None:
    answered, asked = walk(place, 7, 8, asking, tmp_path)
    assert answered >= asked // 4, "the way back is hardly ever taken"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_the_way_back_answers_as_the_ordinary_way_through_hundreds_of_changes(
    place: Callable[[Drawn], None], seed: int, asking: Any, tmp_path: Path
) -> None:
    answered, asked = walk(place, seed, 30, asking, tmp_path)
    assert answered > asked // 5
