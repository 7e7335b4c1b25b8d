"""Kernels forked from a server: what each has of its own, what sends a notebook to the standard kernel, what ends them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from papermill.cli import papermill as papermill_cli
from support.commands import environment
from support.projects import ROOT, Project, children_of, code, notebook, recorded

from runner.kernel.choose import Imports, needs_standard
from runner.kernel.process_tree import descendants, kill, own_children
from runner.notebook.source import read_notebook
from runner.records import StepJob, StepResult, encode
from runner.step.local import LocalExecutor

Cell = dict[str, Any] | str

# a runner of its own, to be killed: executes the step folders that it is given
RUNNER = """
import sys, threading
from pathlib import Path
from runner.step.local import LocalExecutor
executor = LocalExecutor(kernel=sys.argv[1])
folders = [Path(name) for name in sys.argv[2:]]
executor.prepare(folders[0], cwd=None, threads=0)
print("prepared", flush=True)
for folder in folders:
    executor.run(folder, cwd=None, stop=threading.Event(), on_progress=lambda _: None)
executor.close()
"""


def step(folder: Path, *cells: Cell, modules: dict[str, str] | None = None, **job: Any) -> Path:
    """A step folder made of the cells."""
    (folder / "modules").mkdir(parents=True)
    for name, source in (modules or {}).items():
        (folder / "modules" / name).write_text(source)
    (folder / "notebook.ipynb").write_text(json.dumps(notebook(*cells)))
    wanted = StepJob(run="r", step=folder.name, notebook="n", **{"parameters": {}, "outputs": {}, "threads": 2, **job})
    (folder / "job.json").write_bytes(encode(wanted))
    return folder


@contextmanager
def executor(kernel: str = "forked", project: Path | None = None) -> Iterator[LocalExecutor]:
    made = LocalExecutor(project, kernel=kernel)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def forked() -> Iterator[LocalExecutor]:
    """One executor, and so one fork server, for tests that leave it as it is."""
    with executor() as made:
        yield made


def run(made: LocalExecutor, folder: Path, stop: threading.Event | None = None) -> StepResult:
    return made.run(folder, cwd=None, stop=stop or threading.Event(), on_progress=lambda _: None)


def cells(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "executed.ipynb").read_text())["cells"]
    return found


def shown(folder: Path, index: int = -1) -> str:
    """What a cell printed, or its result."""
    outputs = cells(folder)[index]["outputs"]
    return "".join(
        line for output in outputs for line in output.get("text", output.get("data", {}).get("text/plain", []))
    )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs a module of that name and source, as far as the runner and its kernels can tell."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda name, source: (place / f"{name}.py").write_text(source) and None


def gone(processes: list[int], within_s: float = 5) -> None:
    give_up = time.monotonic() + within_s
    while left := [pid for pid in processes if alive(pid)]:
        assert time.monotonic() < give_up, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(place: Path) -> set[int]:
    """All that came from `started` with folders there, whoever is their parent now."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"STARTED_BY={place}\0".encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found


def appeared(path: Path) -> None:
    give_up = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < give_up, f"{path} did not appear"
        time.sleep(0.02)


def test_libraries_are_there_before_the_first_cell_also_those_imported_in_functions(
    tmp_path: Path, forked: LocalExecutor
) -> None:
    folder = step(
        tmp_path / "s",
        "import sys\nloaded = set(sys.modules)",
        "import helper\ndef later():\n    import sklearn.metrics\n    return sklearn",
        "'sklearn.metrics' in loaded, 'helper' in loaded, helper.VALUE, len(__import__('threading').enumerate())",
        modules={"helper.py": "VALUE = 3\n"},
    )
    assert run(forked, folder).kernel == "forked"
    assert shown(folder).startswith("(True, False, 3, ")


