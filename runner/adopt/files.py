"""Which files a notebook reads and writes, by the calls in its code that name them."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runner.adopt.names import Binding, Names, StaticText
from runner.adopt.source import CodeCell, Source

# the call's name -> where its path stands among the positional arguments
READS = dict.fromkeys((
    "read_csv", "read_parquet", "read_excel", "read_json", "read_pickle", "read_feather", "read_table", "read_fwf",
    "read_hdf", "read_stata", "read_sas", "read_spss", "read_orc", "read_xml", "read_ipc", "read_avro", "read_file",
    "scan_csv", "scan_parquet", "load", "loadtxt", "genfromtxt", "fromfile", "loadmat", "imread", "load_model",
    "load_weights", "load_svmlight_file",
), 0)  # fmt: skip
WRITES = dict.fromkeys((
    "to_csv", "to_parquet", "to_excel", "to_json", "to_pickle", "to_feather", "to_html", "to_hdf", "to_stata",
    "to_orc", "to_xml", "to_markdown", "to_latex", "to_file", "write_csv", "write_parquet", "savefig", "savez",
    "savez_compressed", "savetxt", "tofile", "savemat", "imsave", "write_html", "write_image", "save_model",
    "save_weights", "save_pretrained", "ExcelWriter", "save",
), 0) | {"dump": 1, "imwrite": 0, "dump_svmlight_file": 2, "urlretrieve": 1}  # fmt: skip
RECEIVERS: dict[str, Role] = {
    "read_text": "input", "read_bytes": "input", "write_text": "output", "write_bytes": "output"
}  # fmt: skip
# names that also stand for what has nothing to do with files: only a path that is known tells
AMBIGUOUS = {"load", "save", "dump", "to_json", "to_html", "to_csv", "to_markdown", "to_latex", "to_xml", "read_file"}
OPENERS = {"gzip", "bz2", "lzma", "codecs", "io", "tarfile", "Image"}  # whose `open` takes the path first
FIRST_OBJECT = {"torch"}  # whose `save` takes the object first
KEYWORDS = (
    "filepath_or_buffer", "path", "path_or_buf", "io", "excel_writer", "fname", "filename", "file", "filepath",
    "file_name", "f", "buf",
)  # fmt: skip
FOLDERS = {"save_pretrained"}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
Role = Literal["input", "output"]


@dataclass(frozen=True)
class FileUse:
    """One call that names a file, in the cell `at`. `place` in `cell` is the expression to be replaced.

    `binding`: the name whose whole value the path is. `role` is None where the call reads and writes.
    """

    at: CodeCell
    cell: CodeCell
    call: str
    role: Role | None
    found: StaticText
    place: ast.expr
    binding: Binding | None

    @property
    def key(self) -> str:
        """Equal for two ways to write one path."""
        return self.found.text if self.is_address else posixpath.normpath(self.found.text)

    @property
    def is_address(self) -> bool:
        return ADDRESS.match(self.found.text) is not None

    @property
    def is_folder(self) -> bool:
        return self.found.text.endswith("/") or self.call in FOLDERS


@dataclass(frozen=True)
class UnknownPath:
    """A call whose path is made while the notebook runs."""

    cell: CodeCell
    call: str
    expression: str


def file_uses(source: Source, names: Names) -> Iterator[FileUse | UnknownPath]:
    """Each call that reads or writes a file, in the order of the code."""
    for cell, node in source.nodes():
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        role, argument, certain = _path_of(node, name, names)
        if argument is None or (isinstance(argument, ast.Constant) and not isinstance(argument.value, str)):
            continue
        found = names.text(argument)
        if found is None:
            if certain and not _is_buffer(argument):
                yield UnknownPath(cell, name, ast.unparse(argument))
        elif found.text:
            yield _use(cell, name, role, found, argument, names)


def _path_of(node: ast.Call, name: str, names: Names) -> tuple[Role | None, ast.expr | None, bool]:
    """(what the call does with its file, the path's expression or None, whether it is a file's for certain)."""
    base = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if name == "open" and isinstance(node.func, ast.Attribute) and base not in OPENERS:
        known = names.text(node.func.value)
        is_path = known is not None and bool(known.constructor)
        return _role_of_mode(node, 0), node.func.value if is_path else None, False
    if name == "open" or (name == "File" and base == "h5py") or (name == "ZipFile"):
        return ("input" if base == "Image" else _role_of_mode(node, 1)), _argument(node, 0), True
    if name in RECEIVERS and isinstance(node.func, ast.Attribute):
        return RECEIVERS[name], node.func.value, True
    if name in WRITES:
        position = 1 if name == "save" and base in FIRST_OBJECT else WRITES[name]
        return "output", _argument(node, position), name not in AMBIGUOUS
    if name in READS:
        return "input", _argument(node, READS[name]), name not in AMBIGUOUS
    return None, None, False


def _argument(node: ast.Call, position: int) -> ast.expr | None:
    if any(isinstance(argument, ast.Starred) for argument in node.args[: position + 1]):
        return None
    if len(node.args) > position:
        return node.args[position]
    named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return next((named[name] for name in KEYWORDS if name in named), None)


def _role_of_mode(node: ast.Call, position: int) -> Role | None:
    """By the mode of an `open`; None where it reads and writes, appends, or cannot be known."""
    mode = next((keyword.value for keyword in node.keywords if keyword.arg == "mode"), None)
    if mode is None and len(node.args) > position:
        mode = node.args[position]
    if mode is None:
        return "input"
    if not isinstance(mode, ast.Constant) or not isinstance(mode.value, str) or "+" in mode.value:
        return None
    return {"r": "input", "w": "output", "x": "output"}.get(mode.value.strip("btU|:*gzx2") or mode.value[:1])  # type: ignore[return-value]


def _use(cell: CodeCell, call: str, role: Role | None, found: StaticText, argument: ast.expr, names: Names) -> FileUse:
    """The use, at the end of the names that lead to its path."""
    at, place, binding = cell, argument, None
    while isinstance(place, ast.Name):
        bound = names.bindings[place.id]
        binding, place, cell = bound, bound.value, bound.cell
    return FileUse(at, cell, call, role, names.text(place) or found, place, binding)


def _is_buffer(argument: ast.expr) -> bool:
    """Whether it is an object in memory, or an open file, so that another call has the path."""
    match argument:
        case ast.Call(func=function):
            return ast.unparse(function).rpartition(".")[2] in ("StringIO", "BytesIO", "open", "urlopen", "get")
    return False
