"""`make pictures`: the pages as docs/ shows them, taken of the churn pipeline in a browser.

Four runs are made, a version is approved and served, another waits; that takes a minute. Then each page is a PNG of few
colours, which says the same on any machine: fonts and versions differ, so it is written anew only by this command.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from runner.ui.access import hasher
from support.browser import Browser, browser
from support.places import free_ports
from support.projects import ROOT, Project
from support.visits import Pages, Visitor, pages_of

DOCS, COLOURS, MOST_BYTES = ROOT / "docs", 64, 80_000
PEOPLE = ("ana", "ben")
TARGETS = """
[targets.staging]
kind = "local"
port = {}
workers = 1
[targets.production]
kind = "local"
port = {}
requires = "staging"
"""


@dataclass(frozen=True)
class Picture:
    """A page from `top`, which is an element's, or from its beginning; `height` in CSS pixels."""

    name: str
    path: str
    height: int
    width: int = 1280
    dark: bool = False
    top: str = ""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        project = stack.enter_context(made(Path(scratch) / "churn"))
        people = "\n".join(f"{name}:{hasher().hash(f'{name}s password')}" for name in PEOPLE)
        served = stack.enter_context(pages_of(project.folder / "pipeline.toml", users_text=people))
        decided(project, served)
        tab = stack.enter_context(browser(Path(scratch) / "profile"))
        signed_in(tab, served)
        for picture in pictures(project):
            (DOCS / picture.name).write_bytes(taken(tab, served, picture))


def pictures(project: Project) -> Iterator[Picture]:
    first, _, failed, pending = (f"run/{folder.name}/" for folder in project.runs)
    pair = f"compare?run={first[4:-1]}&run={pending[4:-1]}"
    yield Picture("ui-runs.png", "", 590)
    yield Picture("ui-run.png", pending, 900)
    yield Picture("ui-failed.png", failed, 700, dark=True)
    yield Picture("ui-compare.png", pair, 900)
    yield Picture("ui-version.png", "model/churn/2/", 1000)
    yield Picture("ui-decide.png", "model/churn/2/", 515, width=390, dark=True, top="#decide")
    yield Picture("ui-models.png", "models/", 400)
    yield Picture("ui-targets.png", "targets/", 570)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[Project]:
    """A copy of the churn pipeline with two targets and four runs of ana's: two that passed, one that did not, and one
    that failed."""
    folder.mkdir()
    for name in ("notebooks", "data"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("work", ".ipynb_checkpoints", "__pycache__")
        )
    project = Project(folder)
    project.toml((ROOT / "pipeline.toml").read_text() + TARGETS.format(*free_ports(2)))
    try:
        yield project
    finally:
        for target in ("production", "staging"):
            project.runner("undeploy", target)


def decided(project: Project, served: Pages) -> None:
    """The first version is approved and deployed by ben; the second waits."""
    run(project, "-m", "June table", "--tag", "monthly")
    ben = served.by_password("ben", "bens password")
    ben.decide("churn/1", "approve", "see ticket 41")
    for target in ("staging", "production"):
        confirm(ben, f"/targets/{target}/deploy", "version=churn/1")
    run(project, "-m", "two trees", "-p", "train.rounds=2", "-p", "train.max_depth=1")
    notebook = project.folder / "notebooks" / "02_train.ipynb"
    sound = notebook.read_text()
    notebook.write_text(sound.replace("rounds=early_stopping", "rounds=early_stoping"))
    run(project, "-m", "July table", "--tag", "monthly")
    notebook.write_text(sound)
    run(project, "-m", "July table", "--tag", "monthly", "-p", "train.max_depth=4")


def run(project: Project, *arguments: str) -> None:
    """A run as ana would have made it at her desk; it registers where it passed."""
    done = project.runner("run", "--no-register", *arguments)
    if not done.out:
        raise SystemExit(done.err)
    file = project.runs[-1] / "run.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "started_by": "ana@desk"}))
    if (manifest["verdict"] or {}).get("outcome") == "pass":
        project.runner("register", file.parent.name)


def confirm(who: Visitor, path: str, query: str) -> None:
    form = who.get(f"{path}?{query}").form(f"../..{path}")
    who.post(path, {**form, "reason": "ticket 41"})


def signed_in(tab: Browser, served: Pages) -> None:
    tab.open(f"http://127.0.0.1:{served.port}/")
    tab.write("input[name=name]", "ben")
    tab.write("input[name=password]", "bens password")
    tab.follow("button")


def taken(tab: Browser, served: Pages, picture: Picture) -> bytes:
    """The PNG. Raises SystemExit where it is too large for a page of docs/."""
    tab.open(f"http://127.0.0.1:{served.port}/{picture.path}", width=picture.width, height=900, dark=picture.dark)
    top = f"document.querySelector({json.dumps(picture.top or 'body')}).getBoundingClientRect().top"
    content = tab.picture(top=tab.value(top) if picture.top else 0, height=picture.height)
    packed = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    if packed.tell() > MOST_BYTES:
        raise SystemExit(f"{picture.name} has {packed.tell():,} bytes; {MOST_BYTES:,} is the most.")
    return packed.getvalue()


if __name__ == "__main__":
    main()
