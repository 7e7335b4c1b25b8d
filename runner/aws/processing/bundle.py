"""Code for jobs, by content: this package with its bootstrap, and a step's notebook with its project files.

A bundle is named by the hash of its paths and their bytes. It is complete in the bucket once its last file is there,
and a job compares what it received with the name. `.runnerignore` beside pipeline.toml excludes files, with gitignore's
patterns: `*`, `**`, `?`, `[…]`, a leading or inner `/` for "from here", a last `/` for folders, `!` for exceptions. The
last pattern that matches decides; below an excluded folder there are no exceptions.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runner.aws.bucket import Bucket
from runner.content import file_fact, walk
from runner.errors import UsageError
from runner.notebook.redaction import FORMS

IGNORE_FILE = ".runnerignore"
LARGEST_BYTES = 50_000_000
THREADS = 8
START, SOURCES, LIBRARY, NOTEBOOK = "_run.py", "runner.zip", "msgspec.zip", "notebook.ipynb"
NEVER = (".git/", ".venv*/", "__pycache__/", ".ipynb_checkpoints/", "/runs/", ".DS_Store")
SECRET_NAMES = (
    ".env*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", "credentials", "credentials.json", "credentials.csv", ".netrc", "_netrc", ".pypirc",
    ".git-credentials", ".htpasswd",
)  # fmt: skip
SNIFFED_BYTES = 8192  # a file with a zero byte among these is not text


@dataclass(frozen=True)
class Bundle:
    sha256: str
    files: dict[str, bytes]  # by path within it, sorted
    size_bytes: int


def bundle(files: Mapping[str, bytes]) -> Bundle:
    ordered = dict(sorted(files.items()))
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in ordered.items()}
    return Bundle(_digest(hashes), ordered, sum(len(data) for data in ordered.values()))


def digest(folder: Path) -> str:
    """The hash that a bundle of the folder's files has."""
    return _digest({relative: file_fact(path).sha256 for relative, path in sorted(walk(folder))})


