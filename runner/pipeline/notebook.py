"""A notebook as source: its cells, the parameters it declares, the project modules it imports.

Reads the JSON itself (nbformat takes 0.2 s to import) and says what is wrong with a file before any
kernel starts. Knows nothing of pipelines or of execution.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import PipelineError
from runner.pipeline.types import Type, infer, parse_annotation


@dataclass(frozen=True)
class Cell:
    kind: str  # "code", "markdown", "raw"
    source: str
    tags: tuple[str, ...] = ()
    number: int | None = None  # the n of [n] after Run All; None for what does not run

    @property
    def first_line(self) -> str:
        return next((line.strip() for line in self.source.splitlines() if line.strip()), "")


@dataclass(frozen=True)
class Declared:
    """One line of the parameters cell: `name: type = literal  # comment`."""

    name: str
    type: Type | None  # None where nothing can be said: any value fits
    default: Any
    has_literal_default: bool
    comment: str = ""

    @property
    def secret(self) -> bool:
        """Marked `# secret` in its cell: its value comes from the environment and is written nowhere."""
        return self.comment.partition(":")[0].split(" ")[0].lower() == "secret"


@dataclass(frozen=True)
class Notebook:
    path: Path
    cells: tuple[Cell, ...]
    language: str
    kernel_name: str | None
    parameter_cells: int = 0
    parameters: dict[str, Declared] = field(default_factory=dict)

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.number is not None]


def read_notebook(path: Path) -> Notebook:
    """The notebook in the file.

    Raises PipelineError naming the file where it is missing, empty, cut off, has a byte order mark,
    is no JSON, or has another nbformat than 4.
    """
    document = _document(path)
    metadata = document.get("metadata") or {}
    kernelspec = metadata.get("kernelspec") or {}
    language = (metadata.get("language_info") or {}).get("name") or kernelspec.get("language") or "python"
    cells = tuple(_cells(document["cells"]))
    tagged = [cell for cell in cells if cell.kind == "code" and "parameters" in cell.tags]
    parameters = _declared(tagged[0].source, path) if len(tagged) == 1 and language == "python" else {}
    return Notebook(
        path=path,
        cells=cells,
        language=language,
        kernel_name=kernelspec.get("name"),
        parameter_cells=len(tagged),
        parameters=parameters,
    )


def code_cells(document: dict[str, Any]) -> list[str]:
    """The sources of the cells that run, in order, of a notebook's JSON; for comparing two states of it."""
    return [cell.source for cell in _cells(document.get("cells") or []) if cell.number is not None]


def python_source(cell: Cell) -> str:
    """The cell as plain Python: magics and shell lines become `pass`, so that it can be parsed."""
    if cell.source.lstrip().startswith("%%"):
        return ""
    lines = []
    for line in cell.source.splitlines():
        bare = line.lstrip()
        lines.append(line[: len(line) - len(bare)] + "pass" if bare.startswith(("%", "!")) else line)
    return "\n".join(lines)


@functools.lru_cache(maxsize=1024)
def imported_names(source: str) -> frozenset[str]:
    """Absolute dotted module names imported anywhere in `source`, inside functions too; {} where it does not parse."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def project_modules(notebook: Notebook) -> dict[str, Path]:
    """The modules beside the notebook that it imports, recursively: path relative to its folder -> file."""
    root = notebook.path.parent
    found: dict[str, Path] = {}
    pending = set().union(*(imported_names(python_source(cell)) for cell in notebook.code))
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for file in _files_of(name, root):
            relative = file.relative_to(root).as_posix()
            if relative in found:
                continue
            found[relative] = file
            source = file.read_text(encoding="utf-8")
            pending |= imported_names(source) | _relative_imports(source, relative)
    return dict(sorted(found.items()))


def _document(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such notebook.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}.") from error
    if not raw.strip():
        raise PipelineError(f"{path}: the file is empty. Restore it, for example with `git checkout -- {path.name}`.")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise PipelineError(f"{path}: starts with a byte order mark. Save it as UTF-8 without one.")
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise PipelineError(f"{path}: is no complete notebook JSON: {error}. Restore it or save it again.") from error
    if not isinstance(document, dict) or document.get("nbformat") != 4 or not isinstance(document.get("cells"), list):
        found = document.get("nbformat") if isinstance(document, dict) else None
        raise PipelineError(
            f"{path}: has nbformat {found}, not 4. Convert it with `jupyter nbconvert --to notebook --inplace`."
        )
    return document


def _cells(raw: list[Any]) -> Iterator[Cell]:
    number = 0
    for cell in raw:
        source = cell.get("source") or ""
        text = source if isinstance(source, str) else "".join(source)
        tags = tuple((cell.get("metadata") or {}).get("tags") or ())
        runs = cell.get("cell_type") == "code" and bool(text.strip()) and "skip-execution" not in tags
        number += runs
        yield Cell(kind=cell.get("cell_type", ""), source=text, tags=tags, number=number if runs else None)


def _declared(source: str, path: Path) -> dict[str, Declared]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise PipelineError(f"{path}: the parameters cell does not parse: {error.msg}, line {error.lineno}.") from error
    comments = _comments(source)
    found: dict[str, Declared] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotation, value = node.target.id, node.annotation, node.value
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, annotation, value = node.targets[0].id, None, node.value
        else:
            continue
        try:
            default, literal = (ast.literal_eval(value), True) if value is not None else (None, False)
        except ValueError:
            default, literal = None, False
        type_ = parse_annotation(annotation) if annotation is not None else infer(default)
        found[name] = Declared(name, type_, default, literal, comments.get(node.end_lineno or node.lineno, ""))
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}


def _files_of(name: str, root: Path) -> Iterator[Path]:
    """The files under `root` that importing the dotted `name` executes, packages' __init__ included."""
    folder = root
    for part in name.split("."):
        if (folder / f"{part}.py").is_file():
            yield folder / f"{part}.py"
            return
        folder = folder / part
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        elif not folder.is_dir():
            return


def _relative_imports(source: str, relative: str) -> set[str]:
    """`from . import x` and `from .x import y` in a module at `relative`, as absolute names."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    names: set[str] = set()
    package = relative.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
            names.add(".".join(base))
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names - {""}
