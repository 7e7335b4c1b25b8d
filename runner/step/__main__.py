"""`python -m runner.step FOLDER`: execute a step folder; the exit code is that of the result."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from runner.escape import terminal
from runner.records import StepResult
from runner.step.execute import Progress, execute


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m runner.step FOLDER\n")
        return 2
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    result = execute(Path(sys.argv[1]), stop=stop, on_progress=_say)
    if result.error is not None:
        sys.stderr.write(terminal(f"{result.error.ename}: {result.error.evalue}") + "\n")
    return exit_code(result)


def exit_code(result: StepResult) -> int:
    """0 succeeded, 3 failed, 6 kernel or cluster died, or timed out, 143 interrupted."""
    if result.error is None:
        return 0
    if result.error.kind == "interrupted":
        return 143
    return 6 if result.error.kind in ("kernel died", "cluster lost", "timeout", "out of memory") else 3


def _say(progress: Progress) -> None:
    cells = f"{progress.done}/{progress.total} cells"
    sys.stderr.write(terminal(f"{progress.step}  {cells}  [{progress.cell}] {progress.first_line}") + "\n")


if __name__ == "__main__":
    sys.exit(main())
