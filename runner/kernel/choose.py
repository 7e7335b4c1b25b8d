"""Starting the kernel of a step folder, ahead of its execution: which kind, where, with what in its environment."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
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

# a forked kernel has no way back from the browser, and no Jupyter messages for what looks for them
WIDGETS = {"ipywidgets", "comm", "ipykernel", "jupyter_client", "ipyparallel", "bqplot", "ipympl", "ipyleaflet"}
# they may open the device when they are imported, and an open one does not survive a fork
GPU = {"torch", "tensorflow", "jax", "cupy", "cudf", "cuml", "numba.cuda", "pycuda", "rmm", "paddle", "mxnet"}
PROGRESS_BARS = {"tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"}  # widgets where ipywidgets is installed
ASKS_CONNECTION = re.compile(r"%\s*(?:connect_info|qtconsole)\b")
# (package, a word that stands in the notebook too, what the package imports when it is first used so)
ON_FIRST_USE = (
    ("matplotlib.pyplot", "plt", ("matplotlib_inline.backend_inline", "matplotlib.backends.backend_agg",
     "IPython.core.pylabtools", "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin")),
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
) -> Kernel:
    """The kernel for the step folder, started ahead of `execute` so that it is ready when its inputs are.

    Needs the notebook and its modules there; job.json may still be missing. A forked one comes from `server`, or
    from one of its own; where the notebook needs the standard kernel, it gets that, and `instead` says why.
    """
    from runner.kernel.standard import start_kernel

    notebook = read_notebook(folder / SOURCE)
    imports = Imports(notebook)
    modules = folder / "modules"
    here = cwd if cwd is not None and cwd.is_dir() else modules
    here.mkdir(exist_ok=True)
    environment = _environment(threads, folder, [modules, here], imports.early, project)
    why = needs_standard(notebook, imports) if kernel == FORKED else ""
    if kernel == FORKED and not why:
        from runner.kernel.forked.client import ForkServer

        source = ForkServer(environment) if server is None else server(environment, here)
        forked = source.kernel(cwd=here, environment=environment, modules=imports.ahead)
        forked.owns_server = server is None
        return forked
    made = start_kernel(cwd=here, environment=environment, language=notebook.language, kernel_name=notebook.kernel_name)
    made.instead = why
    return made


class Imports:
    """What a notebook imports, as far as its text says.

    `names` are all, dotted; `early` the installed packages among them that a kernel may load before the first cell:
    never the project's own, nor what comes after a cell that `changes` what they do; `late` the installed rest; `ahead`
    what a server loads: `early`, what comes with the first use of that, and this package's own modules.
    """

    def __init__(self, notebook: Notebook) -> None:
        cells = notebook.code
        sources = "\n".join(cell.source for cell in cells)
        by_cell = [imported_names(python_source(cell)) for cell in cells]
        found = ((i, what) for i, cell in enumerate(cells) if (what := changes(cell)))
        first, self.changes = next(found, (len(cells), ""))
        before = set().union(*by_cell[:first])
        self.names = set().union(*by_cell)
        installed = _installed(notebook, self.names)
        self.early = sorted(installed & before)
        self.late = sorted(installed - before)
        self.ahead = [
            *self.early,
            *(
                module
                for package, word, modules in ON_FIRST_USE
                if package in self.early and word in sources
                for module in modules
            ),
            *sorted(name for name in before if name.startswith("runner.")),
        ]


def needs_standard(notebook: Notebook, imports: Imports) -> str:
    """Why the notebook cannot be executed by a forked kernel, as far as its cells say; "" where nothing is known."""
    if not sys.platform.startswith("linux"):
        return "forked kernels are for Linux"
    if notebook.language != "python":
        return f"it is written in {notebook.language}"
    either = imports.names | {name.partition(".")[0] for name in imports.names}
    for group, what in ((WIDGETS, "which talks to the browser"), (GPU, "which may open the GPU")):
        if found := either & group:
            return f"it imports {min(found)}, {what}"
    if any(ASKS_CONNECTION.search(cell.source) for cell in notebook.code):
        return "it asks how to connect to its kernel"
    if (found := imports.names & PROGRESS_BARS) and find_spec("ipywidgets") is not None:
        return f"it imports {min(found)}, which shows widgets"
    executes = "papermill" in either and any("execute_notebook" in cell.source for cell in notebook.code)
    if executes and find_spec("ipywidgets") is not None:
        return "it executes another notebook, whose progress is a widget"
    late = [name for name in imports.late if name.partition(".")[0] not in sys.stdlib_module_names]
    return f"it {imports.changes} before it imports {late[0]}" if late else ""


def general_environment(threads: int) -> dict[str, str]:
    """What the kernels of a run have in common; `threads` of 0 leaves their number alone."""
    environment = dict(os.environ)
    # set by test runners, and ipykernel would then not capture what C libraries print
    environment.pop("PYTEST_CURRENT_TEST", None)
    # the order of a set of strings must not change a result from run to run
    environment.setdefault("PYTHONHASHSEED", "0")
    # OpenMP's threads would spin while they wait for one that another process keeps from its core: five times slower
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
        RUNNER_PATH=os.pathsep.join(str(place.resolve()) for place in path),
        RUNNER_PRELOAD=",".join(preload),
        JPY_PARENT_PID=str(os.getpid()),  # as of any process of Jupyter's
    )
    (folder / OPENED).unlink(missing_ok=True)
    if project is not None:
        environment.update(RUNNER_PROJECT=str(project.resolve()), RUNNER_OPENED=str((folder / OPENED).resolve()))
    return environment


def _installed(notebook: Notebook, names: set[str]) -> set[str]:
    """Those of the names that are installed packages' and not the project's."""
    here = notebook.path.parent
    beside = {place.stem for place in here.glob("*.py")} | {"runner"}
    found = set()
    for name in names:
        top = name.partition(".")[0]
        if top in beside or (here / "modules" / f"{top}.py").exists() or (here / "modules" / top).exists():
            continue
        with contextlib.suppress(ImportError, ValueError):
            if find_spec(top) is not None:
                found.add(name)
    return found