def test_each_kernel_has_random_numbers_a_group_and_an_environment_of_its_own(
    tmp_path: Path, forked: LocalExecutor
) -> None:
    look = (
        "import os, random, numpy as np, uuid\nimport numpy.random\n"
        "print(random.random(), np.random.rand(), uuid.uuid4(), os.getpid())\n"
        "print(os.getpgrp() == os.getpid(), hash('order'), os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])\n"
        "print(sorted(name for name in os.environ if name.startswith('RUNNER_')), 'JE_ARROW_MALLOC_CONF' in os.environ)\n"
        "import signal; print(signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGIO), signal.getsignal(signal.SIGTERM))\n"
        "import gc; print(gc.isenabled(), os.getcwd())"
    )
    folders = [step(tmp_path / name, look) for name in ("a", "b")]
    for folder in folders:
        assert run(forked, folder).error is None
    first, second = (shown(folder).splitlines() for folder in folders)
    assert not set(first[0].split()) & set(second[0].split())
    assert first[1] == second[1]
    assert first[1].startswith("True ")
    assert first[1].endswith(" 2 2")
    assert first[2] == "['RUNNER_STEP_FOLDER'] False"
    assert first[3] == "0 0 0" or "SIG_DFL" in first[3]
    assert first[4] == f"True {folders[0] / 'modules'}"


def test_linear_algebra_has_the_threads_of_the_job_and_not_the_servers_one(
    tmp_path: Path, forked: LocalExecutor
) -> None:
    look = "import numpy, sklearn.metrics, threadpoolctl\n{(i['user_api'], i['num_threads']) for i in threadpoolctl.threadpool_info()}"
    folder = step(tmp_path / "s", look)
    assert run(forked, folder).error is None
    found = shown(folder)
    assert "('blas', 2)" in found
    assert "('openmp', 2)" in found
    assert ", 1)" not in found


def test_numexpr_has_the_threads_of_the_job_too(tmp_path: Path, library: Callable[[str, str], None]) -> None:
    # what matters of it here: it takes its number of threads when it is imported
    library("numexpr", "import os\nnthreads = int(os.environ['NUMEXPR_NUM_THREADS'])\nset_num_threads = [].append\n")
    look = "import numexpr\nnumexpr.nthreads, numexpr.set_num_threads.__self__"
    folder = step(tmp_path / "s", look)
    with executor() as made:
        assert run(made, folder).kernel == "forked"
    assert shown(folder) == "(2, [2])"


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("import ipywidgets; ipywidgets.IntSlider()", "imports ipywidgets"),
        ("from tqdm.auto import tqdm\nfor _ in tqdm(range(2)): pass", "imports tqdm.auto"),
        ("import papermill\ndef later(): papermill.execute_notebook('a', 'b')", "executes another notebook"),
        ("try:\n    import torch\nexcept ImportError:\n    print('none')", "imports torch, which may open the GPU"),
        ("import os\nos.environ['X'] = '1'\nimport pandas", "sets environment variables before it imports pandas"),
        (
            "import sys\nsys.path.insert(0, 'lib')\nimport json, pandas",
            "changes what is installed or found before it imports",
        ),
        ("import importlib\nw = importlib.import_module('ipywidgets'); w.IntSlider()", "talks to a widget"),
        ("%connect_info", "asks how to connect to its kernel"),
        ("import importlib\nimportlib.import_module('ipykernel').get_connection_file()", "asks how to connect"),
    ],
)
def test_what_a_forked_kernel_cannot_do_goes_to_the_standard_one_and_is_said_once(
    tmp_path: Path, forked: LocalExecutor, caplog: pytest.LogCaptureFixture, cell: str, why: str
) -> None:
    folder = step(tmp_path / "s", "from pathlib import Path\nPath('../out/seen').write_text('x')", cell, "'end'")
    with caplog.at_level(logging.WARNING):
        result = run(forked, folder)
    assert (result.status, result.kernel) == ("succeeded", "standard")
    assert json.loads((folder / "result.json").read_text())["kernel"] == "standard"
    said = [record.getMessage() for record in caplog.records if record.name.startswith("runner")]
    assert len(said) == 1
    assert said[0].startswith("s: executed by the standard kernel, because")
    assert why in said[0]
    assert [cell["execution_count"] for cell in cells(folder)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("source", "late"),
    [
        ("import os; os.environ['X'] = '1'", True),
        ("from os import environ; environ['X'] = '1'", True),
        ("import os; os.environ |= {'X': '1'}", True),
        ("import os; e = os.environ; e['X'] = '1'", True),
        ("import os; os.environ.update(X='1')", True),
        ("import os; os.environ.setdefault('X', '1')", True),
        ("import os; del os.environ['X']", True),
        ("import os; os.putenv('X', '1')", True),
        ("import dotenv; dotenv.load_dotenv()", True),
        ("%dotenv", True),
        ("%env X=1", True),
        ("% set_env X 1", True),
        ("%pip install thing", True),
        ("!pip install thing", True),
        ("!{sys.executable} -m pip install thing", True),
        ("import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'install', 'thing'])", True),
        ("%conda install thing", True),
        ("%%bash\npip3 install thing", True),
        ("import sys; sys.path.insert(0, 'lib')", True),
        ("import sys; sys.path[:0] = ['lib']", True),
        ("import site; site.addsitedir('lib')", True),
        ("import os; home = os.environ['HOME']", False),
        ("import os; os.environ.get('X', 'y')", False),
        ("import os; assert os.environ['X'] == 'y'", False),
        ("import sys; sys.path.append('lib')", False),
        ("environment = 3; pipeline = 'pip'", False),
    ],
)
def test_what_is_imported_after_a_change_to_the_environment_or_the_packages_is_loaded_in_its_cell(
    tmp_path: Path, source: str, late: bool
) -> None:
    made = read_notebook(step(tmp_path / "s", "import json", source, "import numpy") / "notebook.ipynb")
    imports = Imports(made)
    assert "json" in imports.early
    assert ("numpy" in imports.late, "numpy" in imports.early) == (late, not late)
    assert (" before it imports " in needs_standard(made, imports)) == late


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_churn_notebooks_are_forked_with_all_their_libraries_loaded(path: Path) -> None:
    made = read_notebook(path)
    imports = Imports(made)
    assert (needs_standard(made, imports), imports.late) == ("", [])
    assert "pandas" in imports.early