def _digest(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def runner_bundle(environment: Mapping[str, object], *, library: bytes | None = None) -> Bundle:
    """This package's sources in one archive (few objects to download), the bootstrap and environment.json.

    `library` is msgspec's wheel: with it, a job that executes no notebook needs no environment.
    """
    files = {
        START: Path(__file__).with_name(START).read_bytes(),
        "environment.json": json.dumps(environment, indent=1, sort_keys=True).encode() + b"\n",
        SOURCES: zipped(package_files()),
    }
    return bundle(files if library is None else {**files, LIBRARY: library})


def package_files() -> dict[str, bytes]:
    """This package's sources, by path from the folder above it, without what makes new projects."""
    package = Path(__file__).parents[2]
    relatives = {path.relative_to(package): path for path in sorted(package.rglob("*"))}
    return {
        f"{package.name}/{relative.as_posix()}": path.read_bytes()
        for relative, path in relatives.items()
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
        if relative.parts[0] not in ("adopt", "init", "templates", "ui")
    }


def zipped(files: Mapping[str, bytes]) -> bytes:
    """The files as a ZIP; equal files give equal bytes."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return whole.getvalue()


def code_bundle(
    source: bytes,
    *,
    notebook: str,
    modules: Mapping[str, Path],
    root: Path,
    include: Iterable[str] = (),
    also: Iterable[str] = (),
) -> Bundle:
    """A step's notebook as `notebook.ipynb`, its modules below `modules/`, project files below `project/`.

    `source` is the notebook's bytes and `notebook` its path from `root`, for messages. `include` are glob patterns
    from `root`, a folder meaning all files below it; `also` are single files, and missing ones are left out. Modules
    may lie elsewhere, as in a run's folder, but are not links to elsewhere. Raises UsageError for a secret, for more
    than 50 MB, for a link that leaves `root`, and for what is neither file nor folder.
    """
    paths = {f"modules/{name}": path for name, path in modules.items()}
    ignored = Ignored(root)
    for relative in sorted({*_included(root, include, ignored), *_existing(root, also, ignored)}):
        paths[f"project/{relative}"] = root / relative
    sizes = {name: _size(path, root.resolve(), place=name) for name, path in paths.items()}
    _refuse_large({NOTEBOOK: len(source), **sizes})
    files = {NOTEBOOK: source, **{name: path.read_bytes() for name, path in paths.items()}}
    for name, data in files.items():
        problem = _secret(name, data)
        if problem:
            shown = notebook if name == NOTEBOOK else name.partition("/")[2]
            remedy = "Take it out there, and give it to the step as a secret parameter."
            if name.startswith("project/"):
                remedy = f"Leave it out with a line `/{shown}` in {IGNORE_FILE}."
            raise UsageError(f"{shown} {problem}, and would be sent to the job. {remedy}")
    return bundle(files)


def upload(bucket: Bucket, below: str, bundle: Bundle) -> tuple[str, int]:
    """(the bundle's key, ending in `/`; bytes moved, 0 where it was complete). Safe to call again after a failure."""
    at = f"{below}{bundle.sha256}/"
    last = START if START in bundle.files else NOTEBOOK
    present = dict(bucket.keys(at))
    if all(present.get(at + path) == len(data) for path, data in bundle.files.items()):
        return at, 0
    with ThreadPoolExecutor(THREADS) as pool:
        first = [(path, data) for path, data in bundle.files.items() if path != last]
        list(pool.map(lambda item: bucket.put(at + item[0], item[1]), first))
    bucket.put(at + last, bundle.files[last])
    return at, bundle.size_bytes


def name_of(at: str) -> str:
    """The hash in a bundle's key or address."""
    return at.rstrip("/").rpartition("/")[2]


class Ignored:
    """The files that `.runnerignore` in the root excludes, and those that no job ever needs."""

    def __init__(self, root: Path) -> None:
        file = root / IGNORE_FILE
        own = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self._rules = [rule for line in [*NEVER, IGNORE_FILE, *own] if (rule := _rule(line)) is not None]

    def __call__(self, relative: str) -> bool:
        """Whether the file at this path from the root is excluded, itself or with a folder above it."""
        above = [parent.as_posix() for parent in reversed(PurePosixPath(relative).parents)][1:]
        return any(self._excludes(folder, folder=True) for folder in above) or self._excludes(relative, folder=False)

    def _excludes(self, path: str, *, folder: bool) -> bool:
        excluded = False
        for expression, only_folders, excludes in self._rules:
            if (folder or not only_folders) and expression.fullmatch(path):
                excluded = excludes
        return excluded


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """(expression over the whole path, only for folders, excludes) of one line; None for blanks and comments."""
    line = line.rstrip()
    if not line or line.startswith("#"):
        return None
    excludes = not line.startswith("!")
    pattern = line.removeprefix("!")
    only_folders = pattern.endswith("/")
    pattern = pattern.rstrip("/")
    start = "" if "/" in pattern else "(?:.*/)?"
    parts = []
    for token in re.findall(r"\\.|\*\*/|/\*\*$|\*+|\?|\[!?[^]]+\]|.", pattern.removeprefix("/")):
        match token:
            case _ if token.startswith("\\") and len(token) > 1:
                parts.append(re.escape(token[1]))
            case "**/":
                parts.append("(?:.*/)?")
            case "/**":
                parts.append("/.*")
            case "?":
                parts.append("[^/]")
            case _ if token.startswith("*"):
                parts.append("[^/]*")
            case _ if len(token) > 1:
                parts.append(token.replace("[!", "[^", 1).replace("\\", r"\\"))
            case _:
                parts.append(re.escape(token))
    try:
        return re.compile(start + "".join(parts)), only_folders, excludes
    except re.error as error:
        raise UsageError(f"{IGNORE_FILE} has a pattern that cannot be read: {line}: {error}.") from error


def _included(root: Path, include: Iterable[str], ignored: Ignored) -> Iterator[str]:
    for pattern in include:
        if pattern.startswith("/") or ".." in PurePosixPath(pattern).parts:
            raise UsageError(f'[sagemaker] include = "{pattern}" leaves the project. Patterns go from pipeline.toml.')
        matches = [root] if pattern.strip("./") == "" else sorted(root.glob(pattern.rstrip("/")))
        if not matches:
            raise UsageError(f'[sagemaker] include = "{pattern}" matches nothing below {root}.')
        for match in matches:
            for path in sorted(match.rglob("*")) if match.is_dir() else [match]:
                relative = path.relative_to(root).as_posix()
                if not path.is_dir() and not ignored(relative):
                    yield relative
                elif path.is_symlink() and not ignored(relative):
                    raise UsageError(f"{path} is a link to a folder; put the folder itself there, or leave it out.")


def _existing(root: Path, also: Iterable[str], ignored: Ignored) -> Iterator[str]:
    for relative in also:
        path = PurePosixPath(relative)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{relative} lies outside the project, and cannot be sent to a job. Make it an input.")
        if (root / path).is_file() and not ignored(path.as_posix()):
            yield path.as_posix()


def _size(path: Path, root: Path, *, place: str) -> int:
    try:
        inside = path.resolve(strict=True).is_relative_to(root) or (
            place.startswith("modules/") and not path.is_symlink()
        )
        status = path.stat()
    except (OSError, RuntimeError) as error:  # a link to nothing, or in a circle
        raise UsageError(f"{path} cannot be read: {error}. Leave it out in {IGNORE_FILE}.") from error
    if not inside:
        raise UsageError(f"{path} is a link that leaves the project. Put the file itself there, or leave it out.")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is not a regular file. Leave it out in {IGNORE_FILE}.")
    return status.st_size


def _refuse_large(sizes: Mapping[str, int]) -> None:
    total = sum(sizes.values())
    if total <= LARGEST_BYTES:
        return
    biggest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    shown = ", ".join(f"{name.removeprefix('project/')} ({sizes[name] / 1e6:.1f} MB)" for name in biggest)
    raise UsageError(
        f"The step's files have {total / 1e6:.1f} MB; a job takes {LARGEST_BYTES / 1e6:.0f} MB of them. The biggest: "
        f"{shown}. Leave them out in {IGNORE_FILE}, or declare what is data as an input of the step."
    )


def _secret(name: str, data: bytes) -> str:
    """What is secret about the file, as words that follow its name; "" for nothing."""
    last = PurePosixPath(name).name.lower()
    if any(fnmatch.fnmatchcase(last, pattern) for pattern in SECRET_NAMES):
        return "is named like a file of secrets"
    if b"\0" not in data[:SNIFFED_BYTES]:
        text = data.decode("utf-8", "replace")
        for kind, form in FORMS.items():
            if form.search(text):
                return f"has in it what looks like a credential ({kind})"
    return ""
