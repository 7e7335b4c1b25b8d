"""The files of a new project, and how they come to lie in its folder: all of them, or none."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

from runner.content import fsync_folder
from runner.errors import UsageError
from runner.failpoint import reach
from runner.init import shipped

PIPELINE = "pipeline.toml"  # comes last, as it is what makes a folder a project
MONITOR = "monitor.toml"
SAGEMAKER = "sagemaker.toml"  # what --aws adds to it
GROUPS = ("core", "jupyter", "sagemaker")  # of environment.yml, that a project has
Content = bytes | Path  # of a file: its bytes, or the file to copy
GUIDE = "docs/sagemaker.md"
_OTHER_PAGE = re.compile(r"\[([^]]+)\]\((?!#|https:)[^)]+\)")  # a link of the guide to a page that a project has not
_MARK = re.compile(r"\{\{(\w+)\}\}")


def project_name(folder: Path) -> str:
    """What pipeline and model are called: the folder's name in letters, digits and `-`. Raises UsageError for none."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", folder.absolute().name).strip("-")[:40].strip("-")
    if not name:
        raise UsageError(
            f"{folder}: no letter or digit is in the folder's name, which names the project. Name another."
        )
    return name


def files(template: str, values: Mapping[str, str], *, aws: bool) -> dict[str, bytes]:
    """What every project has, what the template adds, and with `aws` the stacks; by path in the project.

    `values` are what the words in README.md and pipeline.toml stand for; `name` is the pipeline's own where it has one.
    """
    common, own = shipped.template("project"), shipped.template(template)
    about, answer = (_text(source) for source in (own.pop("README.md"), common.pop("answer.md")))
    stacks = shipped.template("aws") if aws else {}
    contents = {path: source.read_bytes() for path, source in (common | own | stacks).items()}
    pipeline = _text(own[PIPELINE])
    pipeline = _filled(pipeline, values)
    settings = tomllib.loads(pipeline)
    values = {**values, "name": settings["name"]}
    if aws:
        pipeline = f"{pipeline.rstrip()}\n\n{_filled(contents.pop(SAGEMAKER).decode(), values)}"
    if "model" in settings:
        watching = shipped.template("monitor")
        contents[MONITOR] = _filled(_text(watching.pop(MONITOR)), values).encode()
        contents |= {path: source.read_bytes() for path, source in watching.items()}
    parts = {"about": _filled(about, values), "answer": _filled(answer, values) if "model" in settings else ""}
    if GUIDE in contents:
        contents[GUIDE] = _OTHER_PAGE.sub(r"\1", contents[GUIDE].decode()).encode()
    contents[PIPELINE] = pipeline.encode()
    contents["README.md"] = _filled(_text(common["README.md"]), {**values, **parts}).encode()
    contents[".gitignore"] = contents.pop("gitignore")
    wheel, wheel_bytes = shipped.wheel()
    contents[f"wheels/{wheel}"] = wheel_bytes
    contents["environment.yml"] = _environment(contents["environment.yml"].decode(), wheel).encode()
    return contents


def refuse_existing(folder: Path, contents: Mapping[str, Content]) -> None:
    """Raises UsageError where the folder is a file, or has something that a file of the project would replace."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. Name one that is new.")
    if not folder.is_dir():
        return
    present = {entry.name for entry in folder.iterdir()}
    taken = sorted(present & _entries(contents))
    if taken:
        raise UsageError(
            f"{folder} has {', '.join(taken)} already, and nothing is overwritten. Name a new folder, or move "
            f"{'it' if len(taken) == 1 else 'them'} away."
        )


def place(folder: Path, contents: Mapping[str, Content]) -> None:
    """Write the project. A folder that is new appears whole; into one that is there, pipeline.toml comes last.

    Raises UsageError as `refuse_existing`, and OSError, after which nothing is there that was not there before.
    """
    refuse_existing(folder, contents)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, start = (folder, ".runner") if folder.is_dir() else (folder.parent, f".{folder.name}")
    _remove_left_over(beside, f"{start}-init-")
    staged = beside / f"{start}-init-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        for path, content in contents.items():
            _write(staged / path, content)
        reach("project written")
        if folder.is_dir():
            _move_into(folder, staged, sorted(_entries(contents), key=lambda name: (name == PIPELINE, name)))
        else:
            staged.rename(folder)
        fsync_folder(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _entries(contents: Mapping[str, Content]) -> set[str]:
    """The project's uppermost files and folders."""
    return {path.partition("/")[0] for path in contents}


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    if path.suffix == ".sh":
        path.chmod(path.stat().st_mode | 0o111)
    reach("project half written")


def _move_into(folder: Path, staged: Path, names: list[str]) -> None:
    moved: list[str] = []
    try:
        for name in names:
            if os.path.lexists(folder / name):  # a rename would replace a file
                raise UsageError(f"{folder / name} has just been made by somebody else. Nothing was written.")
            (staged / name).rename(folder / name)
            moved.append(name)
    except BaseException:
        for name in reversed(moved):
            (folder / name).rename(staged / name)
        raise


def _remove_left_over(beside: Path, start: str) -> None:
    """What a command that was killed has left there: the name has its process."""
    for folder in beside.glob(f"{start}*"):
        pid = folder.name.removeprefix(start).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, OverflowError):
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            continue


def _text(source: Path) -> str:
    return source.read_text(encoding="utf-8")


def _filled(text: str, values: Mapping[str, str]) -> str:
    """The text with the value of each `{{word}}`."""
    return _MARK.sub(lambda match: values[match[1]], text)


def _environment(text: str, wheel: str) -> str:
    """The repository's environment.yml for a project: without what tests and lints the runner, with its wheel."""
    kept, group = ["# The same pins as the locks, for `conda env create`; the runner itself is in wheels/."], GROUPS[0]
    for line in text.splitlines()[1:]:
        group = line.strip("# ") if line.startswith("      # ") else group
        kept += [line] if group in GROUPS else []
    return "\n".join([*kept, "      # the runner", f"      - ./wheels/{wheel}", ""])