def test_a_library_that_starts_a_thread_spoils_no_other_notebook(
    tmp_path: Path, library: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    library(
        "unruly",
        "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True, name='its').start()",
    )
    first = step(tmp_path / "first", "import unruly\n'done'")
    other = step(tmp_path / "other", "import json\n'done'")
    again = step(tmp_path / "again", "import unruly\n[one.name for one in unruly.threading.enumerate()].count('its')")
    with executor() as made, caplog.at_level(logging.WARNING):
        kinds = [run(made, folder).kernel for folder in (first, other, again)]
    assert kinds == ["standard", "forked", "forked"]
    assert "unruly starts a thread" in caplog.text
    assert shown(again) == "1"  # now the cell imports it, in its own process


def test_a_module_of_the_project_is_not_mistaken_for_a_package_that_another_step_uses(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    library("shared_name", "VALUE = 'installed'\n")
    first = step(tmp_path / "first", "import shared_name\nshared_name.VALUE")
    second = step(
        tmp_path / "second", "import shared_name\nshared_name.VALUE", modules={"shared_name.py": "VALUE = 'ours'\n"}
    )
    with executor() as made:
        assert [run(made, folder).error for folder in (first, second)] == [None, None]
    assert (shown(first), shown(second)) == ("'installed'", "'ours'")


@pytest.mark.soak
def test_libraries_are_loaded_in_the_working_folder_of_their_notebook(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    library("looks", "import pathlib\nFOUND = pathlib.Path('looks.ini').exists()\n")
    linewidth = "import matplotlib.pyplot as plt, looks\nplt.rcParams['lines.linewidth'], looks.FOUND"
    there_and_back = "import os\nbefore = os.getcwd()\n%cd -q ..\n%cd -q -\nbefore == os.getcwd() == str(_dh[0])"
    settings = {"matplotlibrc": "lines.linewidth: 7\n", "looks.ini": ""}
    own = step(tmp_path / "own", linewidth, there_and_back, modules=settings)
    none = step(tmp_path / "none", linewidth, there_and_back)
    with executor() as made:
        assert [run(made, folder).kernel for folder in (own, none)] == ["forked", "forked"]
    assert (shown(own, 0), shown(own)) == ("(7.0, True)", "True")
    assert (shown(none, 0), shown(none)) == ("(1.5, False)", "True")


def test_a_library_that_took_the_streams_when_it_was_imported_writes_in_the_order_of_its_cell(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    library(
        "logs",
        "import logging, sys\nto = logging.StreamHandler()\nlogging.getLogger('logs').addHandler(to)\nout = sys.stdout\n",
    )
    mixed = (
        "import logs, logging, sys\nfor n in range(3):\n    print('cell', n, file=sys.stderr)\n"
        "    logging.getLogger('logs').warning(n)\nlogs.out is sys.stdout, logs.to.stream is sys.stderr"
    )
    folder = step(tmp_path / "s", mixed)
    with executor() as made:
        assert run(made, folder).kernel == "forked"
    assert shown(folder) == "cell 0\n0\ncell 1\n1\ncell 2\n2\n(True, True)"


def test_a_working_folder_may_be_named_from_the_runners_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [step(tmp_path / name, "import os; os.getcwd()") for name in ("a", "b")]
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    with executor() as made:
        for folder in folders:
            made.run(folder, cwd=Path("notebooks"), stop=threading.Event(), on_progress=lambda _: None)
            assert shown(folder) == repr(str(tmp_path / "notebooks"))


@pytest.mark.soak
def test_metrics_models_and_opened_files_are_those_of_the_standard_kernel(tmp_path: Path) -> None:
    train = (
        "import numpy as np, xgboost as xgb\nrng = np.random.default_rng(7)\nx = rng.normal(size=(500, 6))\n"
        "y = (x @ rng.normal(size=6) > 0).astype(int)\n"
        "model = xgb.train({'objective': 'binary:logistic', 'seed': 1, 'nthread': 2}, xgb.DMatrix(x, y), 20)\n"
        "model.save_model(path); score = float(np.linalg.svd(x)[1].sum())\nopen('../../table.txt').read()"
    )
    (tmp_path / "table.txt").write_text("read by a cell")
    results = {}
    for kernel in ("forked", "standard"):
        cells = (code("path = ''", "parameters"), train, recorded("score", "score"))
        folder = step(tmp_path / kernel, *cells, outputs={"path": "model.ubj"})
        with executor(kernel, tmp_path) as made:
            results[kernel] = run(made, folder)
        assert results[kernel].kernel == kernel
    forked, standard = results["forked"], results["standard"]
    assert forked.error is None
    assert forked.outputs == standard.outputs
    assert forked.metrics == standard.metrics
    assert forked.metrics["score"].value is not None
    assert forked.opened == standard.opened
    assert list(forked.opened) == ["table.txt"]


def test_the_folder_for_temporary_files_is_that_of_the_steps_own_environment(
    tmp_path: Path, forked: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(forked, step(tmp_path / "first", "1"))  # the server is there, and has looked for its own
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    run(forked, step(tmp_path / "second", "import tempfile\nprint(tempfile.gettempdir())"))
    assert shown(tmp_path / "second") == f"{tmp_path / 'own'}\n"


def test_a_reset_forgets_the_modules_that_cells_have_imported_and_no_other(
    tmp_path: Path, forked: LocalExecutor
) -> None:
    asks = "import sys\nprint('sched' in sys.modules, 'json' in sys.modules)"
    run(forked, step(tmp_path / "s", "__import__('sched')", asks, "%reset -f --aggressive", asks))
    assert (shown(tmp_path / "s", 1), shown(tmp_path / "s")) == ("True True\n", "False True\n")


@pytest.mark.parametrize("place", [Path("/proc"), Path("/proc/self/no-such-place")])
def test_a_process_finds_its_own_children_but_not_those_that_have_ended(place: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeping, subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        pids = [process.pid for process in own_children(tasks=place / "self" / "task")]
        assert sleeping.pid in pids
        assert ended.pid not in pids
        kill(process for process in own_children() if process.pid == sleeping.pid)
    assert sleeping.returncode == -signal.SIGKILL


def test_a_program_whose_name_is_no_text_is_found_among_the_others(tmp_path: Path) -> None:
    """The system cuts a name after 15 bytes, also within a character."""
    program = shutil.copy2("/bin/sleep", tmp_path / "sleep-like-a-bär")
    with subprocess.Popen([program, "60"]) as process:
        try:
            assert process.pid in [one.pid for one in descendants(os.getpid())]
        finally:
            process.kill()


@pytest.mark.cases(1)
@pytest.mark.parametrize("victims", ["runner", "runner and server", "runner of a standard kernel"])
def test_a_runner_that_is_killed_takes_everything_along_also_from_a_cell_that_holds_the_interpreter(
    tmp_path: Path, victims: str
) -> None:
    kernel = "standard" if "standard" in victims else "forked"
    folder = step(
        tmp_path / "s",
        "import os, subprocess, time\nsubprocess.Popen(['sleep', '300'])\nif not os.fork(): time.sleep(300)",
        "subprocess.Popen(['sleep', '300'], start_new_session=True)",
        f"open({str(tmp_path / 'started')!r}, 'w').close()\nimport re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
        kernel=kernel,
    )
    process = started(folder, kernel=kernel)
    appeared(tmp_path / "started")
    family = list(children_of(process.pid))
    assert len(family) >= 4
    everyone = processes_of(tmp_path)
    assert set(family) < everyone
    if victims == "runner and server":
        os.kill(family[0], signal.SIGKILL)
    process.kill()
    process.wait()
    gone(sorted(everyone))


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("kernel", "last"),
    [
        ("forked", "1"),
        ("forked", "1 / 0"),
        ("forked", "import os; os._exit(0)"),
        ("forked", "import time; time.sleep(300)"),
        ("standard", "1"),
        ("standard", "1 / 0"),
        ("standard", "import time; time.sleep(300)"),
    ],
)
def test_nothing_that_a_cell_starts_survives_its_step_not_even_in_a_session_of_its_own(
    tmp_path: Path, kernel: str, last: str
) -> None:
    daemon = (
        "import os, subprocess\none = subprocess.Popen(['sleep', '300'], start_new_session=True).pid\n"
        "two = int(subprocess.check_output('setsid sleep 300 > /dev/null & echo $!', shell=True, text=True))\n"
        "open('../pids', 'w').write(f'{one} {two}')"
    )
    folder = step(tmp_path / "s", daemon, last, cell_timeout_s=3.0)
    with executor(kernel) as made:
        run(made, folder)
        gone([int(pid) for pid in (folder / "pids").read_text().split()])


def test_a_server_that_is_importing_ends_with_its_runner_too(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    library("slow", f"import time\nopen({str(tmp_path / 'importing')!r}, 'w').close()\ntime.sleep(300)")
    process = started(step(tmp_path / "s", "import slow"))
    appeared(tmp_path / "importing")
    family = list(children_of(process.pid))
    process.kill()
    process.wait()
    gone(family)


@pytest.mark.soak
def test_a_kernel_outlives_its_server_and_the_next_one_gets_another(tmp_path: Path) -> None:
    first = step(
        tmp_path / "first", f"open({str(tmp_path / 'started')!r}, 'w').close()\nimport time; time.sleep(2)", "'end'"
    )
    second = step(tmp_path / "second", "1")
    process = started(first, second)
    appeared(tmp_path / "started")
    os.kill(next(children_of(process.pid)), signal.SIGKILL)
    assert process.wait(60) == 0
    for folder in (first, second):
        result = json.loads((folder / "result.json").read_text())
        assert (result["status"], result["kernel"]) == ("succeeded", "forked")


def test_a_server_killed_before_it_has_forked_leaves_the_work_to_the_standard_kernel(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    place = tmp_path / "importing"
    library(
        "slow",
        f"import pathlib, time\nif not pathlib.Path({str(place)!r}).exists():\n    open({str(place)!r}, 'w').close()\n    time.sleep(300)",
    )
    folder = step(tmp_path / "s", "import slow\n'end'")
    process = started(folder)
    appeared(place)
    os.kill(next(children_of(process.pid)), signal.SIGKILL)
    assert process.wait(60) == 0
    assert json.loads((folder / "result.json").read_text())["kernel"] == "standard"


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("import os; os._exit(7)", "kernel died", "exited with code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "kernel died", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "kernel died", "killed by SIGSEGV"),
        ("exit()", "stopped early", "exit()"),
        ("import sys; sys.exit(1)", "stopped early", "left with 1"),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)\nbytearray(8 << 30)",
            "exception",
            "",
        ),
    ],
)
def test_how_a_kernel_ended_is_told(tmp_path: Path, forked: LocalExecutor, source: str, kind: str, said: str) -> None:
    folder = step(tmp_path / "s", "a = 1", source, "import time; time.sleep(2)\nnever = 1")
    result = run(forked, folder)
    assert result.kernel == "forked"
    assert result.error is not None
    assert (result.error.kind, result.error.cell) == (kind, 2)
    assert said in result.error.evalue
    assert cells(folder)[-1]["execution_count"] is None


@pytest.mark.soak
def test_time_outs_end_a_cell_and_all_that_it_started(tmp_path: Path, forked: LocalExecutor) -> None:
    ignore = "import signal\nfor n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    loop = (
        "import os, pathlib, time\nchild = os.fork()\nif not child: time.sleep(300)\n"
        "pathlib.Path('../pid').write_text(str(child))\n{}while True: time.sleep(.1)"
    )
    cases = [(limit, stubborn) for limit in ("cell_timeout_s", "timeout_s") for stubborn in (False, True)]
    folders = [
        step(tmp_path / f"{limit} {stubborn}", loop.format(ignore if stubborn else ""), **{limit: 5.0})
        for limit, stubborn in cases
    ]
    with ThreadPoolExecutor(2) as pool:  # all at once would leave none the two seconds to say how it ended
        results = list(pool.map(functools.partial(run, forked), folders))
    for (limit, stubborn), folder, result in zip(cases, folders, results, strict=True):
        assert result.error is not None
        assert (result.error.kind, limit in result.error.evalue) == ("timeout", True)
        gone([int((folder / "pid").read_text())])
        if not stubborn:
            assert "KeyboardInterrupt" in json.dumps(cells(folder))


@pytest.mark.parametrize("nap", ["time.sleep(300)", "await asyncio.sleep(300)"])
def test_a_stop_interrupts_the_cell(tmp_path: Path, forked: LocalExecutor, nap: str) -> None:
    cell = (
        "import asyncio, time\ntry:\n    open('started', 'w').close()\n"
        f"    {nap}\nfinally:\n    open('interrupted', 'w').close()"
    )
    folder = step(tmp_path / "s", cell)
    stop = threading.Event()

    def later() -> None:
        appeared(folder / "modules" / "started")
        stop.set()

    waiting = threading.Thread(target=later)
    waiting.start()
    assert run(forked, folder, stop).status == "interrupted"
    waiting.join()
    assert (folder / "modules" / "interrupted").exists()


@pytest.mark.parametrize(
    "source",
    [
        "for _ in range(1000): print('x' * 1_000_000)",
        "import os\nfor _ in range(1000): os.write(1, b'x' * 999_999 + b'\\n')",
        "import sys\nfor _ in range(1000): sys.stderr.write('x' * 1_000_000)",
        "from IPython.display import HTML, display\nfor _ in range(200): display(HTML('x' * 5_000_000))",
        "from IPython.display import JSON, display\nrow = ['x' * 1000] * 1000\nfor _ in range(10): display(JSON({'rows': [row] * 100}))",
        "from IPython.display import display\ndisplay({'text/plain': ''}, metadata={'a': ['x' * 1000] * 1_000_000}, raw=True)",
    ],
)
@pytest.mark.soak
def test_a_gigabyte_of_output_costs_neither_the_runner_nor_the_kernel_its_memory(tmp_path: Path, source: str) -> None:
    peak = "import resource\nresource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    folder = step(tmp_path / "s", source, peak, "'end'")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with executor() as made:
        assert run(made, folder).status == "succeeded"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert int(shown(folder, 1)) < 300_000
    assert (folder / "executed.ipynb").stat().st_size < 60_000_000
    assert "capped" in shown(folder, 0) or "not kept" in shown(folder, 0)


@pytest.mark.soak
@pytest.mark.parametrize("kernel", ["forked", "standard"])
def test_an_error_that_goes_on_for_a_hundred_megabytes_is_told_as_that_error(tmp_path: Path, kernel: str) -> None:
    folder = step(tmp_path / "s", "raise ValueError('x' * 100_000_000)", cell_timeout_s=120.0)
    with executor(kernel) as made:
        result = run(made, folder)
    assert result.error is not None
    assert (result.error.kind, result.error.ename) == ("exception", "ValueError")
    assert (folder / "executed.ipynb").stat().st_size < 2_000_000
    assert "not kept: the rest of 100,000,000 characters" in cells(folder)[0]["outputs"][0]["evalue"]


def test_output_of_processes_that_a_cell_forked_is_whole_and_appears_once(
    tmp_path: Path, forked: LocalExecutor
) -> None:
    folder = step(
        tmp_path / "s",
        "import os, multiprocessing as mp\nprint('before')\n"
        "def work(n):\n    print(f'line {n} ' + 'x' * 100)\n    return n\n"
        "with mp.get_context('fork').Pool(4) as pool:\n    done = pool.map(work, range(200))\nprint('after')",
        "import time; time.sleep(.5)",
    )
    assert run(forked, folder).error is None
    text = shown(folder, 0) + shown(folder, 1)
    assert text.count("before") == 1
    assert all(f"line {n} {'x' * 100}" in text for n in range(200))


def test_exit_handlers_run_and_open_files_are_written(tmp_path: Path, forked: LocalExecutor) -> None:
    folder = step(
        tmp_path / "s",
        "import atexit, pathlib\natexit.register(lambda: pathlib.Path('../left').write_text('by handler'))",
        "kept = open('../written', 'w'); kept.write('not closed')",
    )
    assert run(forked, folder).error is None
    assert (folder / "left").read_text() == "by handler"
    assert (folder / "written").read_text() == "not closed"


@pytest.mark.soak
def test_kernels_asked_for_early_and_not_used_are_ended(tmp_path: Path) -> None:
    folders = [step(tmp_path / name, "1") for name in ("a", "b", "c")]
    others = set(children_of(os.getpid()))
    with executor() as made:
        for folder in folders:
            made.prepare(folder, cwd=None, threads=2)
        assert run(made, folders[0]).error is None
        family = [pid for pid in children_of(os.getpid()) if pid not in others]
        assert len(family) >= 3
    gone(family)


def test_two_hundred_cells_are_written_a_few_times_and_not_after_each(tmp_path: Path, forked: LocalExecutor) -> None:
    def written() -> int:
        return int(Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])

    folder = step(tmp_path / "s", *["1"] * 200)
    before = written()
    assert run(forked, folder).error is None
    # once at the end, and every five seconds of a machine that has other things to do
    assert written() - before < 20 * (folder / "executed.ipynb").stat().st_size


def test_a_fork_that_falls_out_of_its_cell_executes_no_other(tmp_path: Path, forked: LocalExecutor) -> None:
    # waited for in its cell: what comes between two cells is nobody's, here as with the standard kernel
    fork = "import os\npid = os.fork()\nprint('first' if pid else 'forked')\nstatus = pid and os.waitpid(pid, 0)[1]"
    folder = step(tmp_path / "s", fork, "print('next'); status, pid > 0")
    assert run(forked, folder).error is None
    assert sorted(shown(folder, 0).split()) in (["first", "forked"], ["firstforked"], ["forkedfirst"])
    assert "".join(shown(folder).split()) == "next(0,True)"


def test_streams_that_a_cell_closes_cost_only_its_output(tmp_path: Path, forked: LocalExecutor) -> None:
    folder = step(
        tmp_path / "s", "import os, sys\nos.close(1)", "print('err', file=sys.stderr)", "sys.stdout.close()", "'end'"
    )
    assert run(forked, folder).error is None
    assert shown(folder, 1) == "err\n"
    assert shown(folder) == "'end'"


def papermill(folder: Path, *cells: Cell, **options: str) -> subprocess.CompletedProcess[str]:
    """The papermill command with our engine, in.ipynb to out.ipynb."""
    (folder / "in.ipynb").write_text(json.dumps(notebook(*cells, kernel="python3")))
    return subprocess.run(papermill_command(**options), cwd=folder, capture_output=True, text=True, check=False)


def papermill_command(**options: str) -> list[str]:
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "papermill", "--engine", "runner", "--no-progress-bar", *given]
    return [*command, "in.ipynb", "out.ipynb", "-p", "x", "3"]


@pytest.mark.soak
def test_papermills_users_get_the_engine_by_its_name(tmp_path: Path) -> None:
    done = papermill(
        tmp_path, code("x = 1", "parameters"), "import os\nprint(x, os.getcwd())", "'RUNNER_PATH' in os.environ"
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out.ipynb").read_text())
    assert made["cells"][2]["outputs"][0]["text"] == [f"3 {tmp_path}\n"]
    assert made["cells"][3]["outputs"][0]["data"]["text/plain"] == ["False"]
    assert [cell["execution_count"] for cell in made["cells"]] == [1, 2, 3, 4]
    assert {cell["metadata"]["papermill"]["status"] for cell in made["cells"]} == {"completed"}
    assert "Executed by the standard kernel" not in done.stderr


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("cell", "options", "code", "said"),
    [
        ("1 / 0", {}, 1, "ZeroDivisionError"),
        ("import sys; sys.exit(0)", {}, 1, "a notebook succeeds by reaching its end"),
        ("import os; os.kill(os.getpid(), 9)", {}, 138, "killed by SIGKILL"),
        ("import time; time.sleep(60)", {"execution_timeout": "1"}, 1, "CellTimeoutError"),
    ],
)
def test_papermills_users_are_told_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, options: dict[str, str], code: int, said: str
) -> None:
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook(cell, "never = 1", kernel="python3")))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(papermill_cli, papermill_command(**options)[3:])  # the process would load for seconds
    assert done.exit_code == code
    assert said in "".join(traceback.format_exception(done.exception)) + done.output
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    marks = [cell["metadata"]["papermill"]["status"] for cell in cells if "papermill" in cell["metadata"]]
    assert marks[-2:] == ["failed", "pending"]


