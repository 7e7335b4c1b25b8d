"""papermill's own users with `engine_name="runner"`: what their options do, what is kept, what they are told."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.cli import papermill as papermill_cli
from papermill.exceptions import PapermillException, PapermillExecutionError
from papermill.iorw import papermill_io
from support.executed import without_ports
from support.projects import code, notebook

Cell = dict[str, Any] | str


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*cells: Cell, to: str | None = "out.ipynb", engine: str | None = "runner", **options: Any) -> Any:
    Path("in.ipynb").write_text(json.dumps(notebook(*cells, kernel="python3")))
    with without_ports() as config:
        options |= {} if engine else {"config": config}
        return papermill.execute_notebook("in.ipynb", to, engine_name=engine, progress_bar=False, **options)


def code_cells(nb: Any) -> list[Any]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def written(path: str = "out.ipynb") -> Any:
    made = nbformat.read(path, as_version=4)
    nbformat.validate(made)
    return made


def statuses(nb: Any) -> list[str]:
    return [cell.metadata.papermill.status for cell in code_cells(nb)]


class Shelf:
    """A store of papermill's that is not a folder: `shelf://name`."""

    def __init__(self) -> None:
        self.written: dict[str, list[str]] = {}

    def read(self, path: str) -> str:
        return self.written[path][-1]

    def write(self, buf: str, path: str) -> None:
        self.written.setdefault(path, []).append(buf)

    def listdir(self, path: str) -> list[str]:
        return list(self.written)

    def pretty_path(self, path: str) -> str:
        return path


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made, before = Shelf(), list(papermill_io._handlers)
    papermill_io.register("shelf://", made)
    yield made
    papermill_io._handlers[:] = before


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("ends", "options", "raises"),
    [
        ("import os; os.kill(os.getpid(), 9)", {}, DeadKernelError),
        ("import time; time.sleep(60)", {"execution_timeout": 1}, CellTimeoutError),
        ("import sys; sys.exit(0)", {}, PapermillExecutionError),
        ("1 / 0", {}, PapermillExecutionError),
    ],
)
def test_a_notebook_in_another_store_is_kept_however_it_ended(
    shelf: Shelf, ends: str, options: dict[str, Any], raises: type[Exception]
) -> None:
    with pytest.raises(raises):
        run("print('done')", ends, "never = 1", to="shelf://out.ipynb", **options)
    kept = nbformat.reads(shelf.written["shelf://out.ipynb"][-1], as_version=4)
    assert statuses(kept) == ["completed", "failed", "pending"]
    assert code_cells(kept)[0].outputs[0].text == "done\n"


@pytest.mark.soak
def test_a_long_notebook_in_another_store_is_kept_while_it_runs(shelf: Shelf) -> None:
    run("import time\nprint('early', flush=True); time.sleep(2)", to="shelf://out.ipynb", autosave_cell_every=0.5)
    kept = [nbformat.reads(text, as_version=4).cells[0] for text in shelf.written["shelf://out.ipynb"]]
    assert ("running", "early\n") in {
        (cell.metadata.papermill.status, output.text) for cell in kept for output in cell.outputs
    }
    assert kept[-1].metadata.papermill.status == "completed"


@pytest.mark.soak
def test_without_autosave_a_long_cell_is_written_once_it_has_ended(shelf: Shelf) -> None:
    run("import time; time.sleep(7)", to="shelf://out.ipynb", autosave_cell_every=0)
    assert all("running" not in text for text in shelf.written["shelf://out.ipynb"])


@pytest.mark.parametrize(
    "source", ["import sys; sys.exit(0)", "exit()", "raise ExceptionGroup('rows', [KeyError('k')])"]
)
def test_papermills_markers_show_where_it_ended(source: str) -> None:
    with pytest.raises(PapermillExecutionError) as raised:
        run("print('done')", source, "never = 1")
    made = written()
    assert [cell.cell_type for cell in made.cells] == ["markdown", "code", "markdown", "code", "code"]
    assert 'href="#papermill-error-cell">In [2]' in made.cells[0].source
    assert 'id="papermill-error-cell"' in made.cells[2].source
    assert statuses(made) == ["completed", "failed", "pending"]
    assert raised.value.exec_count == 2
    assert str(raised.value).rstrip().endswith(f"{raised.value.ename}: {raised.value.evalue}")


