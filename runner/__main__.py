"""The command `runner`, also as `python -m runner`."""

from __future__ import annotations

import io
import os
import stat
import sys

STACK_KB = 512

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from runner.run.fast_path import Repetition


def main() -> None:
    if sys.argv[1:] == ["clean-notebook"]:  # git calls it for each notebook that it looks at
        from runner.notebook.strip_outputs import cleaned

        sys.stdout.buffer.write(cleaned(sys.stdin.buffer.read()))
        return
    check_system()
    outlive_readers()
    check_stack()
    if sys.argv[1:2] == ["run"]:
        from runner.run.fast_path import repeat

        repetition = repeat(sys.argv[2:])
        if repetition is not None:
            leave(write(repetition))
    from runner.cli import entry

    leave(entry(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """Exit with the code. What a full disk did not take is dropped, as Python would make it exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not code:
                from runner.cli import machine_trouble

                code = machine_trouble(error, sys.argv[1:])
    sys.exit(code)


def write(repetition: Repetition) -> int:
    """Write what the repeated run prints; its exit code."""
    try:
        for stream, text in ((sys.stderr, repetition.err), (sys.stdout, repetition.out)):
            stream.write(text)
            stream.flush()
    except OSError as error:
        from runner.cli import machine_trouble

        return machine_trouble(error, ["run"])
    return repetition.code


def check_system() -> None:
    """End with a sentence on Windows, which lacks the locks that runs and registry are kept by."""
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write(
            "cannot run as asked:\n  This system is not supported: runs and registry are kept by POSIX locks, "
            "which it lacks. "
            "On Windows, use the Windows Subsystem for Linux.\n"
        )
        sys.exit(2)


def check_stack() -> None:
    """Exit with a sentence where the stack is too small, which could crash Python at any point."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if limit != resource.RLIM_INFINITY and limit < STACK_KB * 1024:
        sys.stderr.write(
            f"cannot run as asked:\n  The stack is limited to {limit // 1024} kB, and Python needs {STACK_KB} kB to "
            "work with notebooks. Raise the limit: ulimit -s 8192\n"
        )
        sys.exit(2)


class _Pipe(io.FileIO):
    """A pipe whose reader may go away: from then on its output is dropped, and the command continues."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let every command end normally where its reader goes away, as in `runner run | head -3`.

    Also fills closed standard descriptors, so that no other file is opened as one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name) or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        mode = os.fstat(stream.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            pipe: Any = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
            stream = io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
        setattr(sys, name, stream)


if __name__ == "__main__":
    main()
