"""What a person sees: a live display on a terminal, plain lines in a log, and help with an example for every command."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest
from support.commands import command, environment
from support.projects import Project, parameters

from runner.cli import COMMANDS, HIDDEN


def on_a_terminal(project: Project, *arguments: str, columns: int = 100) -> tuple[int, str]:
    """The command's exit code and what a terminal of that width would show, without its colours."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    process = subprocess.Popen(
        command(*arguments),
        cwd=project.folder,
        env=environment({"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "30"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(timeout=60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def two_steps(project: Project, *cells: str) -> None:
    project.write("a.ipynb", parameters("x: int = 1"), "import time\ntime.sleep(0.4)", *cells)
    project.write("b.ipynb", parameters("x: int = 1"), "y = x")
    project.toml('name = "two"\n[steps.a]\nnotebook = "a.ipynb"\n[steps.b]\nnotebook = "b.ipynb"\nafter = ["a"]\n')


def test_a_terminal_shows_each_step_as_it_goes_on(project: Project) -> None:
    two_steps(project)
    code, shown = on_a_terminal(project, "run")
    assert code == 0, shown
    assert "no verdict: pipeline.toml has no [[gate]]" in shown
    assert "▸ a" in shown
    assert re.search(r"[12]/2 cells  00:0\d  \[2\] import time", shown)
    last = [line for line in shown.splitlines() if "✓ " in line][-2:]
    assert [line.split()[1] for line in last] == ["a", "b"]
    assert "no verdict: pipeline.toml has no [[gate]]" in shown
    assert "Traceback" not in shown


LONG = "def ranked(frame, by='all charges', ascending=False): raise ValueError('not 21 columns\\nmissing: tenure')"


def test_a_failing_step_says_its_exception_first_and_whole_then_the_cell_and_the_next_command(project: Project) -> None:
    two_steps(project, f"{LONG}\nranked(None)")
    code, shown = on_a_terminal(project, "run", columns=80)
    assert code == 3
    # the live line, of which a terminal shows no more than its width
    live = next(line for line in shown.splitlines() if "✗ a " in line)
    assert re.match(r"  ✗ a +ValueError: not 21 columns   cell \[3\] def ranked", live)
    assert len(live) <= 80
    whole = (
        f"run failed\n  ✗ a: ValueError: not 21 columns\n      missing: tenure\n    in cell [3] of a.ipynb: {LONG}\n"
    )
    assert whole in shown.replace("\r\n", "\n")
    assert re.search(r"look: runner debug [0-9a-f]{4} a +then edit a.ipynb and `runner run`", shown)
    logged = project.runner("run", "--json")
    assert whole in logged.err
    error = logged.json["steps"][0]["error"]
    assert (error["ename"], error["evalue"]) == ("ValueError", "not 21 columns\nmissing: tenure")
    assert (error["cell"], error["kind"], "error" in logged.json["steps"][1]) == (3, "exception", False)
    assert whole in project.runner("show", "latest").out


@pytest.mark.parametrize("name", [name for name, (_, line) in COMMANDS.items() if line != HIDDEN])
def test_every_command_has_help_with_an_example(project: Project, name: str) -> None:
    done = project.runner(name, "--help")
    assert done.code == 0
    assert f"runner {name}" in done.out.partition("Example:")[2]


def test_the_list_of_commands_names_all_of_them_and_an_unknown_one_the_nearest(project: Project) -> None:
    done = project.runner("--help")
    for name, (_, line) in COMMANDS.items():
        assert (f"  {name} " in done.out) == (line != HIDDEN)
    wrong = project.runner("aprove")
    assert (wrong.code, "approve" in wrong.err) == (2, True)
