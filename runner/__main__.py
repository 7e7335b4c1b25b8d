"""The command `runner`, also as `python -m runner`."""

from __future__ import annotations

import io
import os
import stat
import sys

STACK_KB = 512

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.run.fast_path import Repeated


def main() -> None:
    if sys.argv[1:] == ["clean-notebook"]:  # git calls it for each notebook that it looks at
        from runner.notebook.strip_outputs import cleaned

        sys.stdout.buffer.write(cleaned(sys.stdin.buffer.read()))
        return
    check_system()
    outlive_readers()
    check_stack()
    if sys.argv[1:2] == ["run"]:
        from runner.run.fast_path import again

        made = again(sys.argv[2:])
        if made is not None:
            sys.exit(say(made))
    from runner.cli import entry

    sys.exit(entry(sys.argv[1:]))


def say(made: Repeated) -> int:
    """Say what the repeated run says; its exit code."""
    try:
        for stream, text in ((sys.stderr, made.err), (sys.stdout, made.out)):
            stream.write(text)
            stream.flush()
    except OSError as error:
        from runner.cli import machine_trouble

        return machine_trouble(error, ["run"])
    return made.code


def check_system() -> None:
    """End with a sentence on Windows, which lacks the locks that runs and registry are kept by."""
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write(
            "cannot run as asked:\n  This system is not supported: runs and registry are kept by POSIX locks, which it lacks. "
            "On Windows, use the Windows Subsystem for Linux.\n"
        )
        sys.exit(2)


def check_stack() -> None:
    """End with a sentence where the stack is too small: what is missing of it would be a crash anywhere."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if limit != resource.RLIM_INFINITY and limit < STACK_KB * 1024:
        sys.stderr.write(
            f"cannot run as asked:\n  The stack is limited to {limit // 1024} kB, and Python needs {STACK_KB} kB to work "
            "with notebooks. Raise the limit: ulimit -s 8192\n"
        )
        sys.exit(2)


class _Pipe(io.FileIO):
    """A pipe whose reader may go away: from then on nothing is said, and the work goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """`runner run | head -3` is one run, and it ends as without `head`; so does every command that does something.

    Where a stream was closed, nothing else may come to be opened in its place.
    """
    while (place := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(place)
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name) or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        mode = os.fstat(stream.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            pipe: Any = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
            stream = io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
        setattr(sys, name, stream)


if __name__ == "__main__":
    main()
