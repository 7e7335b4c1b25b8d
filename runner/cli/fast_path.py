"""What a run would say that repeats this one, kept with what it would do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runner.cli.display import headline, step_line
from runner.cli.options import json_text, run_json
from runner.cli.summary import hint, summary
from runner.escape import terminal
from runner.manifest import RunManifest
from runner.pipeline.plan import Plan
from runner.run import fast_path, fast_path_record
from runner.run.ports import World


def leave(
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
    """Leave for the next run of this command line what it does and says where nothing has changed."""
    template = fast_path_record.template(manifest)
    folder = world.store.folder(fast_path.RUN)
    words = summary(template, folder, pages=pages)
    out = json_text(run_json(template, folder)) if as_json else terminal(words)
    going = zip(template.steps, plan.steps, strict=True)  # of the steps that are not asked for nothing is said
    lines = [headline(template), *(step_line(state, None, started=None) for state, step in going if not step.skip)]
    lines += [*([words] if as_json else []), *hint(template)]
    texts = {"out": out + "\n", "err": terminal("\n".join(lines)) + "\n"}
    fast_path_record.leave(
        plan, manifest, world, sys.argv[2:], git=git, texts=texts, code=code, pages=pages, variables=variables
    )