@pytest.mark.soak
def test_papermills_users_fall_back_to_the_standard_kernel_too(tmp_path: Path) -> None:
    done = papermill(tmp_path, "import importlib\nimportlib.import_module('ipywidgets').IntSlider()", "print(x)")
    assert done.returncode == 0, done.stderr
    assert "Executed by the standard kernel, because a cell talks to a widget" in done.stderr
    made = json.loads((tmp_path / "out.ipynb").read_text())
    assert "application/vnd.jupyter.widget-state+json" in made["metadata"]["widgets"]


@pytest.mark.soak
def test_a_papermill_that_is_killed_leaves_a_whole_file_and_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "out.ipynb").write_text('{"kept": true}')
    cells = ["open('started', 'w').close()\nimport time; time.sleep(300)"]
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook(*cells, kernel="python3")))
    process = subprocess.Popen(papermill_command(), cwd=tmp_path, stderr=subprocess.DEVNULL)
    appeared(tmp_path / "started")
    family = list(children_of(process.pid))
    process.kill()
    process.wait()
    gone(family)
    assert json.loads((tmp_path / "out.ipynb").read_text())


@pytest.mark.soak
def test_a_papermill_that_is_interrupted_leaves_what_was_executed_and_no_kernel(tmp_path: Path) -> None:
    cells = ["print('done')", "open('started', 'w').close()\nimport time; time.sleep(300)", "never = 1"]
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook(*cells, kernel="python3")))
    process = subprocess.Popen(papermill_command(), cwd=tmp_path, stderr=subprocess.DEVNULL)
    appeared(tmp_path / "started")
    family = list(children_of(process.pid))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    gone(family)
    made = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    assert [cell["metadata"]["papermill"]["status"] for cell in made[-3:]] == ["completed", "failed", "pending"]
    assert made[-3]["outputs"][0]["text"] == ["done\n"]


