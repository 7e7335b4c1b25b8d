"""What a job is given to run, by content: this package with its bootstrap, and a step's notebook with its project files.

A bundle is named by the hash of its paths and their bytes, never by times or by the order they were found in. It is
complete in the bucket once its last file is there, and a job compares what came with that name. `.runnerignore` beside pipeline.toml keeps files out, in
gitignore's patterns: `*`, `**`, `?`, `[…]`, a leading or inner `/` for "from here", a last `/` for folders, `!` for
exceptions, of which the last to match decides; below a folder that is kept out there are none.
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
    return Bundle(_named(hashes), ordered, sum(len(data) for data in ordered.values()))


def digest(folder: Path) -> str:
    """The hash that a bundle of the folder's files has."""
    return _named({relative: file_fact(path).sha256 for relative, path in sorted(walk(folder))})


def _named(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def runner_bundle(environment: Mapping[str, object], *, library: bytes | None = None) -> Bundle:
    """This package's sources in one archive (a job fetches some objects instead of a hundred), the bootstrap and what
    it is to expect. `library` is msgspec's wheel: with it, a job that executes no notebook needs no environment."""
    files = {
        START: Path(__file__).with_name(START).read_bytes(),
        "environment.json": json.dumps(environment, indent=1, sort_keys=True).encode() + b"\n",
        SOURCES: zipped(package_files()),
    }
    return bundle(files if library is None else {**files, LIBRARY: library})


def package_files() -> dict[str, bytes]:
    """This package's sources, by path from the folder above it."""
    package = Path(__file__).parents[2]
    return {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
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
    forms: Mapping[str, re.Pattern[str]],
) -> Bundle:
    """A step's notebook as `notebook.ipynb`, its modules below `modules/`, project files below `project/`.

    `source` is the notebook's bytes and `notebook` its path from `root`, for messages. `include` are glob patterns
    from `root`, a folder meaning all below it; `also` are single files, and those gone since are left out. Modules may
    lie elsewhere, as in a run's folder, but are not links to elsewhere. `forms` are what credentials look like, by
    kind. Raises UsageError for a secret, for more than 50 MB, for a link that leaves `root`, and for what is neither
    file nor folder.
    """
    found = {f"modules/{name}": path for name, path in modules.items()}
    ignored = Ignored(root)
    for relative in sorted({*_included(root, include, ignored), *_asked(root, also, ignored)}):
        found[f"project/{relative}"] = root / relative
    sizes = {name: _size(path, root.resolve(), place=name) for name, path in found.items()}
    _refuse_large({NOTEBOOK: len(source), **sizes})
    files = {NOTEBOOK: source, **{name: path.read_bytes() for name, path in found.items()}}
    for name, data in files.items():
        kind = _secret(name, data, forms)
        if kind:
            shown = notebook if name == NOTEBOOK else name.partition("/")[2]
            raise UsageError(f"{shown} {kind}, and would be sent to the job. {_way_out(name, shown)}")
    return bundle(files)


def upload(bucket: Bucket, below: str, bundle: Bundle) -> tuple[str, int]:
    """(the key it lies at, ending in `/`; bytes moved, 0 where it was there). Safe to call again after it broke off."""
    at = f"{below}{bundle.sha256}/"
    last = START if START in bundle.files else NOTEBOOK
    there = dict(bucket.keys(at))
    if all(there.get(at + path) == len(data) for path, data in bundle.files.items()):
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
    """What `.runnerignore` in the root, and what no job ever needs, keep out."""

    def __init__(self, root: Path) -> None:
        file = root / IGNORE_FILE
        own = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self._rules = [rule for line in [*NEVER, IGNORE_FILE, *own] if (rule := _rule(line)) is not None]

    def __call__(self, relative: str) -> bool:
        """Whether the file at this path from the root is kept out, itself or with a folder above it."""
        above = [parent.as_posix() for parent in reversed(PurePosixPath(relative).parents)][1:]
        return any(self._kept_out(folder, folder=True) for folder in above) or self._kept_out(relative, folder=False)

    def _kept_out(self, path: str, *, folder: bool) -> bool:
        verdict = False
        for expression, only_folders, out in self._rules:
            if (folder or not only_folders) and expression.fullmatch(path):
                verdict = out
        return verdict


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """(expression over the whole path, only for folders, keeps out) of one line; None for blanks and comments."""
    line = line.rstrip()
    if not line or line.startswith("#"):
        return None
    out = not line.startswith("!")
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
        return re.compile(start + "".join(parts)), only_folders, out
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


def _asked(root: Path, also: Iterable[str], ignored: Ignored) -> Iterator[str]:
    for relative in also:
        path = PurePosixPath(relative)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{relative} lies outside the project, and cannot be sent to a job. Make it an input.")
        if (root / path).is_file() and not ignored(path.as_posix()):
            yield path.as_posix()


def _size(path: Path, root: Path, *, place: str) -> int:
    try:
        whole = path.resolve(strict=True)
        inside = whole.is_relative_to(root) or (place.startswith("modules/") and not path.is_symlink())
        status = path.stat()
    except (OSError, RuntimeError) as error:  # a link that leads nowhere, or round and round
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


def _secret(name: str, data: bytes, forms: Mapping[str, re.Pattern[str]]) -> str:
    """What is secret about the file, as words that follow its name; "" for nothing."""
    last = PurePosixPath(name).name.lower()
    if any(fnmatch.fnmatchcase(last, pattern) for pattern in SECRET_NAMES):
        return "is named like a file of secrets"
    if b"\0" not in data[:SNIFFED_BYTES]:
        text = data.decode("utf-8", "replace")
        for kind, form in forms.items():
            if form.search(text):
                return f"has in it what looks like a credential ({kind})"
    return ""


def _way_out(name: str, shown: str) -> str:
    if name.startswith("project/"):
        return f"Leave it out with a line `/{shown}` in {IGNORE_FILE}."
    return "Take it out there, and give it to the step as a secret parameter."
