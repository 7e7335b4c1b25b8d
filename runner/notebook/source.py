"""A notebook as source: its cells, the parameters it declares, the project modules it imports.

Reads the JSON itself (nbformat takes 0.2 s to import) and says what is wrong with a file before any kernel starts.
Knows nothing of pipelines or of execution.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from runner.errors import PipelineError
from runner.notebook.parameters import Declared, declared, syntax_tree

PARAMETERS = "parameters"  # the tag of the cell that declares what a notebook takes
SHOWN_CHARACTERS = 200  # of a cell's first line
# cell magics whose cell is Python all the same
_PYTHON_MAGICS = re.compile(r"\s*%%(time|timeit|capture|prun|mprun|memit|debug)\b[^\n]*")
_MAGIC_LINE = re.compile(r"(\s*)(?:[\w.,\[\]'\" ]+=\s*)?[%!?]|(\s*)[\w.%]+\?{1,2}\s*$")
_IMPORT_LINE = re.compile(r"\s*((?:import|from)\s[^;#]*)")


@dataclass(frozen=True)
class Cell:
    kind: str  # "code", "markdown", "raw"
    source: str
    tags: tuple[str, ...] = ()
    number: int | None = None  # the n of [n] after Run All; None for what does not run

    @property
    def first_line(self) -> str:
        return first_line(self.source)


@dataclass(frozen=True)
class Notebook:
    path: Path
    cells: tuple[Cell, ...]
    language: str
    kernel_name: str | None
    parameter_cells: int = 0
    parameters: dict[str, Declared] = field(default_factory=dict)
    rest: str = ""  # the code in its parameters cell that declares nothing, as far as that can be read

    @property
    def open(self) -> bool:
        """Whether it may take more parameters: its cell, not in Python, has lines that were not read."""
        return bool(self.rest) and self.language != "python"

    @property
    def tagging(self) -> str:
        """What is wrong with the tags of the parameters cell, in a sentence; "" where nothing is."""
        if self.parameter_cells > 1:
            numbers = ", ".join(f"[{cell.number}]" for cell in self.code if PARAMETERS in cell.tags)
            return f"{self.parameter_cells} cells are tagged `{PARAMETERS}`: {numbers}. Keep one."
        for position, cell in enumerate(self.cells, 1):
            near = next((tag for tag in cell.tags if tag.lower().rstrip("s") == PARAMETERS.rstrip("s")), None)
            if self.parameter_cells == 0 and near is not None:
                where = f"cell [{cell.number}]" if cell.number else f"cell {position}, {cell.kind or 'no kind'},"
                wrong = f"the tag is `{PARAMETERS}`" if near != PARAMETERS else "it belongs on a code cell"
                return f"{where} is tagged `{near}`; {wrong}."
        return ""

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.number is not None]


def read_notebook(path: Path) -> Notebook:
    """The notebook in the file.

    Raises PipelineError naming the file where it is missing, empty, incomplete, has a byte order mark, is not JSON, has
    another nbformat than 4, or a cell without what nbformat 4 requires.
    """
    document = _document(path)
    metadata = document.get("metadata") or {}
    kernelspec = metadata.get("kernelspec") or {}
    language = (metadata.get("language_info") or {}).get("name") or kernelspec.get("language") or "python"
    cells = tuple(cells_of(document["cells"]))
    tagged = [cell for cell in cells if cell.kind == "code" and PARAMETERS in cell.tags]
    parameters, rest = dict[str, Declared](), ""
    if len(tagged) == 1:
        source = python_source(tagged[0]) if language == "python" else tagged[0].source
        parameters, rest = declared(source, language, path)
    return Notebook(
        path=path,
        cells=cells,
        language=language,
        kernel_name=kernelspec.get("name"),
        parameter_cells=len(tagged),
        parameters=parameters,
        rest=rest,
    )


def first_line(source: str) -> str:
    """The first line that is not empty, cut where it is long, to be shown."""
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} …"


def code_cells(document: dict[str, Any]) -> list[str]:
    """The sources of the cells that run, in order, of a notebook's JSON; for comparing two states of it."""
    return [cell.source for cell in cells_of(document.get("cells") or []) if cell.number is not None]


def python_source(cell: Cell) -> str:
    """The cell as plain Python, line by line: if it does not parse as it is, magics and shell lines become `pass`."""
    return _as_python(cell.source)


@functools.lru_cache(maxsize=1024)
def _as_python(source: str) -> str:
    source = _PYTHON_MAGICS.sub("pass", source, count=1) if _PYTHON_MAGICS.match(source) else source
    if source.lstrip().startswith("%%"):
        return ""
    if parsed(source) is not None:
        return source
    lines = []
    continued = False  # by a backslash at the end of a magic's line
    indent = ""
    for line in source.splitlines():
        magic = _MAGIC_LINE.match(line)
        if not continued:
            indent = line[: len(line) - len(line.lstrip())]
        lines.append(f"{indent}pass" if magic or continued else line)
        continued = bool(magic or continued) and line.endswith("\\")
    return "\n".join(lines)


