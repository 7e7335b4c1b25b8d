"""The output of a run that repeats this one, recorded beside what that run would do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runner.cli.display import headline, step_line
from runner.cli.options import json_text, run_json
from runner.cli.summary import hint, summary
from runner.escape import terminal
from runner.manifest import RunManifest
from runner.notify import event_of
from runner.pipeline.plan import Plan
from runner.run import fast_path, fast_path_record
from runner.run.fast_path_record import Invocation
from runner.run.ports import World


def keep(
    plan: Plan,
    manifest: RunManifest,
    world: World,
    *,
    git: dict[str, object] | None,
    as_json: bool,
    pages: bool,
    code: int,
    variables: Sequence[str],
) -> None:
    """Record what the next run of this command line does and prints where nothing has changed.

    Not of a run of which somebody is told each time that it happens.
    """
    if plan.pipeline.notify.to is not None and event_of(manifest) not in (None, "pending"):
        fast_path_record.page_of(world.store, manifest.run).unlink(missing_ok=True)
        return
    template = fast_path_record.template(manifest)
    folder = world.store.folder(fast_path.RUN)
    summary_text = summary(template, folder, pages=pages)
    out = json_text(run_json(template, folder)) if as_json else terminal(summary_text)
    states = [state for state, step in zip(template.steps, plan.steps, strict=True) if not step.skip]
    lines = [headline(template), *(step_line(state, None, started=None) for state in states)]
    lines += [*([summary_text] if as_json else []), *hint(template)]
    err = terminal("\n".join(lines))
    command = Invocation(sys.argv[2:], variables, git, out + "\n", err + "\n", code, pages)
    fast_path_record.keep(plan, manifest, world, command)
