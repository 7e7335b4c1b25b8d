"""The Python of `own_image`, begun once: containers whose command is `python3 …` are forks of this process.

    python3 -m small_sagemaker.interpreter SOCKET

It has imported the packages that jobs import, none of them the runner's, and does nothing but fork: a container
begins a second of processor time later in its life, in the same namespaces, with the same root, user and network as one
whose Python is started there. A program that becomes another Python by `os.execve`, or starts one with `subprocess`,
is spared that start too. Code of the runner that a job brings is compiled here, once for the same bytes.

A request is a datagram: what `contain` takes as JSON, with three descriptors: the container's network, its stdout and
stderr, and a pipe where its number and its exit code are written, negative for a signal.
"""

from __future__ import annotations

import _imp
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.machinery
import io
import json
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

REQUEST_BYTES = 1 << 18
# what a job, its fork server and the kernels of that import
PACKAGES = (
    "asyncio", "boto3", "click", "entrypoints", "ipykernel.ipkernel", "ipykernel.kernelapp", "jupyter_client",
    "msgspec.json", "msgspec.toml", "nbclient", "nbformat", "requests", "s3transfer.manager", "tenacity", "yaml",
    "zipfile",
)  # fmt: skip
GRAMMAR = "rfc3987_syntax"  # which jsonschema would build in three seconds, for a check that nobody asks for
RUNNER = Path(__file__).parents[2] / "runner"
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000,
)  # fmt: skip
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
READ_AT_START = (
    "PYTHON",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC",
    "GLIBC",
    "JUPYTER_PLATFORM",
)  # a fork comes too late for these
SEARCHED = "PYTHONPATH"
BEGUN_WITH = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}  # as the runner has it for every kernel

HIGH = 200  # descriptors from here on are nobody's

libc = ctypes.CDLL(None, use_errno=True)
execve, fork_exec = os.execve, subprocess._fork_exec  # type: ignore[attr-defined]
compiled: dict[bytes, bytes] = {}  # by source
modules: set[str] = set()  # what every Python finds imported
path: list[str] = []


def may_fork(environment: Mapping[str, str]) -> bool:
    """Whether a Python with this environment can be a fork of one that was begun without it."""
    asked = {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}
    return all(name == SEARCHED or BEGUN_WITH.get(name) == value for name, value in asked.items())


def load() -> None:
    sys.modules[GRAMMAR] = None  # type: ignore[assignment]
    for name in PACKAGES:
        importlib.import_module(name)
    del sys.modules[GRAMMAR]
    from nbformat.validator import get_validator
    from support import botocore_files

    botocore_files.read()
    get_validator(4, 5)
    for file in RUNNER.rglob("*.py"):
        source = file.read_bytes()
        compiled[source] = marshal.dumps(compile(source, "runner", "exec", dont_inherit=True))
    plain = importlib.machinery.SourceFileLoader.source_to_code

    def source_to_code(self: Any, data: Any, path: Any, **options: Any) -> Any:
        if data not in compiled:
            return plain(self, data, path, **options)
        code = marshal.loads(compiled[data])
        _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]
        return code

    importlib.machinery.SourceFileLoader.source_to_code = source_to_code  # type: ignore[assignment]


def serve(requests: socket.socket) -> None:
    going: dict[int, tuple[int, int]] = {}  # a process's descriptor: its number, and where its exit code goes
    while True:
        for ready in select.select([requests, *going], [], [])[0]:
            if ready is not requests:
                pid, told = going.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(told, f"{code}\n".encode())
                os.close(told)
                os.close(ready)
                continue
            data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
            if not data:
                return
            network, output, told = descriptors
            pid = os.fork()
            if pid == 0:
                for other in {*opened()} - {network, output}:
                    os.close(other)
                try:
                    contain(network, output, **json.loads(data))
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(1)
            os.close(network)
            os.close(output)
            os.write(told, f"{pid}\n".encode())
            going[os.pidfd_open(pid)] = (pid, told)


