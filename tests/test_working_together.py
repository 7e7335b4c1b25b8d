"""Notebooks in git: outputs stay on the screen, branches merge cell by cell, and only code counts as modified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import Done, command, environment
from support.projects import ROOT, Project, code, notebook, parameters, program, text

from runner.cli.git import install
from runner.notebook.source import code_cells
from runner.notebook.strip_outputs import cleaned

CELLS = (text("# Title"), parameters("x: int = 1"), "a = 1\nprint(a)", "middle = 0", "b = 2\nprint(b)")


def dumped(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def noisy(document: dict[str, Any], shown: str = "1") -> dict[str, Any]:
    """The notebook as Jupyter leaves it after Run All."""
    made: dict[str, Any] = json.loads(json.dumps(document))
    made["metadata"]["language_info"] = {"name": "python", "version": "3.11.9", "codemirror_mode": {"name": "ipython"}}
    made["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    for number, cell in enumerate(made["cells"], 1):
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [f"{shown}\n"]}]
            cell["metadata"] |= {"execution": {"iopub.execute_input": shown}, "collapsed": True, "scrolled": True}
            cell["metadata"]["jupyter"] = {"outputs_hidden": True}
    return made


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_that_ship_are_as_the_filter_leaves_them(path: Path) -> None:
    assert cleaned(path.read_bytes()) == path.read_bytes()


def test_what_executing_left_goes_and_what_the_author_wrote_stays() -> None:
    source = notebook(*CELLS)
    source["cells"][2]["metadata"] = {"tags": ["slow"], "jupyter": {"source_hidden": True}, "mine": 1}
    source["cells"][0]["attachments"] = {"plot.png": {"image/png": "iVBORw0KGgo="}}
    executed = noisy(source)
    executed["cells"][2]["metadata"]["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    executed["metadata"]["papermill"] = {"duration": 1.0}
    executed["cells"].insert(2, {**notebook(code("x = 9", "injected-parameters"))["cells"][0], "id": "in"})
    kept = json.loads(cleaned(dumped(executed)))
    assert kept == json.loads(cleaned(dumped(source)))
    assert [cell["id"] for cell in kept["cells"]] == [cell["id"] for cell in source["cells"]]
    assert kept["cells"][1]["metadata"] == {"tags": ["parameters"]}
    assert kept["cells"][2]["metadata"] == source["cells"][2]["metadata"]
    assert kept["cells"][2]["source"] == ["a = 1\n", "print(a)"]
    assert kept["cells"][0]["attachments"] == source["cells"][0]["attachments"]
    assert kept["metadata"]["language_info"] == {"name": "python"}


def test_the_name_a_machine_shows_for_its_kernel_is_no_change() -> None:
    other = notebook("1")
    other["metadata"]["kernelspec"]["display_name"] = ".venv (3.11.2)"
    assert cleaned(dumped(notebook("1"))) == cleaned(dumped(other))
    other = notebook("1", kernel="ir", language="R")
    assert json.loads(cleaned(dumped(other)))["metadata"]["kernelspec"] == other["metadata"]["kernelspec"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"cells": [{"cell_type": "code", "outputs": [',
        b'<<<<<<< HEAD\n{"cells": []}\n=======\n{}\n>>>>>>> other\n',
        b'{"nbformat": 3, "worksheets": []}',
        b'{"nbformat": 4, "cells": ["text"]}',
        b'{"nbformat": 4, "cells": [], "metadata": []}',
        b'\xef\xbb\xbf{"nbformat": 4, "cells": [], "metadata": {}}',
        b'{"nbformat": 4, "cells": [], "metadata": {"title": "\xe9"}}',
    ],
)
def test_what_is_no_complete_notebook_passes_byte_for_byte(content: bytes) -> None:
    assert cleaned(content) == content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
METADATA = st.dictionaries(
    st.text(max_size=5) | st.sampled_from(["tags", "collapsed", "jupyter", "kernelspec", "language_info"]), JSON
)
SOURCE = st.text(st.characters(), max_size=20)  # lone halves of surrogate pairs too


@settings(deadline=None, max_examples=50)
@given(
    metadata=METADATA, cells=st.lists(st.tuples(st.sampled_from(["code", "markdown"]), SOURCE, METADATA), max_size=4)
)
def test_cleaning_twice_changes_nothing_more_and_no_cell_is_lost(
    metadata: dict[str, Any], cells: list[tuple[str, str, dict[str, Any]]]
) -> None:
    made = [{"cell_type": kind, "source": source, "metadata": kept} for kind, source, kept in cells]
    document = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": made}
    once = cleaned(dumped(document))
    assert cleaned(once) == once
    assert once.endswith(b"\n}\n")
    kept = json.loads(once)
    written = json.loads(dumped(document))["cells"]  # JSON joins two halves of a pair that meet
    assert ["".join(cell["source"]) for cell in kept["cells"]] == [cell["source"] for cell in written]
    assert not any(cell.get("outputs") for cell in kept["cells"])


def test_the_layout_is_the_one_jupyter_saves() -> None:
    kept = cleaned(dumped(notebook(*CELLS, "print('é \u2028 \x0c')", ""))).decode()
    read = nbformat.reads(kept, as_version=4)
    nbformat.validate(read)
    assert nbformat.writes(read) + "\n" == kept


def test_the_filter_starts_without_what_only_other_commands_need() -> None:
    heavy = {"click", "msgspec", "rich", "nbformat", "papermill", "IPython"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command("clean-notebook")[1:]],
        input=dumped(noisy(notebook(*CELLS))),
        capture_output=True,
        check=True,
        env=environment(),
    )
    assert done.stdout == cleaned(dumped(notebook(*CELLS)))
    assert not heavy & {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}


@pytest.fixture
def repository(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in a git repository of its own, untouched by the settings of whoever runs this."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.com")
    git(project, "init", "-q", "-b", "main")
    return project


@pytest.fixture
def shared(repository: Project) -> Project:
    """The repository with one notebook, committed clean, and `setup-git` done."""
    install(repository.folder)
    commit(repository, notebook(*CELLS))
    return repository


def git(project: Project, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [program("git"), *arguments], cwd=project.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def status(project: Project) -> str:
    return git(project, "status", "--porcelain").rstrip("\n")


def write(project: Project, document: dict[str, Any] | bytes) -> Path:
    path = project.folder / "nb.ipynb"
    path.write_bytes(document if isinstance(document, bytes) else dumped(document))
    return path


def commit(project: Project, document: dict[str, Any] | bytes) -> Path:
    path = write(project, document)
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "a notebook")
    return path


def edited(number: int, source: str, shown: str = "") -> dict[str, Any]:
    """The notebook with another cell there, executed by hand."""
    cells: list[Any] = list(CELLS)
    cells[number] = source
    return noisy(notebook(*cells), shown or source)


def diverge(project: Project, one: dict[str, Any], main: dict[str, Any]) -> Path:
    """Commit a notebook on a branch `one` and another on `main`, which is then checked out."""
    git(project, "switch", "-q", "-c", "one")
    commit(project, one)
    git(project, "switch", "-q", "main")
    return commit(project, main)


def run_all(path: Path) -> None:
    """Run All and save, as Jupyter does it."""
    from nbclient import NotebookClient

    document = nbformat.read(path, as_version=4)
    NotebookClient(document, kernel_name="python3", timeout=60).execute()
    nbformat.write(document, path)


@pytest.mark.soak
def test_run_all_leaves_git_status_empty(shared: Project) -> None:
    path = shared.folder / "nb.ipynb"
    run_all(path)
    assert status(shared) == ""
    assert git(shared, "diff") == ""
    git(shared, "add", "-A")
    assert status(shared) == ""
    assert nbformat.read(path, as_version=4).cells[2].outputs  # still on the screen


@pytest.mark.soak
def test_an_edit_is_committed_without_outputs_and_stays_on_the_screen(shared: Project) -> None:
    path = write(shared, edited(2, "a = 100", "one"))
    assert status(shared) == " M nb.ipynb"
    shown = git(shared, "diff")
    assert "a = 100" in shown
    assert "outputs" not in shown
    git(shared, "commit", "-q", "-a", "-m", "edit")
    assert git(shared, "show", "HEAD:nb.ipynb").encode() == cleaned(path.read_bytes()) != path.read_bytes()
    write(shared, edited(2, "a = 100", "executed once more"))
    assert status(shared) == ""


@pytest.mark.soak
def test_other_branches_can_be_taken_in_while_outputs_are_on_the_screen(shared: Project) -> None:
    git(shared, "switch", "-q", "-c", "one")
    commit(shared, edited(2, "a = 100"))
    write(shared, edited(2, "a = 100", "executed once more"))
    git(shared, "switch", "-q", "main")
    write(shared, noisy(notebook(*CELLS), "executed on main"))
    assert status(shared) == ""
    git(shared, "merge", "-q", "one")
    write(shared, edited(2, "a = 100", "executed after the merge"))
    assert status(shared) == ""
    git(shared, "switch", "-q", "-c", "two", "HEAD~1")
    for name in ("first", "second"):
        (shared.folder / name).write_text(name)
        git(shared, "add", name)
        git(shared, "commit", "-q", "-m", name)
    write(shared, noisy(notebook(*CELLS), "executed before the rebase"))
    git(shared, "rebase", "-q", "main")
    assert code_cells(json.loads((shared.folder / "nb.ipynb").read_bytes()))[1] == "a = 100"
    assert status(shared) == ""


def test_no_change_hides_behind_an_executed_notebook(shared: Project) -> None:
    (shared.folder / "notes.txt").write_text("one")
    git(shared, "add", "notes.txt")
    git(shared, "commit", "-q", "-m", "notes")
    git(shared, "config", "feature.manyFiles", "true")
    write(shared, noisy(notebook(*CELLS), "executed"))
    assert status(shared) == ""
    for name in ("notes.txt", "new.txt"):
        (shared.folder / name).write_text("two")
    assert status(shared) == " M notes.txt\n?? new.txt"
    write(shared, edited(4, "b = 3", "executed"))
    assert status(shared) == " M nb.ipynb\n M notes.txt\n?? new.txt"
    (shared.folder / "nb.ipynb").unlink()
    assert status(shared) == " D nb.ipynb\n M notes.txt\n?? new.txt"


def test_a_change_within_the_second_of_a_commit_is_seen(shared: Project) -> None:
    """Its size and time are those of what was committed."""
    notes = shared.folder / "notes.txt"
    time.sleep(1 - time.time() % 1)
    notes.write_text("one")
    git(shared, "add", "notes.txt")
    notes.write_text("two")
    time.sleep(1 - time.time() % 1)
    assert status(shared) == "AM notes.txt"


@pytest.mark.soak
def test_two_branches_that_edit_different_cells_merge(shared: Project) -> None:
    path = diverge(shared, edited(2, "a = 100"), edited(4, "b = 200"))
    git(shared, "merge", "-q", "-m", "both", "one")
    assert status(shared) == ""
    merged = nbformat.read(path, as_version=4)
    nbformat.validate(merged)
    assert [cell.source for cell in merged.cells] == ["# Title", "x: int = 1", "a = 100", "middle = 0", "b = 200"]
    committed = git(shared, "show", "HEAD:nb.ipynb").encode()
    assert cleaned(committed) == committed


def test_two_branches_that_edit_the_same_cell_conflict_in_that_cell_of_a_valid_notebook(shared: Project) -> None:
    path = diverge(shared, edited(2, "a = 100"), edited(2, "a = 200"))
    git(shared, "merge", "-m", "both", "one", code=1)
    assert status(shared) == "UU nb.ipynb"
    merged = nbformat.read(path, as_version=4)
    nbformat.validate(merged)
    assert {"a = 100", "a = 200"} <= set(merged.cells[2].source.splitlines())
    assert shared.runner("setup-git").code == 0
    commit(shared, edited(2, "a = 300", "resolved"))
    assert status(shared) == ""


def removable_environment(folder: Path) -> Path:
    """Another environment with what this one has; its Python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    shutil.copyfile(Path(sys.prefix) / "pyvenv.cfg", folder / "pyvenv.cfg")
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    return folder / "bin" / "python"


