"""The pages of runs: the table, one run with its report, several side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from runner.audit import compare
from runner.audit.diff import between_runs
from runner.errors import Refused, RunnerError, UsageError
from runner.manifest import RunManifest, StepState
from runner.project import Project
from runner.report import comparison, notebook, page
from runner.report.graph import graph, svg
from runner.run.progress import read_progress
from runner.run.store import Store
from runner.step.execute import Progress
from runner.ui.runs import PER_PAGE, STATUSES, VERDICTS, Query, RunTable, seconds
from runner.ui.view import View

MOST_COMPARED = 50


def runs(view: View, table: RunTable, query: Query, *, per_page: int | None = PER_PAGE) -> str:
    """The table of runs, of those that run with how far they are; all on one page where `per_page` is None."""
    store = view.project.store
    found = table.page(store, query, per_page)
    manifests = view.project.as_of_now(found.manifests)
    rules = view.project.spec.gate
    columns = [name for name in dict.fromkeys([rule.metric for rule in rules]) if _somewhere(name, manifests)]
    columns += [name for name in query.metrics if name not in columns]
    return view.render(
        "runs.html.j2",
        query=query,
        found=found,
        rows=[row(store, manifest) for manifest in manifests],
        columns=columns,
        tags=table.tags(),
        metrics=table.metrics() or sorted({name for manifest in manifests for name in manifest.metrics}),
        statuses=STATUSES,
        verdicts=VERDICTS,
        running=any(manifest.status == "running" for manifest in manifests),
        newest=found.newest,
    )


def _somewhere(metric: str, manifests: Sequence[RunManifest]) -> bool:
    return any(metric in manifest.metrics for manifest in manifests)


def row(store: Store, manifest: RunManifest) -> dict[str, Any]:
    """One run for the table; `live` is where it is now, where it runs."""
    failed = next((step for step in manifest.steps if step.status == "failed"), None)
    error = failed.result.error if failed and failed.result else None
    return {
        "manifest": manifest,
        "verdict": manifest.verdict.outcome if manifest.verdict else "",
        "word": page.WORDS.get(manifest.verdict.outcome, "") if manifest.verdict else "",
        "seconds": seconds(manifest.started, manifest.ended),
        "failed": f"{failed.name}: {error.ename}" if failed and error else "",
        "live": live_lines(store, manifest) if manifest.status == "running" else [],
    }


def live_lines(store: Store, manifest: RunManifest) -> list[str]:
    """A line for each step that runs now, from the progress that the terminal shows too."""
    progress = read_progress(store.folder(manifest.run))
    running = [state for state in manifest.steps if state.status == "running"]
    return [_live_line(state, progress.get(state.name)) for state in running] or ["between two steps"]


def _live_line(state: StepState, progress: Progress | None) -> str:
    if progress is None or not progress.total:
        return f"{state.name}: {progress.first_line if progress and progress.first_line else 'starting'}"
    where = f", now [{progress.cell}] {progress.first_line}" if progress.cell else ""
    return f"{state.name}: {progress.done} of {progress.total} {progress.unit}{where}"[:300]


def run(view: View, manifest: RunManifest, *, show: str = "", code: bool = True) -> str:
    """One run: its graph, and in a frame the report or, by `show`, the executed notebook of a step."""
    store = view.project.store
    names = [state.name for state in manifest.steps]
    executed = [name for name in names if (store.folder(manifest.run) / "steps" / name / "executed.ipynb").exists()]
    show = show if show in executed else ""
    frame = f"steps/{show}/executed{'' if code else '-no-code'}.html" if show else "report.html"
    all_runs = store.runs()
    at = all_runs.index(manifest.run) if manifest.run in all_runs else -1
    newer = all_runs[at - 1] if at > 0 else ""
    older = all_runs[at + 1] if 0 <= at < len(all_runs) - 1 else ""
    links = {f"step:{name}": _shown(view, name, code=code) for name in executed}
    champion = manifest.champion.run if manifest.champion else ""
    return view.render(
        "one_run.html.j2",
        manifest=manifest,
        headline=page.headline(manifest),
        tone=page.tone(manifest),
        duration=seconds(manifest.started, manifest.ended),
        drawing=svg(graph(manifest.pipeline, manifest), links),
        frame=frame,
        show=show,
        code=code,
        executed=executed,
        shown=lambda name, code=code: _shown(view, name, code=code),
        newer=newer,
        older=older,
        champion=champion if champion in all_runs else "",
        live=live_lines(store, manifest) if manifest.status == "running" else [],
    )


def _shown(view: View, step: str, *, code: bool) -> str:
    """The address, from the run's page, that shows the step's notebook, or with "" the report."""
    from urllib.parse import quote

    if view.static:
        return f"steps/{quote(step, safe='')}/executed.html" if step else "index.html"
    parts = [*([f"show={quote(step, safe='')}"] if step else []), *([] if code else ["code=hidden"])]
    return f"?{'&'.join(parts)}" if parts else "?"


def report(project: Project, manifest: RunManifest, *, files: bool = True) -> bytes:
    """The run's report with what its version is now; made anew, and written nowhere. `files` are linked to."""
    return page.report(project.store.folder(manifest.run), manifest, files=files)


def executed(project: Project, manifest: RunManifest, step: str, *, code: bool = True) -> bytes:
    """The executed notebook of a step as a page. Raises UsageError where it has none."""
    state = manifest.step(step)
    folder = project.store.folder(manifest.run) / "steps" / step
    if not (folder / notebook.EXECUTED).exists():
        raise UsageError(f"Step {step} of run {manifest.run} has no executed notebook.")
    return notebook.notebook_page(folder, manifest=manifest, state=state, code=code)


def chosen(project: Project, references: Sequence[str]) -> list[RunManifest]:
    """The runs to compare, as they are now. Raises UsageError for fewer than two, or too many."""
    names = list(dict.fromkeys(references))
    if not 2 <= len(names) <= MOST_COMPARED:
        raise UsageError(f"Select two runs to see what differs, or up to {MOST_COMPARED} for a table and a plot.")
    return project.as_of_now([project.run(name) for name in names])


def compared(view: View, manifests: Sequence[RunManifest], address: str) -> str:
    """The page around a comparison, whose own page is at `address`."""
    return view.render("compare.html.j2", manifests=manifests, address=address)


def side_by_side(project: Project, manifests: Sequence[RunManifest], links: Mapping[str, str]) -> bytes:
    """The comparison's own page: of two runs with all that differs, of more as a table with plots."""
    difference = None
    if len(manifests) == 2:
        with contextlib.suppress(RunnerError, OSError):  # a run whose files are gone is compared by its record
            difference = between_runs(manifests[0], manifests[1], project.store)
    facts = compare.compare(manifests)
    return comparison.comparison_page(
        facts, difference, runs=project.store.root, links=[links.get(one.run, "") for one in facts.runs]
    )


def find(project: Project, reference: str) -> RunManifest:
    """The run of an address, as it is now. Raises UsageError where there is none."""
    if "/" in reference:
        raise Refused(f"{reference!r} is not the id of a run.")
    (manifest,) = project.as_of_now([project.run(reference)])
    return manifest
