"""How a cell's end is told: errors that show no error output, exit(), widgets' messages, a kernel that says nothing."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.commands import Done
from support.projects import PAGES, Project, code, notebook, parameters

from runner.records import FORKED, STANDARD, StepError, StepJob, StepResult, encode
from runner.step.local import LocalExecutor

Cell = dict[str, Any] | str
Execute = Callable[..., tuple[StepResult, list[dict[str, Any]]]]

TASK = (
    "import asyncio\nasync def fails(): raise ValueError('in a task')\n"
    "async with asyncio.TaskGroup() as tasks:\n    tasks.create_task(fails())"
)
# the notebook's text does not say that it needs the standard kernel: a cell does, in mid-run
WIDGETS_UNSEEN = "import importlib\nipywidgets = importlib.import_module('ipywidgets')"


@pytest.fixture(scope="module", params=[FORKED, STANDARD])
def execute(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execute]:
    """Executes cells by a kernel of the kind; the step's result and the executed code cells."""
    executor = LocalExecutor(kernel=request.param)

    def run(*cells: Cell, **job: Any) -> tuple[StepResult, list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp("step")
        (folder / "modules").mkdir()
        (folder / "notebook.ipynb").write_text(json.dumps(notebook(*cells)))
        wanted = StepJob(
            run="r", step="s", notebook="n", parameters={}, outputs={}, kernel=request.param, timeout_s=100, **job
        )
        (folder / "job.json").write_bytes(encode(wanted))
        result = executor.run(folder, cwd=None, stop=threading.Event(), on_progress=lambda _: None)
        made = nbformat.read(folder / "executed.ipynb", as_version=4)
        nbformat.validate(made)
        return result, made.cells

    yield run
    executor.close()


def told(result: StepResult) -> StepError:
    assert result.status == "failed"
    assert result.error is not None
    return result.error


@pytest.mark.cases(6)
@pytest.mark.parametrize(
    ("source", "name", "said", "shown"),
    [
        (TASK, "ExceptionGroup", "unhandled errors in a TaskGroup (1 sub-exception): ValueError: in a task", "ValueError: in a task"),
        ("raise BaseExceptionGroup('both', [SystemExit(3)])", "BaseExceptionGroup", "both (1 sub-exception): SystemExit: 3", "Exit: 3"),
        ("raise ExceptionGroup('a', [ExceptionGroup('b', [OSError(1), OSError(2)]), OSError(3), OSError(4)])", "ExceptionGroup",
         "a (3 sub-exceptions): OSError: 1; OSError: 2; OSError: 3 … (4 in all)", "OSError: 4"),
        ("%nope", "UsageError", "Line magic function `%nope` not found.", "%nope"),
        ("%%nope\n1", "UsageError", "Cell magic `%%nope` not found.", "%%nope"),
        ("get_ipython().set_custom_exc((OSError,), lambda *_, **__: None)\nraise OSError('unseen')", "OSError", "unseen", ""),
        ("import asyncio\nasync with asyncio.timeout(.01): await asyncio.sleep(1)", "TimeoutError", "", "TimeoutError"),
        ("import asyncio\nawait asyncio.wait_for(asyncio.sleep(1), .01)", "TimeoutError", "", "TimeoutError"),
    ],
)  # fmt: skip
def test_an_error_is_told_as_that_error_whatever_the_cell_shows_of_it(
    execute: Execute, source: str, name: str, said: str, shown: str
) -> None:
    result, cells = execute("print('before')", source, "print('after')")
    error = told(result)
    assert (error.kind, error.ename, error.evalue, error.cell) == ("exception", name, said, 2)
    assert shown in "\n".join(error.traceback)
    assert [cell.metadata.papermill.status for cell in cells] == ["completed", "failed", "pending"]


def test_an_error_shown_and_survived_is_not_taken_for_the_one_that_ended_the_cell(execute: Execute) -> None:
    shown = "class Odd:\n    def _repr_html_(self): raise ValueError('no html')\n"
    result, _ = execute(f"{shown}display(Odd())\nraise ExceptionGroup('rows', [KeyError('k')])")
    error = told(result)
    assert (error.ename, error.evalue) == ("ExceptionGroup", "rows (1 sub-exception): KeyError: 'k'")
    assert "no html" not in "\n".join(error.traceback[:1])


@pytest.mark.parametrize("where", ["first", "last", "in a cell that awaits"])
def test_exit_ends_the_notebook_in_its_own_cell(execute: Execute, tmp_path: Path, where: str) -> None:
    leaves = {"in a cell that awaits": "import asyncio\nawait asyncio.sleep(0)\nquit()"}.get(where, "exit()")
    at_exit = f"import atexit, pathlib\natexit.register(pathlib.Path({str(tmp_path / 'left')!r}).touch)"
    after = [] if where == "last" else ["print('still here')", "import time; time.sleep(2)"]
    result, cells = execute(at_exit, leaves, *after)
    error = told(result)
    assert (error.kind, error.ename, error.cell) == ("stopped early", "SystemExit", 2)
    assert "exit()" in error.evalue
    assert [cell.metadata.papermill.status for cell in cells] == ["completed", "failed", *["pending"] * len(after)]
    assert (tmp_path / "left").exists()


def test_an_exit_that_keeps_the_kernel_keeps_it(execute: Execute) -> None:
    result, cells = execute("exit(keep_kernel=True)", "print('still here')")
    assert result.status == "succeeded"
    assert cells[1].outputs[0].text == "still here\n"


def test_an_error_is_an_exception_to_the_command_line_too(project: Project, one_step: Callable[..., Done]) -> None:
    done = one_step("raise ExceptionGroup('two rows', [ValueError(1), KeyError('x')])", "never = 1")
    assert done.code == 3
    assert "ExceptionGroup: two rows (2 sub-exceptions): ValueError: 1; KeyError: 'x'" in done.err
    assert project.step("only")["result"]["error"]["kind"] == "exception"


@pytest.mark.cases(2)
@pytest.mark.parametrize("imports", ["import ipywidgets", WIDGETS_UNSEEN])
def test_cells_that_print_into_a_widget_end(execute: Execute, imports: str) -> None:
    result, cells = execute(*widget_cells(imports, 12))
    assert result.status == "succeeded"
    assert result.kernel == STANDARD
    lines = "".join(f"line {n}\\n" for n in range(12))
    assert lines in cells[-2].outputs[0].data["text/plain"].replace("'\n \"", "").replace("\n", "")


@pytest.mark.soak
def test_cells_that_print_into_a_widget_end_fifty_times(execute: Execute) -> None:
    for _ in range(50):
        assert execute(*widget_cells("import ipywidgets", 20))[0].status == "succeeded"


def widget_cells(imports: str, lines: int) -> list[Cell]:
    """The last but one cell's result is what the widget holds."""
    shows = "@ipywidgets.interact(x=(0, 5))\ndef shown(x=3): print('x is', x)"
    prints = [f"with out: print('line {n}')" for n in range(lines)]
    nested = "with ipywidgets.Output():\n    print('a')\n    with ipywidgets.Output(): print('b')\n    print('c')"
    return [f"{imports}\nout = ipywidgets.Output()", shows, *prints, nested, "out.outputs[0]['text']", "'after'"]


def test_a_widgets_message_that_nobody_understands_is_the_cells_error(execute: Execute) -> None:
    opens = "from comm import create_comm\ncreate_comm(target_name='jupyter.widget', data={'no': 'state'})"
    result, cells = execute(opens, "never = 1")
    error = told(result)
    assert (error.kind, error.ename, error.cell) == ("exception", "KernelMessageError", 1)
    assert "comm_open" in error.evalue
    assert [cell.metadata.papermill.status for cell in cells] == ["failed", "pending"]


def test_what_is_shown_under_a_type_of_text_is_stored_as_text(project: Project) -> None:
    bundle = (
        "class Shown:\n    def _repr_mimebundle_(self, **_):\n"
        "        return {'text/plain': 'p', 'application/x': {'k': [1]}, 'application/x+json': {'k': [1]}}\nShown()"
    )
    project.write(
        "nb.ipynb",
        bundle,
        "handle = display({'text/plain': 5, 'text/html': ['a', 'b']}, raw=True, display_id='h')",
        "display({'text/plain': None}, raw=True, display_id='h', update=True)",
    )
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    for kernel in (FORKED, STANDARD):
        done = project.runner("run", "--kernel", kernel, env=PAGES)
        assert done.code == 0, done.err
        made = project.executed("only")
        nbformat.validate(nbformat.from_dict(made))
        first, second = made["cells"][0]["outputs"][0]["data"], made["cells"][1]["outputs"][0]["data"]
        assert first == {"text/plain": ["p"], "application/x": '{"k": [1]}', "application/x+json": {"k": [1]}}
        assert second == {}  # nothing was to be shown
        assert (project.runs[-1] / "report.html").exists()


def test_half_a_character_in_a_source_is_found_before_anything_runs(project: Project) -> None:
    project.write("nb.ipynb", "x = 1", "y = 'caf\ud83d'")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    for command in ("check", "run"):
        done = project.runner(command)
        assert done.code == 2
        assert r"nb.ipynb: cells[1].source: '\ud83d' is half of a character" in done.err
    project.write("nb.ipynb", "y = 'whole: \U0001f600'\ny")
    assert project.runner("run").code == 0


def test_tags_and_kernel_names_mean_what_they_mean_to_papermill(project: Project, tmp_path: Path) -> None:
    made = notebook(parameters("x = 1"), "x", code("1 / 0", "skip-execution"), code("1 / 0", "raises-exception"))
    for name, metadata in {
        "named": {"kernelspec": {"name": "python", "display_name": "Python"}},
        "nameless": {"language_info": {"name": "python"}},
        "bare": {},
    }.items():
        (project.folder / f"{name}.ipynb").write_text(json.dumps({**made, "metadata": metadata}))
    place = tmp_path / "jupyter" / "kernels" / "other"
    place.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "other", "language": "other"}))
    ours = "import os\nsorted(name for name in os.environ if name.startswith('RUNNER_'))"
    project.write("foreign.ipynb", ours, kernel="other", language="other")
    given = "".join(
        f'[steps.{name}]\nnotebook = "{name}.ipynb"\nparameters = {{ x = 2 }}\n'
        for name in ("named", "nameless", "bare")
    )
    project.toml(f'name = "p"\n{given}[steps.foreign]\nnotebook = "foreign.ipynb"\n')
    done = project.runner("run", env={"JUPYTER_PATH": str(tmp_path / "jupyter")})
    assert done.code == 0, done.err
    for name in ("named", "nameless", "bare"):
        cells = project.executed(name)["cells"]
        assert cells[2]["outputs"][0]["data"]["text/plain"] == ["2"]
        assert (cells[3]["outputs"], cells[4]["outputs"][0]["ename"]) == ([], "ZeroDivisionError")
    shown = project.executed("foreign")["cells"][0]["outputs"][0]["data"]["text/plain"]
    assert "".join(shown) == "['RUNNER_NO_REPORT', 'RUNNER_STEP_FOLDER']"
