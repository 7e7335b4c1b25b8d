"""What every test has: the fixtures of a project, the order of the files, and what may not be skipped."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.places import Place

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # several tests share the cores; as the runner does for its kernels
# XGBoost's threads wait for each other on shared cores, five times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONUNBUFFERED", None)  # hides what a buffer keeps back on a user's machine
pytest.register_assert_rewrite("support")

from support import commands  # noqa: E402 - after what rewrites its assertions
from support.commands import Done  # noqa: E402 - after what rewrites its assertions
from support.forkers import share  # noqa: E402
from support.projects import Project, parameters  # noqa: E402
from support.quick import quick  # noqa: E402

from runner.import_blocking import deferred  # noqa: E402

with deferred():  # half of what collecting the tests takes, in each process
    import nbformat  # noqa: F401
pytest_plugins = ["support.disk"]  # a fixture of several files
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background, and all below inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
HERE = Path(__file__).parent
DURATIONS = HERE / "durations.json"  # seconds of each file, from `make durations`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="Fail where a test is skipped: CI has what all of them need."
    )
    parser.addoption(
        "--record-durations", action="store_true", help=f"Write each file's seconds into {DURATIONS.name}."
    )
    parser.addoption("--renew-budget", action="store_true", help="Write what commands cost now into tests/budget.json.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: needs no kernel, browser, cloud or process; found by itself")
    if hasattr(config, "workerinput"):
        return
    if config.getoption("--record-durations"):
        config.pluginmanager.register(Durations())
    if config.getoption("numprocesses", None) and not list(HERE.glob("__pycache__/test_*-pytest-*.pyc")):
        rewrite_asserts()
    if sys.platform == "linux" and config.getoption("numprocesses", None) and "coverage" not in sys.modules:
        begin_workers(config)


def begin_workers(config: pytest.Config) -> None:
    """Have xdist's processes be forks of one that has imported what they import, and share what they start."""
    from small_sagemaker.cloud import FORKER

    config.option.tx = [share([commands.FORKER, FORKER])] * len(config.option.tx)


def rewrite_asserts() -> None:
    """In a new checkout, by two processes that share the files: else each process of the run does it for all of them."""
    files = sorted(HERE.glob("**/test_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "--collect-only"]
    halves = [subprocess.Popen([*command, *half], stdout=subprocess.DEVNULL) for half in (files[::2], files[1::2])]
    for half in halves:
        half.wait()


class Durations:
    """Of each file, for the order of the next time."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        rounded = {name: round(seconds, 1) for name, seconds in sorted(self.seconds.items())}
        DURATIONS.write_text(json.dumps(rounded, indent=1) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that no process has a long one left when the others are done; `quick` where it is, and
    `soak` for the cases of a test beyond those that `make test` has."""
    seconds: dict[str, float] = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], float("inf")))
    cases = Counter[str]()
    for item in items:
        if (kept := item.get_closest_marker("cases")) is not None:
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] > kept.args[0]:
                item.add_marker("soak")
    for item in items if "quick" in config.option.markexpr else ():  # reading them takes seconds
        if isinstance(item, pytest.Function) and quick(item):
            item.add_marker("quick")


def pytest_collection_finish() -> None:
    """What was collected stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    errors = sys.modules.get("small_sagemaker.errors")  # which takes a second to import
    if errors is not None and call.excinfo is not None and call.excinfo.errisinstance(errors.NotPermittedError):
        place, line, _ = item.location
        report.outcome = "skipped"
        report.longrepr = (place, line, f"Skipped: {call.excinfo.value}; .ci/run, as root, has all of it")
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}, with --no-skips"
        )
    return report


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def one_step(project: Project) -> Callable[..., Done]:
    """Runs a pipeline of one step made of the given cells; `toml` adds keys to the step."""

    def run(*cells: dict[str, Any] | str, toml: str = "", arguments: Sequence[str] = ()) -> Done:
        project.write("nb.ipynb", parameters("x: int = 1"), *cells)
        project.toml(f'name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n{toml}\n')
        return project.runner("run", "--json", *arguments)

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with three versions of a model."""
    from support.places import register_versions  # with XGBoost, which most tests do without

    return register_versions(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Iterator[Place]:
    from support.places import placed

    with placed(models, tmp_path / "project") as made:
        yield made
