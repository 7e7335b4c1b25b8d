"""Imports go the way docs/architecture.md draws them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from support.projects import ROOT

LEAVES = {"records", "manifest", "errors", "escape", "paths", "content", "import_blocking", "loopback", "failpoint"}
ALLOWED = {
    "errors": set[str](),
    "escape": set[str](),
    "paths": {"errors"},
    "records": {"errors", "paths"},
    "manifest": {"records", "paths", "errors"},
    "content": {"records", "errors", "paths"},
    "import_blocking": set[str](),
    "loopback": set[str](),
    "failpoint": set[str](),
    "gate": LEAVES,
    "scraps": LEAVES,
    "notebook": LEAVES,
    "pipeline": LEAVES | {"gate", "notebook"},
    "adopt": LEAVES | {"pipeline", "notebook"},
    "scoring": set[str](),  # an endpoint's container takes inference.py as it is
    "model": LEAVES | {"scoring"},
    "drift": LEAVES | {"model"},
    "tabular": LEAVES | {"model", "scoring"},
    "kernel": LEAVES | {"notebook"},
    "cluster": LEAVES | {"notebook", "kernel"},
    "step": LEAVES | {"pipeline", "notebook", "kernel", "cluster"},
    "serve": LEAVES | {"model", "scoring"},
    "run": LEAVES | {"pipeline", "notebook", "gate", "model", "step", "kernel", "cluster"},
    "audit": LEAVES | {"pipeline", "notebook", "gate", "model", "run", "step"},
    "report": LEAVES | {"pipeline", "notebook", "gate", "run", "audit"},
    "aws": LEAVES | {"gate", "pipeline", "notebook", "model", "step", "run", "audit", "cluster"},
    "captures": LEAVES | {"model", "serve", "aws"},
    "notify": LEAVES | {"pipeline", "notebook", "model", "report"},
    "project": LEAVES | {"captures", "pipeline", "model", "run", "audit", "step", "serve", "aws", "cluster"},
    "init": LEAVES | {"pipeline", "tabular"},
    "decisions": LEAVES | {"project", "notify", "model", "run", "serve", "aws"},
    "ui": LEAVES
    | {
        "project",
        "decisions",
        "pipeline",
        "notebook",
        "gate",
        "model",
        "run",
        "audit",
        "step",
        "serve",
        "report",
    },
    "cli": LEAVES
    | {
        "project",
        "notify",
        "init",
        "decisions",
        "adopt",
        "pipeline",
        "notebook",
        "gate",
        "model",
        "run",
        "audit",
        "step",
        "serve",
        "report",
        "aws",
        "ui",
    },
}
HEAVY = {
    "papermill",
    "nbconvert",
    "boto3",
    "botocore",
    "pandas",
    "numpy",
    "sagemaker",
    "xgboost",
    "matplotlib",
    "scrapbook",
    "dask",
    "distributed",
}


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, at module level) of every import in the file that runs; TYPE_CHECKING blocks do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.extend(
                    (f"{child.module}.{alias.name}" if child.module == "runner" else child.module or "", top)
                    for alias in child.names
                )
            visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, True)
    return found


def modules() -> list[tuple[str, Path]]:
    """(room, file) of all of ours; the package's own __init__ and __main__ belong to no room."""
    folder = ROOT / "runner"
    return [
        (path.relative_to(folder).parts[0].removesuffix(".py"), path)
        for path in sorted(folder.rglob("*.py"))
        if path.relative_to(folder).parts[0] not in ("__init__.py", "__main__.py", "templates")
    ]


def test_rooms_import_only_what_the_picture_shows() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, path in modules()
        for name, _ in imports(path)
        if name.startswith("runner.")
        and (other := name.split(".")[1]) != room
        and other != "__version__"
        and other not in ALLOWED[room]
    ]
    assert not wrong


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    # these files run only in a process that has decided to execute a notebook, or to score
    executing = {
        "step/client.py", "step/engine.py", "kernel/stream.py", "scoring/inference.py", "scoring/runtimes.py",
        "model/onnx.py", "model/onnx_converters.py", "model/onnx_trees.py",
    }  # fmt: skip
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for _, path in modules()
        for name, top in imports(path)
        if top and name.split(".")[0] in HEAVY and str(path.relative_to(ROOT / "runner")) not in executing
    ]
    assert not wrong


def test_only_aws_imports_boto3() -> None:
    wrong = [
        path
        for room, path in modules()
        for name, _ in imports(path)
        if name.startswith(("boto", "sagemaker")) and room != "aws"
    ]
    assert not wrong


def test_the_package_knows_nothing_of_the_use_case() -> None:
    files = [path for path in (ROOT / "runner").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert not [path for path in files if b"churn" in path.read_bytes().lower()]


def test_no_test_imports_another_tests_file() -> None:
    tests = ROOT / "tests"
    wrong = [
        f"{path.relative_to(tests)} imports {name}"
        for path in sorted(tests.rglob("*.py"))
        for name, _ in imports(path)
        if name.split(".")[0].startswith("test_")
    ]
    assert not wrong
