"""Starting the kernel of a step folder, ahead of its execution: which kind, where, with what in its environment."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from runner.kernel.package_changes import changes
from runner.notebook.source import Notebook, imported_names, python_source, read_notebook
from runner.records import FORKED, STANDARD

if TYPE_CHECKING:
    from runner.kernel.forked.client import ForkServer
    from runner.kernel.standard import Kernel

SOURCE, OPENED = "notebook.ipynb", "opened.jsonl"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# a forked kernel gets no messages from the browser, and has no Jupyter channels
WIDGETS = {"ipywidgets", "comm", "ipykernel", "jupyter_client", "ipyparallel", "bqplot", "ipympl", "ipyleaflet"}
# they may open the device when they are imported, and an open one does not survive a fork
GPU = {"torch", "tensorflow", "jax", "cupy", "cudf", "cuml", "numba.cuda", "pycuda", "rmm", "paddle", "mxnet"}
PROGRESS_BARS = {"tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"}  # widgets where ipywidgets is installed
ASKS_CONNECTION = re.compile(r"%\s*(?:connect_info|qtconsole)\b")
# (package, a word that stands in the notebook too, what the package imports when it is first used so)
ON_FIRST_USE = (
    ("matplotlib.pyplot", "plt", (
        "matplotlib_inline.backend_inline", "matplotlib.backends.backend_agg", "IPython.core.pylabtools",
        "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin")),
    ("pandas", "pd", ("pandas.io.formats.html", "pandas.io.formats.string")),
    ("pandas", "parquet", ("pyarrow.parquet", "pyarrow.dataset")),
    ("xgboost", "DMatrix", ("narwhals._pandas_like.dataframe", "narwhals._pandas_like.namespace")),
)  # fmt: skip


def start(
    folder: Path,
    *,
    cwd: Path | None = None,
    threads: int = 0,
    project: Path | None = None,
    kernel: str = STANDARD,
    server: Callable[[dict[str, str], Path], ForkServer] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Kernel:
    """The kernel for the step folder, started ahead of `execute` so that it is ready when its inputs are.

    The notebook and its modules must be in the folder; job.json may still be missing. A forked kernel comes from
    `server`, or from a server of its own. If the notebook needs the standard kernel, it gets that, and `instead` says
    why. `variables` are added to its environment.
    """
    from runner.kernel.standard import start_kernel

    notebook = read_notebook(folder / SOURCE)
    imports = Imports(notebook)
    modules = folder / "modules"
    cwd = cwd if cwd is not None and cwd.is_dir() else modules
    cwd.mkdir(exist_ok=True)
    environment = _environment(threads, folder, [modules, cwd], imports.early, project) | dict(variables or {})
    why = needs_standard(notebook, imports) if kernel == FORKED else ""
    if kernel == FORKED and not why:
        from runner.kernel.forked.client import ForkServer

        source = ForkServer(environment) if server is None else server(environment, cwd)
        forked = source.kernel(cwd=cwd, environment=environment, modules=imports.ahead)
        forked.owns_server = server is None
        return forked
    name = notebook.kernel_name
    standard = start_kernel(cwd=cwd, environment=environment, language=notebook.language, kernel_name=name)
    standard.instead = why
    return standard


class Imports:
    """What a notebook imports, by its text.

    `names` are all dotted names. `early` are the installed packages that a kernel may load before the first cell: not
    the project's own modules, nor those imported after a cell that `changes` packages, which are `late`. `ahead` are
    those that a server loads: `early`, the modules that their first use imports, and this package's own modules.
    """

    def __init__(self, notebook: Notebook) -> None:
        cells = notebook.code
        sources = "\n".join(cell.source for cell in cells)
        by_cell = [imported_names(python_source(cell)) for cell in cells]
        changing = ((index, change) for index, cell in enumerate(cells) if (change := changes(cell)))
        first, self.changes = next(changing, (len(cells), ""))
        before = set().union(*by_cell[:first])
        self.names = set().union(*by_cell)
        installed = _installed(notebook, self.names)
        self.early = sorted(installed & before)
        self.late = sorted(installed - before)
        self.ahead = list(self.early)
        for package, word, modules in ON_FIRST_USE:
            if package in self.early and word in sources:
                self.ahead += modules
        self.ahead += sorted(name for name in before if name.startswith("runner."))


def needs_standard(notebook: Notebook, imports: Imports) -> str:
    """Why the notebook cannot be executed by a forked kernel, judged by its cells' text; "" if no reason is known."""
    if not sys.platform.startswith("linux"):
        return "forked kernels are for Linux"
    if notebook.language != "python":
        return f"it is written in {notebook.language}"
    either = imports.names | {name.partition(".")[0] for name in imports.names}
    for group, reason in ((WIDGETS, "which talks to the browser"), (GPU, "which may open the GPU")):
        if packages := either & group:
            return f"it imports {min(packages)}, {reason}"
    if any(ASKS_CONNECTION.search(cell.source) for cell in notebook.code):
        return "it asks how to connect to its kernel"
    if (packages := imports.names & PROGRESS_BARS) and find_spec("ipywidgets") is not None:
        return f"it imports {min(packages)}, which shows widgets"
    executes = "papermill" in either and any("execute_notebook" in cell.source for cell in notebook.code)
    if executes and find_spec("ipywidgets") is not None:
        return "it executes another notebook, whose progress is a widget"
    late = [name for name in imports.late if name.partition(".")[0] not in sys.stdlib_module_names]
    return f"it {imports.changes} before it imports {late[0]}" if late else ""


def general_environment(threads: int) -> dict[str, str]:
    """The environment that the kernels of a run share; with `threads` of 0 it sets no number of threads."""
    environment = dict(os.environ)
    # with this of test runners, ipykernel would not capture what C libraries print
    environment.pop("PYTEST_CURRENT_TEST", None)
    # the order of a set of strings must not change a result from run to run
    environment.setdefault("PYTHONHASHSEED", "0")
    # otherwise OpenMP's threads spin while they wait for a thread whose core another process uses: five times slower
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    return environment


def _environment(
    threads: int, folder: Path, path: list[Path], preload: list[str], project: Path | None
) -> dict[str, str]:
    environment = general_environment(threads)
    environment.update(
        RUNNER_STEP_FOLDER=str(folder.resolve()),
        RUNNER_PATH=os.pathsep.join(str(folder.resolve()) for folder in path),
        RUNNER_PRELOAD=",".join(preload),
        JPY_PARENT_PID=str(os.getpid()),  # as of any process of Jupyter's
    )
    (folder / OPENED).unlink(missing_ok=True)
    if project is not None:
        environment.update(RUNNER_PROJECT=str(project.resolve()), RUNNER_OPENED=str((folder / OPENED).resolve()))
    return environment


def _installed(notebook: Notebook, names: set[str]) -> set[str]:
    """The names of modules in installed packages, without the project's own."""
    folder = notebook.path.parent
    own = {file.stem for file in folder.glob("*.py")} | {"runner"}
    installed = set()
    for name in names:
        top = name.partition(".")[0]
        if top in own or (folder / "modules" / f"{top}.py").exists() or (folder / "modules" / top).exists():
            continue
        with contextlib.suppress(ImportError, ValueError):
            if find_spec(top) is not None:
                installed.add(name)
    return installed