@pytest.mark.soak
def test_without_its_environment_notebooks_are_added_compared_and_merged_and_all_can_be_taken_out(
    repository: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere") / "an environment"
    setup = [removable_environment(folder), "-P", "-m", "runner", "setup-git"]
    subprocess.run(setup, cwd=repository.folder, check=True, capture_output=True, env=environment())
    assert str(folder) in (repository.folder / ".git" / "hooks" / "runner-notebook").read_text()
    commit(repository, notebook(*CELLS))
    shutil.rmtree(folder)
    # any Python cleans
    commit(repository, edited(2, "a = 100", "secret"))
    assert "secret" not in git(repository, "show", "HEAD:nb.ipynb")
    assert "a = 100" in git(repository, "show", "HEAD:nb.ipynb")
    # without one, git adds what there is, and it is said
    programs = tmp_path_factory.mktemp("programs")
    for name in ("git", "sh", "mktemp", "cat", "cp", "rm", "dirname"):
        (programs / name).symlink_to(program(name))
    write(repository, edited(2, "a = 200", "seen"))
    done = subprocess.run(
        ["git", "add", "nb.ipynb"], cwd=repository.folder, env={**environment(), "PATH": str(programs)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "so a notebook is added with its outputs. Make it again, or: sh /" in done.stderr
    assert "seen" in git(repository, "show", ":nb.ipynb")
    # as text
    assert '+    "a = 200"' in git(repository, "diff", "--cached")
    git(repository, "reset", "-q", "--hard")
    commit(repository, notebook(*CELLS))
    diverge(repository, edited(2, "a = 3"), edited(4, "b = 200"))
    git(repository, "merge", "-q", "-m", "both", "one")
    assert {"a = 3", "b = 200"} <= set(code_cells(json.loads((repository.folder / "nb.ipynb").read_bytes())))
    git(repository, "config", "--get-regexp", "runner-notebook")
    undo = ["sh", ".git/hooks/runner-notebook", "undo"]
    subprocess.run(undo, cwd=repository.folder, check=True, capture_output=True, env=environment())
    git(repository, "config", "--get-regexp", "runner-notebook|fsmonitor", code=1)
    assert not list((repository.folder / ".git" / "hooks").glob("runner-notebook*"))
    # what is tracked stays: whoever undoes it commits that, or not
    assert (repository.folder / ".gitattributes").read_bytes() == b""
    assert status(repository) == " M .gitattributes"
    write(repository, noisy(notebook(*CELLS), "as it is"))
    git(repository, "add", "nb.ipynb")
    assert "as it is" in git(repository, "show", ":nb.ipynb")


def test_the_filter_goes_with_the_clone_when_it_is_moved(
    shared: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = Project(tmp_path_factory.mktemp("moved") / "to here")
    shutil.move(shared.folder, moved.folder)
    write(moved, edited(2, "a = 100", "secret"))
    git(moved, "commit", "-q", "-a", "-m", "moved")
    assert "secret" not in git(moved, "show", "HEAD:nb.ipynb")


def test_setup_again_changes_nothing_and_undo_leaves_what_was_there(repository: Project) -> None:
    attributes = repository.folder / ".gitattributes"
    hooks = repository.folder / ".git" / "hooks"
    attributes.write_text("*.csv text\n*.png binary")
    (hooks / "post-commit").write_text("#!/bin/sh\ntouch committed\n")
    (hooks / "post-commit").chmod(0o755)

    def everything() -> dict[str, str]:
        files = [attributes, repository.folder / ".git" / "config", *(p for p in hooks.iterdir() if p.suffix == "")]
        return {path.name: path.read_text() for path in files}

    before = everything()
    done = repository.runner("setup-git")
    assert done.code == 0, done.err
    assert "commit .gitattributes" in done.out
    after = everything()
    assert after[".gitattributes"].splitlines()[:2] == ["*.csv text", "*.png binary"]
    assert len(after[".gitattributes"].splitlines()) == 3
    assert "(was there)" in repository.runner("setup-git").out
    assert everything() == after
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-q", "-m", "first")
    assert (repository.folder / "committed").exists()
    assert "commit .gitattributes" not in repository.runner("setup-git").out

    assert repository.runner("setup-git", "--undo").code == 0
    before[".gitattributes"] += "\n"
    assert everything() == before
    assert repository.runner("setup-git", "--undo").code == 0


def test_what_the_clone_has_of_its_own_stays_and_is_named(repository: Project) -> None:
    git(repository, "config", "core.fsmonitor", "true")
    (repository.folder / ".git" / "info").mkdir(exist_ok=True)
    (repository.folder / ".git" / "info" / "attributes").write_text("*.ipynb filter=other\n")
    done = repository.runner("setup-git")
    assert done.code == 0
    assert "its own core.fsmonitor" in done.out
    assert "filter is other" in done.out
    assert repository.runner("setup-git", "--undo").code == 0
    assert git(repository, "config", "core.fsmonitor") == "true\n"


@pytest.mark.soak
def test_notebooks_committed_with_outputs_are_named_and_can_be_brought_in_line(repository: Project) -> None:
    commit(repository, noisy(notebook(*CELLS)))
    (repository.folder / "sub folder").mkdir()
    done = repository.runner("setup-git", cwd=repository.folder / "sub folder")
    assert "nb.ipynb. Bring them in line with `git add --renormalize '*.ipynb'`" in done.out
    git(repository, "add", "--renormalize", "*.ipynb")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-q", "-m", "without outputs")
    assert "in line" not in repository.runner("setup-git").out
    assert status(repository) == ""


def test_setup_turns_an_executed_notebook_into_an_unmodified_one_and_undo_turns_it_back(repository: Project) -> None:
    commit(repository, cleaned(dumped(notebook(*CELLS))))
    write(repository, noisy(notebook(*CELLS)))
    listed = sorted((repository.folder / ".git" / "hooks").iterdir())
    assert repository.runner("setup-git").code == 0
    assert status(repository) == "?? .gitattributes"
    assert repository.runner("setup-git", "--undo").code == 0
    assert status(repository) == ""
    write(repository, noisy(notebook(*CELLS), "saved once more"))
    assert status(repository) == " M nb.ipynb"
    assert sorted((repository.folder / ".git" / "hooks").iterdir()) == listed


def test_outside_a_repository_setup_says_so(project: Project) -> None:
    done = project.runner("setup-git", env={"GIT_CEILING_DIRECTORIES": str(project.folder.parent)})
    assert done.code == 2
    assert "is in no git repository" in done.err


def test_help_shows_setup_with_an_example_and_hides_the_plumbing(project: Project) -> None:
    listed = project.runner("--help").out
    assert "setup-git" in listed
    assert "clean-notebook" not in listed
    for name in ("setup-git", "clean-notebook"):
        assert f"Example:\n    runner {name}" in project.runner(name, "--help").out


def test_a_run_counts_a_notebook_as_modified_when_its_code_is(repository: Project) -> None:
    (repository.folder / ".gitignore").write_text("/runs/\n__pycache__/\n")
    repository.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    commit(repository, notebook(*CELLS))

    def run(document: dict[str, Any]) -> tuple[Done, dict[str, Any]]:
        write(repository, document)
        done = repository.runner("run", "--json")
        assert done.code == 0, done.err
        manifest = json.loads((repository.folder / "runs" / done.json["run"] / "run.json").read_text())
        return done, manifest["git"]

    done, state = run(noisy(notebook(text("# Another title"), *CELLS[1:])))
    assert (state["modified"], state["dirty"], "modified" in done.err) == ({}, False, False)
    done, state = run(edited(4, "b = 3\nprint(b)"))
    assert (state["modified"], state["dirty"]) == ({"nb.ipynb": ["[4]"]}, False)
    assert "(1 notebook modified)" in done.err
