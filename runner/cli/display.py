"""A run's progress for a person: live lines on a terminal, plain ones elsewhere. All on stderr."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from runner.cli.terminal import drawn, live, say
from runner.errors import counted
from runner.manifest import RunManifest, StepState
from runner.records import Mapped
from runner.run.ports import Silent
from runner.step.execute import Progress

MARKS = {
    "running": "▸", "succeeded": "✓", "cached": "✓", "failed": "✗", "interrupted": "‖", "skipped": "–", "pruned": "–",
    None: " ",
}  # fmt: skip
COLOURS = {"succeeded": "green", "cached": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}
PLAIN_EVERY_S = 5.0  # between lines of progress in a log


def display() -> PlainDisplay | LiveDisplay:
    return LiveDisplay() if sys.stderr.isatty() else PlainDisplay()


def headline(manifest: RunManifest) -> str:
    git = manifest.git
    where = "" if manifest.on == "local" else "   on SageMaker"
    if manifest.imported is not None:
        where += f"   imported by {manifest.imported.who} on {manifest.imported.at[:10]}"
    if git is None:
        return f"run {manifest.run}{where}"
    modified = f" ({counted(len(git.modified), 'notebook')} modified)" if git.modified else ""
    return f"run {manifest.run}   {git.branch or 'detached'}@{git.commit[:6]}{modified}{where}"


def step_line(step: StepState, progress: Progress | None, *, started: float | None) -> str:
    """One step's line, without its mark's colour."""
    result = step.result
    line = f"  {MARKS[step.status]} {step.name:<12} "
    if step.status == "running":
        cells = _cells(progress)
        elapsed = "" if started is None else f"  {_clock(time.monotonic() - started)}"
        return f"{line}{cells}{elapsed}{_where(progress)}"
    if step.status == "cached":
        return f"{line}cached     from {step.from_run}"
    if step.status == "skipped":
        return f"{line}skipped    {step.why}"
    if result is None:
        return line
    if result.error is None:
        why = f"   why: {step.why}" if step.why else ""
        cells = counted(result.cells_run, "cell") if result.mapped is None else keys_words(result.mapped)
        return f"{line}{cells}{' ' if result.cells_run == 1 else ''}   {result.seconds:.1f} s{why}"
    error = result.error
    # a terminal cuts the end off, so the error comes first
    where = f"   cell [{error.cell}] {error.first_line} …" if error.cell is not None else ""
    first_line = next(iter(error.evalue.strip().splitlines()), "")
    return f"{line}{error.ename}: {first_line}{where}"


def keys_words(mapped: Mapped) -> str:
    """What became of a mapped step's keys: "6 keys (4 cached, 1 failed)"."""
    counts = {"cached": sum(key.status == "cached" for key in mapped.keys), "failed": len(mapped.failed)}
    details = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    return counted(len(mapped.keys), "key") + (f" ({details})" if details else "")


class PlainDisplay(Silent):
    """A line when a step starts and ends, and now and then between. The verdict is printed with the result."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()
        self._lock = threading.Lock()

    def started(self, manifest: RunManifest) -> None:
        say(headline(manifest), err=True)

    def progress(self, progress: Progress) -> None:
        with self._lock:
            if time.monotonic() - self._printed_at >= PLAIN_EVERY_S:
                self._print(f"    {progress.step} {_cells(progress)}{_where(progress)}")

    def changed(self, manifest: RunManifest, step: str) -> None:
        state = manifest.step(step)
        with self._lock:
            self._print(step_line(state, None, started=None))

    def close(self) -> None:
        """Nothing to close."""

    def _print(self, line: str) -> None:
        self._printed_at = time.monotonic()
        say(line, err=True)


class LiveDisplay(Silent):
    """All steps on the screen, redrawn as cells end. The verdict is printed with the result."""

    def __init__(self) -> None:
        self._manifest: RunManifest | None = None
        self._progress: dict[str, Progress] = {}
        self._started: dict[str, float] = {}
        self._live = live(self._lines, per_s=8)

    def started(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self._live.console.print(drawn(headline(manifest)))
        self._live.start()

    def progress(self, progress: Progress) -> None:
        self._progress[progress.step] = progress

    def changed(self, manifest: RunManifest, step: str) -> None:
        self._manifest = manifest
        if any(state.name == step and state.status == "running" for state in manifest.steps):
            self._started[step] = time.monotonic()

    def close(self) -> None:
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
    return f"{progress.done:,}/{progress.total:,} {progress.unit}" if progress.total else progress.first_line


def _where(progress: Progress | None) -> str:
    """What a running step is doing: where it works, then the cell, whose end a terminal may cut off."""
    if progress is None:
        return ""
    note = f"  ({progress.note})" if progress.note else ""
    return f"{note}  [{progress.cell}] {progress.first_line}" if progress.cell else note


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