def test_what_papermill_keeps_out_of_files_is_kept_out() -> None:
    source = notebook("import sys; sys.exit(0)", kernel="python3")
    for cell in source["cells"]:
        del cell["id"]
        cell["metadata"]["trusted"] = True
    Path("old.ipynb").write_text(json.dumps({**source, "nbformat_minor": 2}))
    with pytest.raises(PapermillExecutionError):
        papermill.execute_notebook("old.ipynb", "out.ipynb", engine_name="runner", progress_bar=False)
    made = json.loads(Path("out.ipynb").read_text())
    assert not {"orig_nbformat", "orig_nbformat_minor", "signature"} & made["metadata"].keys()
    assert "trusted" not in made["cells"][-1]["metadata"]


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("exit()", 1, "the cell called exit()"),
        ("import sys; sys.exit(3)", 1, "SystemExit"),
        ("raise ExceptionGroup('two rows', [KeyError('k')])", 1, "two rows (1 sub-exception)"),
        ("import os; os._exit(0)", 138, "the kernel process exited"),
    ],
)
def test_papermills_exit_codes_are_the_same_whatever_comes_after(source: str, code: int, said: str) -> None:
    Path("in.ipynb").write_text(json.dumps(notebook(source, "import time; time.sleep(1)", kernel="python3")))
    done = CliRunner().invoke(papermill_cli, ["--engine", "runner", "--no-progress-bar", "in.ipynb", "out.ipynb"])
    assert done.exit_code == code
    assert said in done.output + str(done.exception)
    assert [cell.execution_count for cell in code_cells(written())] == [1, None]


def test_nbclients_options_are_honoured() -> None:
    heard: list[tuple[str, int]] = []
    first = run(
        code("skipped = 1", "mine"),
        code("tagged = 'runs'", "skip-execution"),
        "print('a'); import sys; print('e', file=sys.stderr); print('b')",
        "tagged, 'skipped' in globals()",
        "pass",
        skip_cells_with_tag="mine",
        coalesce_streams=True,
        record_timing=False,
        on_cell_executed=lambda cell, cell_index, execute_reply: heard.append(
            (execute_reply["content"]["status"], cell_index)
        ),
        on_notebook_start=lambda notebook: heard.append(("start", len(notebook.cells))),
    )
    assert first.cells[3].outputs[0].data["text/plain"] == "('runs', False)"
    assert [(out.name, out.text) for out in first.cells[2].outputs] == [("stdout", "a\nb\n"), ("stderr", "e\n")]
    assert all("execution" not in cell.metadata for cell in first.cells)
    assert heard == [("start", 5), ("ok", 1), ("ok", 2), ("ok", 3), ("ok", 4)]


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        ({"allow_errors": True}, [1, 2, 3]),
        ({"allow_error_names": ["ZeroDivisionError"]}, [1, 2, 3]),
        ({"allow_error_names": ["KeyError"]}, [1, None, None]),
        ({"allow_errors": True, "force_raise_errors": True}, [1, None, None]),
    ],
)
@pytest.mark.soak
def test_errors_are_allowed_as_nbclient_allows_them(options: dict[str, Any], ran: list[int | None]) -> None:
    counts = []
    for engine in ("runner", None):
        with pytest.raises(PapermillExecutionError):  # papermill goes by the outputs in either case
            run("1 / 0", "print('next')", "'end'", engine=engine, **options)
        counts.append([cell.execution_count for cell in code_cells(written())])
    assert counts == [ran, ran]


@pytest.mark.soak
def test_a_cell_that_is_interrupted_for_time_lets_the_next_one_run() -> None:
    slow = "import time\ntime.sleep(60)"
    with pytest.raises(PapermillExecutionError):
        run(slow, "'next'", execution_timeout=1, interrupt_on_timeout=True, allow_errors=True)
    first, second = code_cells(written())
    assert first.outputs[-1].ename == "KeyboardInterrupt"
    assert second.outputs[0].data["text/plain"] == "'next'"
    said = {"ename": "TooSlow", "evalue": "a second", "traceback": []}
    with pytest.raises(PapermillExecutionError):
        run(slow, "'next'", execution_timeout=1, interrupt_on_timeout=True, error_on_timeout=said)
    assert statuses(written()) == ["failed", "pending"]


def test_a_cell_has_the_time_that_a_function_gives_it() -> None:
    with pytest.raises(CellTimeoutError, match="after 1 seconds"):
        run("'quick'", "import time\ntime.sleep(60)", timeout_func=lambda cell: 1 if "sleep" in cell.source else None)
    assert statuses(written()) == ["completed", "failed"]


@pytest.mark.parametrize("name", ["km", "kernel_manager_class"])
def test_what_the_engine_cannot_honour_it_refuses(name: str) -> None:
    from jupyter_client.manager import KernelManager

    with pytest.raises(PapermillException, match=f"takes no {name}"):
        run("open('ran', 'w').close()", **{name: KernelManager})
    assert not Path("ran").exists()


