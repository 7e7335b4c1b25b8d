"""One notebook, executed for real: what happened is what is said to have happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nbformat import NotebookNode
from support.commands import Done, command, environment
from support.projects import Project, children_of, code, parameters, text
from support.some import some

from runner.notebook.redaction import Redactor
from runner.records import StepJob
from runner.step.outcome import out_of_memory_count, why_ended

Run = Callable[..., Done]


def error(project: Project) -> dict[str, object]:
    found: dict[str, object] = project.step("only")["result"]["error"]
    return found


def statuses(project: Project) -> list[str]:
    return [cell["metadata"]["papermill"]["status"] for cell in project.executed("only")["cells"]]


def test_a_notebook_that_reaches_its_end_succeeds_with_its_outputs_and_numbers(project: Project, one_step: Run) -> None:
    done = one_step(text("# prose"), "y = x + 1", "print(y); y", toml="parameters = { x = 4 }")
    assert done.code == 0
    assert project.step("only")["status"] == "succeeded"
    cells = project.executed("only")["cells"]
    outputs = cells[-1]["outputs"]
    assert outputs[0]["text"] == ["5\n"]
    assert outputs[1]["data"]["text/plain"] == ["5"]
    # the injected cell takes no number, so that cells are named as after Run All of the source
    assert [cell.get("execution_count") for cell in cells] == [1, None, None, 2, 3]
    assert project.step("only")["result"]["cells_run"] == 3


def test_an_exception_names_the_cell_as_after_run_all_and_leaves_the_rest_unrun(
    project: Project, one_step: Run
) -> None:
    done = one_step("a = 1", "table = {}\ntable['region']", "never = 1", toml="parameters = { x = 2 }")
    assert done.code == 3
    found = error(project)
    assert (found["kind"], found["ename"], found["evalue"]) == ("exception", "KeyError", "'region'")
    assert (found["cell"], found["first_line"]) == (3, "table = {}")
    assert statuses(project)[-2:] == ["failed", "pending"]
    assert "runner run" in done.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os; os._exit(7)", "exited with code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
    ],
)
def test_a_kernel_that_dies_is_told_with_its_signal_and_cell(
    project: Project, one_step: Run, source: str, said: str
) -> None:
    done = one_step("a = 1", source, "never = 1")
    assert done.code == 6
    found = error(project)
    assert found["kind"] == "kernel died"
    assert said in str(found["evalue"])
    assert found["cell"] == 3
    assert statuses(project)[-2:] == ["failed", "pending"]


@pytest.mark.parametrize(
    "source", ["import sys; sys.exit(0)", "raise SystemExit", "exit()\nimport time; time.sleep(1)"]
)
def test_leaving_early_is_no_success(project: Project, one_step: Run, source: str) -> None:
    done = one_step(source, "import time; time.sleep(3)\nnever = 1")
    assert done.code == 3
    assert error(project)["kind"] == "stopped early"


def test_leaving_in_the_last_cell_is_no_success_either(project: Project, one_step: Run) -> None:
    assert one_step("import sys; sys.exit(0)").code == 3
    assert error(project)["kind"] == "stopped early"


def test_memory_used_up_is_told_apart_from_an_exception(project: Project, one_step: Run) -> None:
    done = one_step(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\nx = bytearray(8 << 30)"
    )
    assert done.code == 3
    assert error(project)["ename"] == "MemoryError"


@pytest.mark.parametrize(("killed", "kind"), [(True, "out of memory"), (False, "kernel died")])
def test_a_kernel_killed_while_memory_ran_out_is_told_apart_from_another_kill(killed: bool, kind: str) -> None:
    session: Any = SimpleNamespace(ending="died", index=0, exit_code=-signal.SIGKILL, last_words="", error=None)
    cell: Any = NotebookNode(cell_type="code", source="x = huge()", execution_count=None, outputs=[])
    job = StepJob(run="r", step="s", notebook="n", parameters={}, outputs={})
    found = why_ended(session, [cell], job, out_of_memory=killed, redactor=Redactor())
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/job", "sys/fs/cgroup/job/memory.events"),
        ("0::/outside/name", "sys/fs/cgroup/memory.events"),
        ("4:cpu:/\n3:memory:/job\n0::/", "sys/fs/cgroup/memory/job/memory.oom_control"),
        ("3:memory:/outside/name", "sys/fs/cgroup/memory/memory.oom_control"),
    ],
)
def test_another_containers_memory_is_not_taken_for_ours(tmp_path: Path, group: str, file: str) -> None:
    def put(name: str, content: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    put("proc/vmstat", "nr_free_pages 1\noom_kill 9\n")
    assert out_of_memory_count(tmp_path) == 9
    put("proc/self/cgroup", group + "\n")
    assert out_of_memory_count(tmp_path) == 9
    put(file, "under_oom 0\noom_kill 2\noom_group_kill 0\n")
    assert out_of_memory_count(tmp_path) == 2


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A control group with 1 GB of memory, below this process's own."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    root = Path("/sys/fs/cgroup")
    first = next((root / "memory" / path.lstrip("/") for _, what, path in lines if what == "memory"), None)
    second = next((root / path.lstrip("/") for number, _, path in lines if number == "0"), root)
    place = (first or second) / f"runner-test-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (place / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(1 << 30))
        if (place / "memory.swap.max").exists():
            (place / "memory.swap.max").write_text("0")
        yield place
    except OSError as error:
        pytest.skip(f"no control group limits memory here: {error}")
    finally:
        until = time.monotonic() + 30
        while place.exists():  # what was killed in it may not be gone yet
            try:
                place.rmdir()
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.1)


@pytest.mark.soak
@pytest.mark.parametrize("kernel", ["forked", "standard"])
def test_a_kernel_that_uses_its_memory_up_is_out_of_memory(project: Project, little_memory: Path, kernel: str) -> None:
    project.write("nb.ipynb", "x = bytearray(3 << 30)")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    inside = f'echo $$ > {little_memory}/cgroup.procs; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", inside, "sh", *command("run", "--kernel", kernel)],
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert error(project)["kind"] == "out of memory"


@pytest.mark.soak
@pytest.mark.parametrize("key", some(["cell_timeout_s", "timeout_s"], ["cell_timeout_s"]))
def test_an_endless_loop_that_ignores_interrupts_is_ended_in_time(project: Project, one_step: Run, key: str) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"
    done = one_step(stubborn, "never = 1", toml=f"{key} = {1.0 if key == 'cell_timeout_s' else 4.0}")
    assert done.code == 6
    assert error(project)["kind"] == "timeout"
    assert key in str(error(project)["evalue"])
    assert statuses(project)[-2:] == ["failed", "pending"]


def test_a_cell_that_is_interrupted_for_time_shows_where_it_was(project: Project, one_step: Run) -> None:
    done = one_step("import time\ntime.sleep(60)", toml="cell_timeout_s = 1.0")
    assert done.code == 6
    assert "KeyboardInterrupt" in json.dumps(project.executed("only")["cells"][-1]["outputs"])


def test_endless_printing_is_capped_with_a_note(project: Project, one_step: Run) -> None:
    done = one_step("line = 'x' * 999 + '\\n'\nfor _ in range(60_000): print(line, end='')", "print('after')")
    assert done.code == 0
    path = project.runs[-1] / "steps" / "only" / "executed.ipynb"
    assert path.stat().st_size < 3_000_000
    cells = project.executed("only")["cells"]
    assert "capped: this cell wrote more than 1,000,000 characters" in "".join(cells[-2]["outputs"][0]["text"])
    assert cells[-1]["outputs"][0]["text"] == ["after\n"]


def test_what_subprocesses_and_c_libraries_print_is_kept(project: Project, one_step: Run) -> None:
    done = one_step(
        "!echo from-shell",
        "import os; os.system('echo from-system')",
        "os.write(1, b'from-c\\n')\nimport time; time.sleep(.3)",
    )
    assert done.code == 0
    shown = json.dumps(project.executed("only")["cells"])
    assert "from-shell" in shown
    assert "from-system" in shown
    assert "from-c" in shown


def test_an_expected_exception_lets_the_rest_run_and_the_step_succeed(project: Project, one_step: Run) -> None:
    done = one_step(code("1 / 0", "raises-exception"), "after = 1")
    assert done.code == 0
    assert statuses(project)[-1] == "completed"


def test_an_output_that_is_not_written_fails_the_step(project: Project) -> None:
    project.write("nb.ipynb", parameters('table: str = ""\nmodel: str = ""'), "open(table, 'w').write('x')")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\noutputs = { table = "t.csv", model = "model/" }\n')
    assert project.runner("run").code == 3
    found = error(project)
    assert found["kind"] == "output missing"
    assert "`model`" in str(found["evalue"])


def test_an_input_changed_while_the_step_runs_fails_it(project: Project) -> None:
    (project.folder / "in.csv").write_text("1")
    project.write(
        "nb.ipynb", parameters('source: str = ""'), f"open({str(project.folder / 'in.csv')!r}, 'w').write('2')"
    )
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\ninputs = { source = "./in.csv" }\n')
    assert project.runner("run").code == 3
    assert error(project)["kind"] == "input changed"


def test_retries_run_a_failed_step_again_up_to_their_number(project: Project, one_step: Run) -> None:
    marker = project.folder / "tries"
    source = f"from pathlib import Path\np = Path({str(marker)!r})\nn = len(p.read_text()) if p.exists() else 0\np.write_text('x' * (n + 1))\nassert n >= 2"
    assert one_step(source, toml="retries = 1").code == 3
    assert marker.read_text() == "xx"
    marker.unlink()
    assert one_step(source, toml="retries = 2").code == 0
    assert project.step("only")["attempt"] == 3


def test_a_kernel_that_is_not_installed_is_named_with_those_that_are(project: Project) -> None:
    project.write("nb.ipynb", "print(1)", kernel="cobol", language="cobol")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    done = project.runner("run")
    assert done.code == 2
    assert "cobol" in done.err
    assert "not installed" in done.err


def test_a_kernel_name_that_exists_nowhere_else_is_no_obstacle_for_python(project: Project) -> None:
    project.write("nb.ipynb", "import sys; print(sys.executable)", kernel="conda-env-studio-py")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    assert project.runner("run").code == 0


def test_a_run_that_is_killed_leaves_no_kernel_and_reads_as_interrupted(project: Project) -> None:
    project.write(
        "nb.ipynb",
        "import subprocess, time\nsubprocess.Popen(['sleep', '300'])\nopen('started', 'w').close()\ntime.sleep(300)",
    )
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    process = project.start("run")
    wait_for(project.folder / "started")
    family = list(children_of(process.pid))
    assert len(family) >= 2
    process.kill()
    process.communicate()
    gone(family)
    shown = project.runner("show", "latest", "--json")
    assert shown.json["status"] == "interrupted"
    assert shown.json["steps"][0]["status"] == "interrupted"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_ends_its_kernel_and_says_so(project: Project, number: int, code: int) -> None:
    project.write("nb.ipynb", "import time\nopen('started', 'w').close()\ntime.sleep(300)", "never = 1")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    process = project.start("run", "--json")
    wait_for(project.folder / "started")
    family = list(children_of(process.pid))
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert json.loads(out)["status"] == "interrupted"
    assert project.step("only")["status"] == "interrupted"
    gone(family)


def test_a_step_folder_runs_by_itself(project: Project, one_step: Run) -> None:
    assert one_step("print(x)", toml="parameters = { x = 3 }").code == 0
    import sys

    folder = project.runs[-1] / "steps" / "only"
    (folder / "executed.ipynb").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "runner.step", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "result.json").read_text())["status"] == "succeeded"
    assert project.executed("only")["cells"][-1]["outputs"][0]["text"] == ["3\n"]


def test_folders_with_spaces_other_letters_and_long_names_work(tmp_path: Path) -> None:
    project = Project(tmp_path / "mein Ordner – données" / ("x" * 150))
    project.folder.mkdir(parents=True)
    project.write("nötebook 1.ipynb", parameters('out: str = ""'), "open(out, 'w').write('ü')")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nötebook 1.ipynb"\noutputs = { out = "mein ergebnis.txt" }\n')
    done = project.runner("run", "--json")
    assert done.code == 0, done.err
    assert (project.runs[-1] / "steps" / "only" / "out" / "mein ergebnis.txt").read_text() == "ü"


def test_modules_beside_the_notebook_are_the_runs_own_copies(project: Project) -> None:
    (project.folder / "helper.py").write_text("VALUE = 1\n")
    project.write("nb.ipynb", "import helper; print(helper.VALUE, helper.__file__)")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    assert project.runner("run").code == 0
    shown = project.executed("only")["cells"][-1]["outputs"][0]["text"][0]
    assert "/steps/only/modules/helper.py" in shown
    assert not (project.runs[-1] / "steps" / "only" / "modules" / "__pycache__").exists()


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def gone(processes: list[int]) -> None:
    """All of them ended within five seconds (a zombie is nobody's child here and has ended)."""
    give_up = time.monotonic() + 5
    left = processes
    while left and time.monotonic() < give_up:
        left = [pid for pid in left if alive(pid)]
        time.sleep(0.1)
    assert not left, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
