"""What a person sees while a run goes on: live lines on a terminal, plain ones elsewhere. All on stderr."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Protocol

from runner.cli.terminal import drawn, say
from runner.errors import counted
from runner.manifest import RunManifest, StepState
from runner.records import Verdict
from runner.step.execute import Progress

MARKS = {"running": "▸", "succeeded": "✓", "cached": "✓", "failed": "✗", "interrupted": "‖", "skipped": "–", None: " "}
COLOURS = {"succeeded": "green", "cached": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}
PLAIN_EVERY_S = 5.0  # a line of progress in a log that nobody watches


class Display(Protocol):
    def started(self, manifest: RunManifest) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def changed(self, manifest: RunManifest, step: str) -> None: ...

    def judged(self, verdict: Verdict) -> None: ...

    def close(self) -> None: ...


def display() -> Display:
    return LiveDisplay() if sys.stderr.isatty() else PlainDisplay()


def headline(manifest: RunManifest) -> str:
    git = manifest.git
    where = "" if manifest.on == "local" else "   on SageMaker"
    if manifest.imported is not None:
        where += f"   imported by {manifest.imported.who} on {manifest.imported.at[:10]}"
    if git is None:
        return f"run {manifest.run}{where}"
    count = len(git.modified)
    changed = f" ({counted(count, 'notebook')} modified)" if count else ""
    return f"run {manifest.run}   {git.branch or 'detached'}@{git.commit[:6]}{changed}{where}"


def step_line(step: StepState, progress: Progress | None, *, started: float | None) -> str:
    """One step's line, without its mark's colour."""
    result = step.result
    line = f"  {MARKS[step.status]} {step.name:<12} "
    if step.status == "running":
        cells = _cells(progress)
        elapsed = "" if started is None else f"  {_clock(time.monotonic() - started)}"
        where = f"  [{progress.cell}] {progress.first_line}" if progress and progress.cell else ""
        return f"{line}{cells}{elapsed}{where}"
    if step.status == "cached":
        return f"{line}cached     from {step.from_run}"
    if step.status == "skipped":
        return f"{line}skipped    {step.why}"
    if result is None:
        return line
    if result.error is None:
        why = f"   why: {step.why}" if step.why else ""
        return f"{line}{result.cells_run} cell{' ' if result.cells_run == 1 else 's'}   {result.seconds:.1f} s{why}"
    error = result.error
    # a terminal cuts the end off, so what went wrong comes first
    where = f"   cell [{error.cell}] {error.first_line} …" if error.cell is not None else ""
    return f"{line}{error.ename}: {_first_line(error.evalue)}{where}"


class PlainDisplay:
    """A line when a step starts and ends, and now and then between."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._lock = threading.Lock()

    def started(self, manifest: RunManifest) -> None:
        say(headline(manifest), err=True)

    def progress(self, progress: Progress) -> None:
        with self._lock:
            if time.monotonic() - self._said >= PLAIN_EVERY_S:
                where = f"  [{progress.cell}] {progress.first_line}" if progress.cell else ""
                self._say(f"    {progress.step} {_cells(progress)}{where}")

    def changed(self, manifest: RunManifest, step: str) -> None:
        state = manifest.step(step)
        with self._lock:
            self._say(step_line(state, None, started=None))

    def judged(self, verdict: Verdict) -> None:
        """The verdict is printed with the result."""

    def close(self) -> None:
        """Nothing is held."""

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        say(line, err=True)


class LiveDisplay:
    """All steps on the screen, redrawn as cells end."""

    def __init__(self) -> None:
        # rich takes 0.1 s to import, and a log needs none of it
        from rich.console import Console
        from rich.live import Live

        self._manifest: RunManifest | None = None
        self._progress: dict[str, Progress] = {}
        self._started: dict[str, float] = {}
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, get_renderable=self._lines, refresh_per_second=8, transient=False)

    def started(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self._console.print(drawn(headline(manifest)))
        self._live.start()

    def progress(self, progress: Progress) -> None:
        self._progress[progress.step] = progress

    def changed(self, manifest: RunManifest, step: str) -> None:
        self._manifest = manifest
        if any(state.name == step and state.status == "running" for state in manifest.steps):
            self._started[step] = time.monotonic()

    def judged(self, verdict: Verdict) -> None:
        """The verdict is printed with the result."""

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def _lines(self) -> Any:
        text = drawn("", no_wrap=True, overflow="ellipsis")
        for state in self._manifest.steps if self._manifest else []:
            line = step_line(state, self._progress.get(state.name), started=self._started.get(state.name))
            text.append(line[:4], style=COLOURS.get(state.status or "", "dim"))
            text.append(drawn(line[4:] + "\n", style="dim" if state.status in (None, "skipped") else ""))
        text.right_crop(1)
        return text


def _cells(progress: Progress | None) -> str:
    if progress is None:
        return "starting"
    return f"{progress.done}/{progress.total} cells" if progress.total else progress.first_line


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
