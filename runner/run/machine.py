"""What a run depends on outside its project: account, machine, interpreter and installed packages.

Standard library only, as the fast path compares it. `provenance` and `packages` record the same.
"""

from __future__ import annotations

import contextlib
import os
import sys

from runner import __version__

ACCOUNT = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")  # who somebody is, and what `~` means


def facts() -> list[object]:
    """Equal while a run would record the same machine, account, interpreter and packages."""
    return [
        os.getuid(),
        account(),
        list(os.uname()),
        os.cpu_count(),
        sys.version,
        sys.prefix,
        __version__,
        kernel_path(),
        [names for place in sys.path if (names := [*dist_infos(place), *_path_files(place)])],
    ]


def account() -> str:
    """The account's name; "" where it has none, as in some containers."""
    import pwd  # not on Windows

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def kernel_path() -> list[str]:
    """Where a kernel imports from: this interpreter's sys.path without the working folder and the command's own."""
    own = {os.getcwd(), os.path.dirname(os.path.abspath(sys.argv[0]))}
    own -= set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [place for place in sys.path if place and place not in own]


def dist_infos(place: str) -> list[str]:
    """The metadata folders, `NAME-VERSION.dist-info`, of the packages installed in a folder of sys.path, sorted."""
    try:
        return sorted(name for name in os.listdir(place or ".") if name.endswith(".dist-info"))
    except OSError:
        return []


def _path_files(place: str) -> list[str]:
    """What extends sys.path when Python starts: .pth files, and the finders of editable packages."""
    files = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(place or "."):
            if entry.name.endswith(".pth") or entry.name.startswith("__editable__"):
                files.append(f"{entry.name} {entry.stat().st_size} {entry.stat().st_mtime_ns}")
    return sorted(files)


def code_files(place: str) -> list[str]:
    """The modules in a package's folder and below, sorted; of a module that is a file, that file."""
    if not os.path.isdir(place):
        return [place]
    modules = []
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]
        modules += [os.path.join(folder, name) for name in files if name.endswith((".py", ".so"))]
    return sorted(modules)
