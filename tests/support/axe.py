"""What axe-core finds on the page that a browser shows, and which pages there are to look at."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from runner.project import Project
from runner.records import Metric
from runner.report.sweep import plot, write_sweep
from runner.run.sweep import Combination, SweepResult
from runner.ui.site import write_site
from support.browser import Browser
from support.judged import RUN

PACKAGE = "axe_playwright_python"  # of which only axe-core's script is used
# of text on the shadows at a table's edges axe would say that it cannot tell its contrast
BARE = "document.head.insertAdjacentHTML('beforeend', '<style>.wide { background: none }</style>')"
# a frame is a document of its own, and looked at alone
OPTIONS = {"iframes": False, "resultTypes": ["violations"]}
LOOK = """
axe.run(document, %s).then(found => ({
  held: found.passes.length,
  faults: found.violations.flatMap(rule => rule.nodes.map(node =>
    `${rule.impact} ${rule.id}: ${node.html.slice(0, 200)} ${node.failureSummary.slice(0, 300)}`)),
}))
"""


def faults(tab: Browser) -> list[str]:
    """Each by its impact, rule and element. The page has to be opened without its policy."""
    if not tab.value("'axe' in window"):
        tab.value(f"{_source()};{BARE}")
    found = tab.value(LOOK % json.dumps(OPTIONS))
    assert found["held"] > 5, found  # it has looked at something
    return list(found["faults"])


def _source() -> str:
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def served_paths() -> Iterator[str]:
    """Of a project that has runs of every kind, a pending version 4, and staging and production as its targets."""
    yield from (
        "",
        "models/",
        "targets/",
        "no/such/page",
        "model/tiny/4/card/",
        "targets/staging/deploy?version=tiny/1",
    )
    for number in (4, 5, 6, 8):
        yield f"run/{RUN.format(number)}/"
    for number in (4, 5, 6, 7):
        yield f"run/{RUN.format(number)}/report.html"
    for number in (4, 5):
        yield f"run/{RUN.format(number)}/steps/train/executed.html"
    for number in (1, 3, 4):
        yield f"model/tiny/{number}/"
    two, three = (f"?{'&'.join(f'run={RUN.format(number)}' for number in numbers)}" for numbers in ((1, 5), (1, 2, 4)))
    yield from (f"compare{two}", f"comparison.html{two}", f"comparison.html{three}")
    yield from ("?status=failed&sort=-train.auc", "?status=interrupted")
    yield f"run/{RUN.format(4)}/?show=train&code=hidden"
    yield f"run/{RUN.format(4)}/steps/train/executed-no-code.html"
    yield from ("targets/staging/rollback", "targets/staging/undeploy")


def site_pages(project: Project, folder: Path) -> Iterator[str]:
    """Addresses of the static site's pages, which is written into the folder."""
    write_site(project, folder)
    for page in (
        "index.html",
        "models/index.html",
        "targets/index.html",
        f"run/{RUN.format(4)}/index.html",
        "model/tiny/4/index.html",
    ):
        yield (folder / page).as_uri()


def sweep_page(project: Project) -> str:
    """The address of a sweep's page, which is written."""
    tried = tuple(
        Combination({"depth": str(depth), "eta": str(eta)}, {}, run=RUN.format(depth), metrics=_measured(depth, eta))
        for depth in (2, 3, 4)
        for eta in (0.1, 0.2)
    )
    swept = SweepResult("train", "train.auc", "higher", tried, winner=project.store.manifest(RUN.format(2)))
    return write_sweep(swept, project.store.root, drawn=plot(swept)).as_uri()


def _measured(depth: int, eta: float) -> dict[str, Metric]:
    value = 0.8 + depth / 50 + eta / 10
    return {
        "train.auc": Metric(value=value, low=value - 0.02, high=value + 0.02, better="higher"),
        "train.rows": Metric(value=5),
    }