@functools.lru_cache(maxsize=1024)
def imported_names(source: str) -> frozenset[str]:
    """Absolute dotted module names imported anywhere in `source`, inside functions too.

    Of a source that does not parse, those of the lines that are an import by themselves.
    """
    tree = parsed(source)
    if tree is None:
        lines = (match[1] for line in source.splitlines() if (match := _IMPORT_LINE.match(line)))
        return frozenset().union(*(imported_names(line) for line in lines if line != source and parsed(line)))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def parsed(source: str) -> ast.Module | None:
    """The source's syntax tree; None where it does not parse."""
    try:
        return syntax_tree(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # NUL in it, or nested too deeply
        return None


def project_modules(notebook: Notebook) -> dict[str, Path]:
    """The modules beside the notebook that it imports, recursively: path relative to its folder -> file."""
    root = notebook.path.parent
    modules: dict[str, Path] = {}
    names = _cell_imports(notebook)
    pending = set(names)
    while pending:
        for file in _files_of(pending.pop(), root):
            relative = file.relative_to(root).as_posix()
            if relative not in modules:
                modules[relative] = file
                new = _module_imports(file, relative) - names
                names |= new
                pending |= new
    return dict(sorted(modules.items()))


def module_source(file: Path) -> str:
    """The module's text; of one that is not UTF-8, which Python reads by the encoding it names, what can be read."""
    return file.read_text(encoding="utf-8", errors="replace")


def _cell_imports(notebook: Notebook) -> set[str]:
    return {name for cell in notebook.code for name in imported_names(python_source(cell))}


def _module_imports(file: Path, relative: str) -> set[str]:
    source = module_source(file)
    return _relative_imports(source, relative) | imported_names(source)


def module_places(notebook: Notebook) -> set[Path]:
    """Every file beside the notebook that would be a project module of it, whether it exists or not."""
    root, modules = notebook.path.parent, project_modules(notebook)
    names = {"runner"} | _cell_imports(notebook)
    for relative, file in modules.items():
        names |= _module_imports(file, relative)
    parts = [name.split(".") for name in names]
    dotted = {tuple(name[:length]) for name in parts for length in range(1, len(name) + 1)}
    return {
        place
        for name in dotted
        for place in (root.joinpath(*name, "__init__.py"), root.joinpath(*name[:-1], f"{name[-1]}.py"))
    }


class _Metadata(msgspec.Struct):
    tags: list[str] = []


class _CellShape(msgspec.Struct):
    """The part of a cell that nbformat 4 requires and papermill relies on."""

    cell_type: Literal["code", "markdown", "raw"]
    metadata: _Metadata
    source: str | list[str]


class _Kernelspec(msgspec.Struct):
    name: str | None = None
    language: str | None = None


class _Language(msgspec.Struct):
    name: str | None = None


class _NotebookMetadata(msgspec.Struct):
    kernelspec: _Kernelspec | None = None
    language_info: _Language | None = None


class _Shape(msgspec.Struct):
    cells: list[_CellShape]
    metadata: _NotebookMetadata


def _document(path: Path) -> dict[str, Any]:
    if path.suffix in (".py", ".md", ".qmd", ".Rmd", ".R", ".jl"):
        raise PipelineError(
            f"{path} is a script or text, not a notebook. Convert it with `jupytext --to ipynb {path.name}`."
        )
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such notebook.") from None
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}.") from error
    if not raw.strip():
        raise PipelineError(f"{path}: the file is empty. Restore it, for example with `git checkout -- {path.name}`.")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise PipelineError(f"{path} starts with a byte order mark. Save it as UTF-8 without one.")
    try:
        document = json.loads(raw)  # not msgspec: outputs may have NaN, and Jupyter reads them
    except ValueError as error:
        raise PipelineError(f"{path} is not complete notebook JSON: {error}. Restore it or save it again.") from error
    except RecursionError:
        raise PipelineError(f"{path} is nested too deeply to be a notebook.") from None
    if not isinstance(document, dict) or document.get("nbformat") != 4 or not isinstance(document.get("cells"), list):
        version = document.get("nbformat") if isinstance(document, dict) else None
        raise PipelineError(
            f"{path} has nbformat {version}, not 4. Convert it with `jupyter nbconvert --to notebook --inplace`."
        )
    document.setdefault("metadata", {})
    try:
        msgspec.convert(document, _Shape)
    except msgspec.ValidationError as error:
        reason, _, at = str(error).partition(" - at `$.")
        raise PipelineError(
            f"{path}: {at.rstrip('`') or 'the notebook'}: {reason}. It is not a valid notebook; open and save it in "
            "Jupyter, or mend the file."
        ) from None
    for index, cell in enumerate(document["cells"]):
        try:
            "".join(cell["source"]).encode()
        except UnicodeEncodeError as error:
            raise PipelineError(
                f"{path}: cells[{index}].source: {error.object[error.start]!a} is half of a character, which no file "
                "can hold. Delete it, or type the character again."
            ) from None
    return document


def cells_of(raw: list[Any]) -> Iterator[Cell]:
    """The cells of a notebook's JSON."""
    number = 0
    for cell in raw:
        source = cell.get("source") or ""
        text = source if isinstance(source, str) else "".join(source)
        tags = tuple((cell.get("metadata") or {}).get("tags") or ())
        runs = cell.get("cell_type") == "code" and bool(text.strip()) and "skip-execution" not in tags
        number += runs
        yield Cell(kind=cell.get("cell_type", ""), source=text, tags=tags, number=number if runs else None)


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
    tree = parsed(source)
    if tree is None:
        return set()
    names: set[str] = set()
    package = relative.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
            names.add(".".join(base))
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names - {""}