@pytest.mark.soak
def test_papermills_users_hear_of_a_missing_output_folder_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook("open('ran', 'w').close()", kernel="python3")))
    command = [part if part != "out.ipynb" else "missing/out.ipynb" for part in papermill_command()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/missing doesn't exist." in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.soak
@pytest.mark.parametrize("kernel", ["forked", "standard"])
def test_where_nobody_may_be_watched_notebooks_run_all_the_same(project: Project, kernel: str) -> None:
    """As in a container whose rules do not know pidfd_open."""
    site = project.folder / "site"
    site.mkdir()
    refusing = "import os\ndef refuse(*_):\n    raise PermissionError(1, 'not here')\nos.pidfd_open = refuse\n"
    (site / "sitecustomize.py").write_text(refusing)
    project.write(
        "nb.ipynb", "import os\ntry:\n    os.pidfd_open(1)\nexcept PermissionError as error:\n    print(error)"
    )
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    done = project.runner("run", "--kernel", kernel, env={"PYTHONPATH": str(site)})
    assert done.code == 0, done.err
    assert project.step("only")["result"]["kernel"] == kernel
    assert project.executed("only")["cells"][0]["outputs"][0]["text"] == ["[Errno 1] not here\n"]


def started(*folders: Path, kernel: str = "forked") -> subprocess.Popen[bytes]:
    """A runner of its own that executes the folders, once it has asked for the first kernel."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, kernel, *map(str, folders)],
        env=environment({"STARTED_BY": str(folders[0].parent)}),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"prepared\n"
    return process