def contain(
    network: int,
    output: int,
    *,
    root: str,
    mounts: list[str],
    tools: dict[str, str],
    number: int | None,
    privileged: bool,
    arguments: list[str],
    environment: dict[str, str],
) -> NoReturn:
    """What `unshare`, `mount`, `chroot` and `setpriv` do for other containers (container.py); then the program.

    `mounts` is the command that mounts, `number` the user's where it is not root, `privileged` whether programs may
    make it root.
    """
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for given, place in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(given, place)
    _do(libc.setns(network, CLONE_NEWNET))
    for one in (nothing, output, network):
        os.close(one)
    _do(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID))
    pid = os.fork()
    if pid:
        gc.disable()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    _do(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    subprocess.run(mounts, env=tools, check=True)
    os.chroot(root)
    os.chdir("/")
    if number is not None:
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
        _do(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        if not privileged:
            _do(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    interpret(arguments, environment)


def become(program: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """As `os.execve`, which it is for all but this Python."""
    if program != sys.executable or threading.active_count() > 1 or not may_fork(environment):
        execve(program, arguments, environment)
    atexit._clear()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if Spare.one is not None:  # else it would close, when it is forgotten, what has its number by then
        Spare.one.asked.close()
        Spare.one = None
    for place in opened():
        if not os.get_inheritable(place):
            os.close(place)
    interpret(arguments[1:], environment)


def opened() -> list[int]:
    """Those that are open, besides the standard streams."""
    found = [int(one) for one in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [one for one in found if one > 2 and os.path.exists(f"/proc/self/fd/{one}")]  # noqa: PTH110


class Spare:
    """A child of this process that waits to be the Python that `subprocess` is asked to start: there is one at most,
    from before this process has threads."""

    one: Spare | None = None

    def __init__(self) -> None:
        self.asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self.asked.close()
            Spare.one = None
            self._wait(theirs)
        theirs.close()

    def start(self, arguments: list[str], environment: dict[str, str], folder: str | None, session: bool,
              places: dict[int, int]) -> int:  # fmt: skip
        """`places` are descriptors by the numbers that they get."""
        what = {"arguments": arguments, "environment": environment, "folder": folder, "session": session}
        request = json.dumps({**what, "places": list(places)}).encode()
        socket.send_fds(self.asked, [request], list(places.values()))
        self.asked.close()
        return self.pid

    def _wait(self, asked: socket.socket) -> NoReturn:
        data, given, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 64)
        if not data:
            os._exit(0)
        what = json.loads(data)
        moved = [fcntl.fcntl(one, fcntl.F_DUPFD, HIGH) for one in given]
        for one in opened():
            if one not in moved:
                os.close(one)
        for one, place in zip(moved, what["places"], strict=True):
            os.dup2(one, place)
            os.close(one)
        if what["session"]:
            os.setsid()
        os.chdir(what["folder"] or ".")
        interpret(what["arguments"], what["environment"])


def start_process(args: Any, executables: Any, close_fds: bool, kept: Any, cwd: Any, env: Any, *more: Any) -> int:
    """As `subprocess` starts every process; a Python is the spare one, where what is asked of it can be had so."""
    (to_read, _, _, to_write, _, to_say, _, told, _, session, group, gid, gids, uid, umask, first, *_) = more
    spare, line = Spare.one, [os.fsdecode(one) for one in args]
    given = os.environ if env is None else dict(os.fsdecode(one).split("=", 1) for one in env)
    special = [group != -1, gid is not None, gids is not None, uid is not None, umask != -1, first is not None]
    fits = line[0] == sys.executable and len(line) > 2 and close_fds and not any(special) and may_fork(given)
    if spare is None or spare.parent != os.getpid() or not fits or not os.path.isdir(cwd or "."):  # noqa: PTH112
        number: int = fork_exec(args, executables, close_fds, kept, cwd, env, *more)
        return number
    Spare.one = None
    streams = {0: to_read, 1: to_write, 2: to_say}
    places = {one: one for one in kept if one != told} | {place: one for place, one in streams.items() if one != -1}
    return spare.start(line[1:], dict(given), None if cwd is None else os.fsdecode(cwd), session, places)


def _do(result: int) -> None:
    if result:
        raise OSError(number := ctypes.get_errno(), os.strerror(number))


def interpret(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be `python3 ARGUMENTS`: `-u` or not, then `-m MODULE`, `-c CODE` or a file, and what is for that."""
    unbuffered = arguments[0] == "-u"
    arguments = arguments[unbuffered:]
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.modules["__main__"] = main = ModuleType("__main__")
    sys.path[:] = [*filter(None, environment.get(SEARCHED, "").split(os.pathsep)), *path]
    importlib.invalidate_caches()
    for place, name in enumerate(("stdin", "stdout", "stderr")):
        raw = io.FileIO(place, "w" if place else "r", closefd=False)
        buffer: Any = io.BufferedReader(raw) if place == 0 else raw if unbuffered else io.BufferedWriter(raw)
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        lines = name == "stderr" and not unbuffered
        made = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    code: Any = 1
    try:
        kind = arguments[0]
        sys.argv = list(arguments[1:] if kind in ("-m", "-c") else arguments)
        if kind == "-m":
            Spare.one = Spare()
            sys.path.insert(0, os.getcwd())  # noqa: PTH109
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv[0] = "-c"
            sys.path.insert(0, "")
            exec(compile(arguments[1], "<string>", "exec"), vars(main))
        else:
            sys.path.insert(0, os.path.dirname(kind))  # noqa: PTH120
            runpy.run_path(kind, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
        if not isinstance(code, int | None):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code or 0)


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[1])  # instead of this folder
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        gc.disable()
        load()
        del sys.path[0]
        modules.update(name for name in sys.modules if name.partition(".")[0] != "support")
        path[:] = sys.path
        os.execve = become  # type: ignore[assignment]
        subprocess._fork_exec = start_process  # type: ignore[attr-defined]
        assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
        gc.freeze()
        gc.enable()
        serve(requests)


if __name__ == "__main__":
    main()
