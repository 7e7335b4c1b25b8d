"""The files that this program brings for projects, and this program as the wheel that a project keeps.

In a wheel they lie in runner/templates, a folder for each template, beside `project`, which every project has, `aws`,
`monitor` for those with a model, and an `example` of a table. In a checkout some of them are the repository's own, as
pyproject.toml says.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from runner.content import walk
from runner.errors import UsageError

PACKAGE = Path(__file__).parents[1]
TEMPLATES = f"{PACKAGE.name}/templates/"
PARTS = ("project", "aws", "example", "monitor")  # folders of templates/ that are no template
DISTRIBUTION = "papermill-runner"
METADATA = ("METADATA", "entry_points.txt", "licenses/LICENSE")
_WHEEL = "Wheel-Version: 1.0\nGenerator: runner init\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def templates() -> list[str]:
    """The names that `runner init --template` takes."""
    folders = (PACKAGE / "templates").iterdir()
    return sorted(folder.name for folder in folders if folder.is_dir() and folder.name not in PARTS)


def template(name: str) -> dict[str, Path]:
    """The files of one folder of templates/, by their path in a project."""
    start = f"{TEMPLATES}{name}/"
    return {path.removeprefix(start): file for path, file in _files().items() if path.startswith(start)}


def wheel() -> tuple[str, bytes]:
    """The name and the bytes of this program's wheel, made of what is installed; equal files give equal bytes.

    Raises UsageError where the program runs without being installed.
    """
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise UsageError(
            f"This runner is not installed as {DISTRIBUTION}, so it cannot be packed for a project. "
            "Install its wheel or its checkout: docs/install.md."
        ) from error
    name = f"{DISTRIBUTION.replace('-', '_')}-{installed.version}"
    files = {path: file.read_bytes() for path, file in _files().items()} | _metadata(installed, f"{name}.dist-info")
    files[f"{name}.dist-info/RECORD"] = _record(files, f"{name}.dist-info/RECORD")
    return f"{name}-py3-none-any.whl", _zipped(files)


def _files() -> dict[str, Path]:
    """Every file of the package by its path in a wheel."""
    files = {
        f"{PACKAGE.name}/{relative}": path for relative, path in walk(PACKAGE) if path.parent.name != "__pycache__"
    }
    root = PACKAGE.parent
    for source, target in _of_the_checkout(root).items():
        place = root / source
        below = {f"/{relative}": path for relative, path in walk(place)} if place.is_dir() else {"": place}
        files |= {f"{target}{relative}": path for relative, path in below.items()}
    return dict(sorted(files.items()))


def _of_the_checkout(root: Path) -> Mapping[str, str]:
    """Path in the checkout -> path in a wheel, of what lies outside the package; nothing where this is no checkout."""
    file = root / "pyproject.toml"
    if not (file.is_file() and (root / "hatch_build.py").is_file()):
        return {}
    build = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    shipped: Mapping[str, str] = build["targets"]["wheel"]["hooks"]["custom"]["shipped"]
    return shipped


def _metadata(installed: Distribution, folder: str) -> dict[str, bytes]:
    texts = {name: installed.read_text(name) for name in METADATA}
    return {f"{folder}/{name}": text.encode() for name, text in (texts | {"WHEEL": _WHEEL}).items() if text}


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    """A wheel's list of its files with their hashes: PEP 427."""
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{own},,\n"]).encode()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path)  # dated 1980
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(entry, data)
    return whole.getvalue()
