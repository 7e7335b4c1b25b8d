"""What a notebook finds, imports, prints and leaves behind is the same in a forked kernel, the standard one and papermill's."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import orc
from support.executed import Cells, by_papermill, by_step, outputs
from support.projects import Project, code, notebook
from support.some import some

from runner.import_blocking import without
from runner.kernel.package_changes import changes
from runner.notebook.source import Cell
from runner.records import StepJob, StepResult, encode
from runner.step.local import LocalExecutor

ERROR = "raises-exception"
LIBRARIES = {
    # with what libraries do when they are imported
    "speaks": "import sys, warnings, logging\nprint('spoken')\nprint('to stderr', file=sys.stderr)\n"
    "warnings.warn('speaks is old', DeprecationWarning, stacklevel=2)\nwarnings.warn('in speaks itself')\n"
    "logging.getLogger('speaks').error('logged')\nwarnings.filterwarnings('always', 'loud', UserWarning)\n"
    "from IPython.display import HTML, display\ndisplay(HTML('<b>speaks</b>'))\nprint('after it')",
    "leans": "import speaks",
    "leans_too": "from speaks import logging",
    "whispers": "print('whispered')\nVALUE = 1",
    "fails": "import whispers_first\nprint('before it fails')\nraise ImportError('no luck')",
    "whispers_first": "print('first')",
    "silenced": "import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter('ignore')\n    warnings.warn('unheard')\n"
    "warnings.warn('heard', FutureWarning)",
}

IMPORTS: Cells = [
    "1.5",
    "%precision 3",
    "import warnings\nwarnings.filterwarnings('ignore')\nimport numpy as np\nnp.polyfit([1, 2], [1, 2], 3)",
    "np.float64(1 / 3), np.array([1 / 3]), 1 / 3",
    "warnings.filters",
    "warnings.resetwarnings()\nimport this",
    "print('a'); import leans; print('b')",
    "import speaks, leans_too\nspeaks.__spec__.name",
    "warnings.warn('loud')",
    "def later():\n    import whispers\n    return whispers.VALUE\nlater(), later()",
    "try:\n    import fails\nexcept ImportError as error:\n    print(error)",
    "import silenced",
    "with warnings.catch_warnings(record=True) as caught:\n    import importlib; importlib.reload(silenced)\n[str(one.message) for one in caught]",
]
LATE_FILTER: Cells = [
    "import warnings\nwarnings.simplefilter('ignore')",
    "%%capture said\nimport leans",
    "said.stdout, 'old' in said.stderr, 'logged' in said.stderr, len(said.outputs)",
    "warnings.simplefilter('always')\nimport papermill",
    # nothing of what the kernel has loaded for it lacks what it would have here
    "import boto3, debugpy, papermill.s3\nfrom papermill.iorw import papermill_io\nprint(papermill.s3.Session is boto3.session.Session)\n"
    "[type(handler).__name__ for _, handler in papermill_io._handlers]",
    "import jsonschema\nchecker = jsonschema.Draft202012Validator.FORMAT_CHECKER\nsorted(checker.checkers)",
    *(
        code(f"jsonschema.validate({value!r}, {{'format': {form!r}}}, format_checker=checker)", ERROR)
        for form, value in (("iri", "no iri"), ("uri-template", "{"), ("duration", "P1"), ("hostname", "-"))
    ),
    "import rfc3987_syntax\nrfc3987_syntax.is_valid_syntax('iri', 'http://a'), rfc3987_syntax.__name__, bool(rfc3987_syntax.__path__)",
]
FOLDERS: Cells = [
    "import os\nos.makedirs('lib/sub')\nopen('lib/beside.py', 'w').write('V = 1'); open('lib/sub/below.py', 'w').write('V = 2')",
    "open('queue.py', 'w').write('V = 3'); open('here.py', 'w').write('V = 4')",
    "import queue, here\nhasattr(queue, 'Queue'), here.V",
    "os.chdir('lib')",
    "import beside\nbeside.V",
    "%cd -q sub",
    "import below\nbelow.V",
    "import sys\nplaces = [place for place in sys.path if place == '' or 'python' in place or 'site-packages' in place]\nplaces",
]
ENVIRONMENT: Cells = [
    "import sys, os, threading, multiprocessing as mp, signal, time, gc",
    "[os.path.basename(sys.argv[0]), sys.argv[1], sys.argv[3:], len(sys.argv)]",
    "[getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != '_' and name not in ('count', 'hash_randomization', 'index')]",
    "os.environ['JPY_PARENT_PID'] == str(os.getppid())",
    "sorted(name for name in os.environ if name.startswith(('JPY', 'MPL', 'TERM', 'CLI', 'PAGER', 'GIT_P', 'FORCE', 'COLUMNS')))",
    "import __main__\nsorted(vars(__main__)), __main__.__spec__, __main__ is sys.modules['__main__']",
    "{one.name: str(signal.getsignal(one)) for one in signal.Signals}",
    "threading.current_thread() is threading.main_thread(), threading.current_thread().name, threading.excepthook.__name__",
    "mp.current_process(), mp.parent_process(), mp.get_start_method(), len(mp.current_process().authkey)",
    "time.process_time() < 30, sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()",
    "import locale\nlocale.getlocale(), sys.getfilesystemencoding(), sys.gettrace(), sys.getprofile(), sys.warnoptions, sys._xoptions",
    "type(sys.stdout).__name__, type(sys.stdout).__module__, sys.stdout.encoding, sys.stdout.errors, sys.stdout.name, sys.stdout.closed",
    "sys.stdout.isatty(), sys.stdout.writable(), sys.stdout.readable(), sys.stdin.isatty(), sys.__stdout__.fileno(), sys.__stderr__.fileno()",
    code("sys.stdout.buffer", ERROR),
    code("sys.stdout.write(5)", ERROR),
    code("sys.stdout.write(b'bytes')", ERROR),
    "kernel = get_ipython().kernel\nkernel.implementation, kernel.language_info['name'], kernel.ident != '', sorted(kernel.shell_handlers)",
    "get_ipython().parent is kernel, sorted(kernel.get_parent()), sorted(kernel.get_parent()['content'])",
    "get_ipython().colors, get_ipython().autoawait, get_ipython().enable_html_pager, len(get_ipython().ast_transformers)",
    "{name: len(callbacks) for name, callbacks in get_ipython().events.callbacks.items()}",
    "kernel.log.error('the log of a kernel is nothing that its cells have printed'); get_ipython().log.warning('nor is this')",
    "a = 1",
    "%history -g a",
    "%history -g nothing like it",
    "manager = get_ipython().history_manager\nmanager.get_tail(2), manager.hist_file, manager.enabled, manager.session_number",
    "list(manager.search('a = *')), list(manager.get_range(0, 1, 3))",
    "%recall 22",
    "%rerun 22",
    "class NoText(Exception):\n    def __str__(self): raise RuntimeError('none')",
    code("raise NoText", ERROR),
    code("raise BaseException('base')", ERROR),
    "'goes on'",
    "print('last'); sys.stdout.close()",
    code("print()", ERROR),
    code("print('to stderr', file=sys.stderr); sys.stdout.write('x')", ERROR),
    "'end'",
]
NOTEBOOKS = {"imports": IMPORTS, "late filter": LATE_FILTER, "folders": FOLDERS, "environment": ENVIRONMENT}


def step(folder: Path, *cells: dict[str, Any] | str, **job: Any) -> Path:
    """A step folder made of the cells."""
    (folder / "modules").mkdir(parents=True)
    (folder / "notebook.ipynb").write_text(json.dumps(notebook(*cells)))
    wanted = StepJob(run="r", step=folder.name, notebook="n", **{"parameters": {}, "outputs": {}, **job})
    (folder / "job.json").write_bytes(encode(wanted))
    return folder


def run(executor: LocalExecutor, folder: Path) -> StepResult:
    return executor.run(folder, cwd=None, stop=threading.Event(), on_progress=lambda _: None)


def shown(folder: Path, index: int = -1) -> str:
    """What a cell printed, then its result."""
    made = json.loads((folder / "executed.ipynb").read_text())["cells"][index]["outputs"]
    return "".join(line for output in made for line in output.get("text", output.get("data", {}).get("text/plain", [])))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of installed modules, as far as the runner and all kernels can tell; nothing is remembered of them."""
    place = tmp_path_factory.mktemp("site")
    for name, source in LIBRARIES.items():
        (place / f"{name}.py").write_text(source + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.setenv("PYTHONPATH", str(place))
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        yield place


@pytest.fixture(scope="module")
def executors(libraries: Path) -> Iterator[dict[str, LocalExecutor]]:
    made = {kernel: LocalExecutor(kernel=kernel) for kernel in ("forked", "standard")}
    yield made
    for executor in made.values():
        executor.close()


@pytest.fixture(params=["forked", "standard"])
def executor(request: pytest.FixtureRequest, executors: dict[str, LocalExecutor]) -> LocalExecutor:
    return executors[request.param]


def seen(cell: dict[str, Any]) -> Any:
    """What each stream says, for they are flushed by the clock, and the rest in its order; errors without the traceback,
    which goes through the streams' own files."""
    found = outputs(cell)
    said: dict[str, str] = {}
    for output in found:
        if output["output_type"] == "stream":
            said[output["name"]] = said.get(output["name"], "") + output["text"]
    return said, [{**output, "traceback": ...} for output in found if output["output_type"] != "stream"]


@pytest.mark.parametrize("name", some(NOTEBOOKS, ("imports", "environment")))
def test_what_a_user_can_see_is_the_same_on_all_three(
    tmp_path: Path, executors: dict[str, LocalExecutor], name: str
) -> None:
    cells = NOTEBOOKS[name]
    stock = by_papermill(tmp_path / "papermill", cells)["cells"]
    for kernel, executor in executors.items():
        ours = by_step(tmp_path / kernel, cells, kernel, executor)["cells"]
        for mine, same in zip(ours, stock, strict=True):
            assert seen(mine) == seen(same), (kernel, "".join(mine["source"]))
            assert mine["execution_count"] == same["execution_count"]


@pytest.mark.parametrize("ends", some(["1 / 0", "None"], ["1 / 0"]))
def test_what_a_notebook_leaves_to_its_end_is_done_also_where_a_cell_has_failed(
    tmp_path: Path, executors: dict[str, LocalExecutor], ends: str
) -> None:
    """Exit handlers, finalizers and buffered files, threads, pools and processes; those last papermill kills."""
    cells: Cells = [
        "import atexit, pathlib, threading, time, weakref, multiprocessing as mp\n"
        "from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor\n"
        "def leave(name): time.sleep(.5); pathlib.Path(name).write_text('left')",
        "atexit.register(leave, 'atexit'); buffered = open('buffered', 'w'); buffered.write('left')",
        "updated = open('updated', 'w+b'); updated.write(b'left')",
        "class Thing: pass\nthing = Thing(); weakref.finalize(thing, leave, 'finalized')",
        "threading.Thread(target=leave, args=('thread',)).start(); ThreadPoolExecutor(1).submit(leave, 'pool')",
        "fork = mp.get_context('fork')\nfork.Process(target=leave, args=('process',)).start()\n"
        "ProcessPoolExecutor(1, mp_context=fork).submit(leave, 'processes')",
        ends,
    ]
    by_papermill(tmp_path / "papermill", cells)
    theirs = {path.name for path in (tmp_path / "papermill").iterdir() if path.read_text() == "left"}
    for kernel, executor in executors.items():
        folder = step(tmp_path / kernel, *cells)
        result = run(executor, folder)
        assert (result.error is None) == (ends == "None")
        ours = {path.name for path in (folder / "modules").iterdir()}
        assert ours == {"atexit", "buffered", "updated", "finalized", "thread", "pool", "process", "processes"}
        assert theirs - {"notebook.ipynb", "executed.ipynb"} <= ours


@pytest.mark.parametrize(
    "left",
    [
        "gone = weakref.proxy(Thing())",  # as of a progress bar; nobody can ask it for its class
        "class Odd(io.TextIOWrapper):\n    def flush(self): raise RuntimeError\nodd = Odd(io.BytesIO())",
        "threading._register_atexit(sys.exit, 3)",
        "sys.stdout = sys.stderr = None",
    ],
)
def test_whatever_is_left_a_kernels_process_ends_by_itself_and_not_as_the_interpreter_does(left: str) -> None:
    """The interpreter would end its threads first, and then wait for a lock that one of them held."""
    code = (
        "import io, os, sys, threading, weakref\nfrom runner.kernel.standard_main import exit_process\n"
        f"class Thing: pass\n{left}\nexit_process(lambda: os.write(1, b'last'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"last", b"")


def test_compressed_files_and_tables_that_cells_leave_open_are_whole(tmp_path: Path, executor: LocalExecutor) -> None:
    kept = """
import bz2, gzip, lzma, zipfile
import pyarrow as pa, pyarrow.parquet as pq
said = gzip.open("../said.gz", "wt"); said.write("by text")
raw = gzip.open("../raw.gz", "wb"); raw.write(b"by bytes")
b = bz2.open("../b.bz2", "wt"); b.write("by text")
x = lzma.open("../x.xz", "wb"); x.write(b"by bytes")
archive = zipfile.ZipFile("../z.zip", "w"); archive.writestr("a", "in an archive")
table = pa.table({"n": [1, 2]}); rows = pq.ParquetWriter("../t.parquet", table.schema); rows.write_table(table)
bz2.kept = [said, raw, b, x, archive, rows]  # where no one forgets them before the interpreter's end
"""
    folder = step(tmp_path / "s", kept)
    assert run(executor, folder).error is None
    assert gzip.decompress((folder / "said.gz").read_bytes()) == bz2.decompress((folder / "b.bz2").read_bytes())
    assert gzip.decompress((folder / "raw.gz").read_bytes()) == b"by bytes"
    assert lzma.decompress((folder / "x.xz").read_bytes()) == b"by bytes"
    assert zipfile.ZipFile(folder / "z.zip").read("a") == b"in an archive"
    assert pd.read_parquet(folder / "t.parquet")["n"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("left", "opened"),
    [
        ("sys.modules['pyarrow.parquet'] = None; file = open('kept', 'w'); file.write('whole')", "{}"),
        ("sys.modules['zipfile'] = mock.MagicMock(); file = open('kept', 'w'); file.write('whole')", "{}"),
        # the inner one was made last, or stands before the outer one in what the collector knows
        ("inner = bz2.BZ2File('kept', 'wb'); gc.collect(); file = gzip.GzipFile(fileobj=inner, mode='wb'); "
         "file.write(b'whole')", "gzip.decompress(bz2.decompress({}))"),
        ("file = gzip.GzipFile(fileobj=(inner := bz2.BZ2File('kept', 'wb')), mode='wb'); gc.collect(); "
         "file.write(b'whole')", "gzip.decompress(bz2.decompress({}))"),
        ("inner = gzip.open('kept', 'wb'); file = lzma.LZMAFile(middle := bz2.BZ2File(inner, 'wb'), 'wb'); "
         "file.write(b'whole')", "lzma.decompress(bz2.decompress(gzip.decompress({})))"),
        ("file = io.BufferedWriter(gzip.open('kept', 'wb')); file.write(b'whole')", "gzip.decompress({})"),
        ("class Meta(type):\n    def __eq__(self, other): raise ValueError\nclass Odd(metaclass=Meta): pass\n"
         "odd = Odd(); file = open('kept', 'w'); file.write('whole')", "{}"),
        ("import pyarrow as pa; from pyarrow import orc; table = pa.table({'n': ['whole']}); "
         "file = orc.ORCWriter('kept'); file.write(table)", "orc.read_table(io.BytesIO({}))['n'][0].as_py().encode()"),
        ("class Bad(io.BufferedIOBase):\n    def close(self): raise SystemExit(1)\n"
         "bad = Bad(); file = open('kept', 'wb'); file.write(b'whole')", "{}"),
        # as a library's own file, which sends what it has when it is closed
        ("class Far(io.BytesIO):\n    def close(self): os.write(os.open('kept', os.O_CREAT | os.O_WRONLY), self.getvalue()); super().close()\n"
         "file = zipfile.ZipFile(Far(), 'w'); file.writestr('a', 'whole')",
         "zipfile.ZipFile(io.BytesIO({})).read('a')"),
    ],
)  # fmt: skip
def test_what_is_left_open_is_whole_whatever_lies_beside_it(tmp_path: Path, left: str, opened: str) -> None:
    code = (
        "import bz2, gc, gzip, io, lzma, os, sys, zipfile\nfrom unittest import mock\n"
        f"from runner.kernel.standard_main import exit_process\n{left}\nexit_process()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    known = {
        "bz2": bz2,
        "gzip": gzip,
        "io": io,
        "lzma": lzma,
        "orc": orc,
        "zipfile": zipfile,
        "kept": (tmp_path / "kept").read_bytes(),
    }
    assert eval(opened.format("kept"), known) == b"whole"


@pytest.mark.soak
def test_a_thread_that_never_ends_is_ended_with_the_steps_time_and_said(
    tmp_path: Path, executor: LocalExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    endless = "import threading, time\ndef run():\n    while True: time.sleep(.1)\nthreading.Thread(target=run).start()"
    with caplog.at_level(logging.WARNING):
        result = run(executor, step(tmp_path / "s", endless, timeout_s=4.0))
    assert result.status == "succeeded"
    assert "threads or exit handlers had not ended" in caplog.text


def test_what_others_write_stands_between_what_the_cell_prints(tmp_path: Path, executor: LocalExecutor) -> None:
    by_others = ("subprocess.run(['echo', 'b'])", "os.system('echo b')", "os.write(1, b'b\\n')", "libc.puts(b'b'); libc.fflush(None)",
                 "print('b', file=sys.__stdout__, flush=True)", "sys.stdout.flush(); os.fork() or (print('b'), os._exit(0)); os.wait()")  # fmt: skip
    cells = [f"for _ in range(20):\n    print('a'); {other}; print('c')" for other in by_others]
    folder = step(tmp_path / "s", "import ctypes, os, subprocess, sys; libc = ctypes.CDLL(None)", *cells)
    assert run(executor, folder).error is None
    for number, other in enumerate(by_others, start=1):
        assert shown(folder, number) == "a\nb\nc\n" * 20, other


@pytest.mark.parametrize("end", ["os._exit(3)", "time.sleep(.3); os.abort()", "ctypes.string_at(0)"])
def test_last_words_that_were_flushed_are_in_the_notebook(tmp_path: Path, executor: LocalExecutor, end: str) -> None:
    folder = step(tmp_path / "s", "import ctypes, os, time", f"print('bye', flush=True); {end}")
    result = run(executor, folder)
    assert result.error is not None
    assert result.error.kind == "kernel died"
    assert shown(folder) == "bye\n"


def test_half_a_character_is_replaced_wherever_a_cell_says_it(tmp_path: Path, executor: LocalExecutor) -> None:
    lone = "'caf\\ud83d'"
    cells = [
        f"print({lone})",
        f"import sys; sys.stderr.write({lone}) and None",
        f"from IPython.display import HTML, display\ndisplay(HTML({lone}), metadata={{'text/html': {{'a': {lone}}}}})",
        f"{{{lone}: 1}}, {lone}",
        f"import os; os.write(1, {lone}.encode(errors='surrogatepass')) and None",
        code(f"raise ValueError({lone})", ERROR),
        "import os; print(os.fsdecode(b'caf\\xe9'))",
        f"raise KeyError({lone})",
    ]
    folder = step(tmp_path / "s", *cells)
    result = run(executor, folder)
    assert result.error is not None
    assert (result.error.kind, result.error.ename, result.error.cell) == ("exception", "KeyError", 8)
    assert "caf\ufffd" in (folder / "executed.ipynb").read_text(encoding="utf-8")
    assert shown(folder, 0) == "caf\ufffd\n"
    assert shown(folder, 6) == "caf\ufffd\n"


@pytest.mark.soak
def test_nothing_of_the_users_own_history_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    before = "from IPython.core.history import HistoryManager\nHistoryManager(hist_file={!r}).get_tail(1)"
    mine = subprocess.run(
        [sys.executable, "-m", "IPython", "-c", "secret = 'typed by hand'"], capture_output=True, text=True, check=False
    )
    assert mine.returncode == 0, mine.stderr + before
    typed = {path: path.read_bytes() for path in (tmp_path / "ipython").rglob("history.sqlite*")}
    cells = (
        "print(get_ipython().history_manager.hist_file)\n%history -g secret*",
        "import importlib; importlib.import_module('ipywidgets').IntSlider()",
        "print(get_ipython().history_manager.hist_file)\n%history -g secret*",
    )
    made = LocalExecutor(kernel="forked")
    try:
        folder = step(tmp_path / "s", *cells)
        assert run(made, folder).kernel == "standard"  # found out by the cell in between
    finally:
        made.close()
    assert [shown(folder, 0).splitlines()[0], shown(folder, 2).splitlines()[0]] == [":memory:", ":memory:"]
    assert "typed by hand" not in (folder / "executed.ipynb").read_text()
    assert {path: path.read_bytes() for path in (tmp_path / "ipython").rglob("history.sqlite*")} == typed


THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"


@pytest.mark.soak
def test_a_package_that_starts_threads_is_left_to_its_cell_if_known_and_remembered_if_not(
    tmp_path: Path, libraries: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (libraries / "polars.py").write_text(THREAD)
    (libraries / "uses_polars.py").write_text(
        "import whispers\ntry:\n    import polars\nexcept Exception:\n    polars = None\n"
    )
    (libraries / "threaded.py").write_text(THREAD)
    look = "import threading\nlen([one for one in threading.enumerate() if one.name.startswith('Thread-')])"
    kinds = {}
    for package in ("polars", "uses_polars", "threaded", "threaded"):
        made = LocalExecutor(kernel="forked")
        try:
            folder = step(tmp_path / f"{package} {len(kinds)}", f"import {package}", look, f"{package}.__name__")
            with caplog.at_level(logging.WARNING):
                kinds[folder.name] = run(made, folder).kernel
        finally:
            made.close()
        assert (shown(folder, 1), shown(folder)) == ("1", f"'{package}'")
    assert list(kinds.values()) == ["forked", "forked", "standard", "forked"]
    assert caplog.text.count("executed by the standard kernel") == 1
    assert "threaded starts a thread when it is imported" in caplog.text
    (libraries / "threaded.py").write_text("")  # another version of it
    os.utime(libraries / "threaded.py", ns=(1, 1))
    made = LocalExecutor(kernel="forked")
    try:
        folder = step(tmp_path / "new", "import sys\nbefore = 'threaded' in sys.modules", "import threaded\nbefore")
        assert (run(made, folder).kernel, shown(folder)) == ("forked", "True")
    finally:
        made.close()


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nprint(sys.path, *sys.path)\nsys.path",
        "import sys\nfor place in sys.path: print(place)\nlen(sys.path), sys.path[0], 'a' in sys.path, sys.path + ['b']",
        "import sys\nif 'lib' not in sys.path: sys.path.append('lib')",
        "from sys import path\n'\\n'.join(path)\nf'{path}'",
        "from os import path\npath.join('a', 'b')",
        "%matplotlib inline\nimport sys; sys.path.index('')",
        "import os\nos.environ['HOME'], os.environ.get('A', 'b'), 'A' in os.environ, dict(os.environ, A='1'), {**os.environ}",
        "import os, subprocess\nsubprocess.run(['true'], env=os.environ)\n[name for name in os.environ]",
        "%env HOME",
    ],
)
def test_a_look_at_what_imports_depend_on_changes_nothing(source: str) -> None:
    assert changes(Cell("code", source, (), 1)) == ""


@pytest.mark.parametrize(
    "source",
    [
        "import sys as s\ns.path.insert(0, 'lib')",
        "from sys import path as p\np[:0] = ['lib']",
        "import sys\np = sys.path",
        "import sys\nadd_to(sys.path)",
        "import sys\n{'path': sys.path}",
        "import sys\nsys.path.remove('')",
        "import sys\ndel sys.path[0]",
        "%time sys.path.insert(0, 'lib')",
        "%%time\nimport sys\nsys.path.insert(0, 'lib')",
        "import sys\nsys.path.insert(0,",
        "import os as o\no.environ['A'] = '1'",
        "from unittest import mock\nwith mock.patch.dict(os.environ, A='1'): pass",
        "os.environ['A'] += '1'",
        "for os.environ['A'] in '12': pass",
    ],
)
def test_whatever_may_change_what_imports_depend_on_is_taken_for_a_change(source: str) -> None:
    assert changes(Cell("code", source, (), 1)) != ""


def test_a_run_records_and_finds_metrics_without_scrapbook_being_imported(project: Project) -> None:
    project.write(
        "nb.ipynb",
        "import sys\nfrom runner.scraps import metric\nmetric('score', 0.5, low=0.4, high=0.6)",
        "import papermill.s3, boto3\npapermill.s3.Session is boto3.session.Session",
        "sys.modules.keys().isdisjoint({'scrapbook'})",
    )
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    done = project.runner("run")
    assert done.code == 0, done.err
    cells = project.executed("only")["cells"]
    assert [cell["outputs"][-1]["data"]["text/plain"] for cell in cells[1:]] == [["True"], ["True"]]
    assert project.step("only")["result"]["metrics"]["score"]["value"] == 0.5


def test_what_is_hidden_from_an_import_is_hidden_from_no_other_thread() -> None:
    sys.modules.pop("colorsys", None)
    found: list[Any] = []

    def imports(name: str) -> Callable[[], None]:
        return lambda: found.append(__import__(name).__name__)

    with without("colorsys", "chunk"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'colorsys'"):
            __import__("colorsys")
        other = threading.Thread(target=imports("colorsys"))
        other.start()
        other.join()
    imports("colorsys")()
    assert found == ["colorsys", "colorsys"]


GRAMMAR = ("pass", "import rfc3987_syntax.utils", "from rfc3987_syntax import utils")


@pytest.mark.soak
@pytest.mark.parametrize("also", some(GRAMMAR, GRAMMAR[2:]))
def test_a_deferred_grammar_is_there_for_whoever_asks_for_it(also: str) -> None:
    source = (
        "import sys\nfrom runner.import_blocking import deferred\nwith deferred():\n    import jsonschema\n"
        f"    from rfc3987_syntax import is_valid_syntax as check\n    {also}\n"
        "loaded = 'lark' in sys.modules\nimport rfc3987_syntax.utils\n"
        "print(loaded, check('iri', 'http://a'), rfc3987_syntax.utils.__name__,"
        " jsonschema.Draft202012Validator.FORMAT_CHECKER.conforms('no iri', 'iri'))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    loaded, *rest = done.stdout.split()
    assert rest == ["True", "rfc3987_syntax.utils", "False"], done.stderr
    assert loaded == "False" or also != "pass"