@pytest.mark.soak
def test_a_kernel_that_never_says_how_a_cell_ended_is_not_waited_for_for_ever() -> None:
    dumb = (
        "session = get_ipython().kernel.session\nspeak = session.send\n"
        "session.send = lambda stream, kind, *args, **more: None if kind == 'execute_reply' else "
        "speak(stream, kind, *args, **more)"
    )
    with pytest.raises(DeadKernelError, match="did not say how the cell has ended"):
        run("import ipywidgets", dumb, "never = 1", iopub_timeout=1)
    assert statuses(written()) == ["completed", "failed", "pending"]


def test_output_is_logged_where_papermill_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="papermill"):
        logging.getLogger("papermill").addHandler(caplog.handler)
        try:
            run("print('on stdout')\n'a result'", log_output=True)
        finally:
            logging.getLogger("papermill").removeHandler(caplog.handler)
    said = [record.getMessage().strip() for record in caplog.records if record.name == "papermill"]
    assert {"on stdout", "'a result'"} <= set(said)


def kernelspec(folder: Path, name: str, argv: list[str], **more: Any) -> None:
    place = folder / "jupyter" / "kernels" / name
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": "python", **more}))


@pytest.mark.soak
def test_kernels_are_found_as_papermill_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("SAID", "by the runner")
    ipykernel = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernelspec(tmp_path, "frozen", [ipykernel[0], "-Xfrozen_modules=off", *ipykernel[1:]])
    kernelspec(tmp_path, "own", [*ipykernel, "--IPKernelApp.exec_lines=asked = 1"], env={"OWN": "${SAID}, asked"})
    kind = "'forked' in type(get_ipython().kernel.session).__module__"
    for name, forked in (("python", True), ("frozen", True)):
        assert run(kind, kernel_name=name).cells[0].outputs[0].data["text/plain"] == str(forked)
    own = run(f"import os\nasked, os.environ['OWN'], {kind}", kernel_name="own")
    assert own.cells[0].outputs[0].data["text/plain"] == "(1, 'by the runner, asked', False)"
    nameless = notebook("1")
    del nameless["metadata"]["kernelspec"]
    Path("nameless.ipynb").write_text(json.dumps(nameless))
    for engine in ("runner", None):
        with pytest.raises(ValueError, match="No kernel name found in notebook and no override provided"):
            papermill.execute_notebook("nameless.ipynb", "out.ipynb", engine_name=engine, progress_bar=False)


@pytest.mark.parametrize("arguments", [[], ["--IPKernelApp.exec_lines=asked = 1"]])
def test_neither_history_nor_environment_are_the_users_where_the_standard_kernel_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    history = tmp_path / "ipython" / "profile_default" / "history.sqlite"
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    looks = "import os\n[name for name in os.environ if name.startswith('RUNNER_')]"
    made = run("import ipywidgets", looks, "'asked' in globals()", extra_arguments=arguments)
    assert made.cells[1].outputs[0].data["text/plain"] == "[]"
    assert made.cells[2].outputs[0].data["text/plain"] == str(bool(arguments))
    if history.exists():
        with sqlite3.connect(history) as connection:
            assert connection.execute("select count(*) from history").fetchone() == (0,)


def test_it_runs_where_a_loop_runs_already() -> None:
    """As in a cell of another notebook."""

    async def execute() -> Any:
        return run("import asyncio\nawait asyncio.sleep(0)\n'slept'", "1 / 0")

    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        asyncio.run(execute())
    assert code_cells(written())[0].outputs[0].data["text/plain"] == "'slept'"


@pytest.mark.soak
@pytest.mark.parametrize("late", [False, True])
def test_a_notebook_that_executes_another_is_interrupted_with_it(late: bool) -> None:
    slow = "from pathlib import Path\nimport os, time\nPath('pid').write_text(str(os.getpid())); time.sleep(300)"
    imports = "import importlib\nimportlib.import_module('ipywidgets').IntSlider()" if late else "1"
    Path("child.ipynb").write_text(json.dumps(notebook(imports, slow, kernel="python3")))
    inner = "papermill.execute_notebook('child.ipynb', 'child-out.ipynb', engine_name='runner', progress_bar=False)"
    with pytest.raises(CellTimeoutError):
        run("import papermill", inner, execution_timeout=8)
    stat = Path("/proc", Path("pid").read_text(), "stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody has asked for its code
    assert statuses(written("child-out.ipynb")) == ["completed", "failed"]
