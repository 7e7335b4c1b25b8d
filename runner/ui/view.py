"""How a page is made: templates with what all of them need, and links that hold under any prefix and in a folder.

A page knows only how deep it lies, so every link is relative. The same templates make the served pages and the static
site; there, `forms` is None, and no page has a form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runner.errors import RunnerError
from runner.model.registry_rules import Person
from runner.project import Project
from runner.report.files import TEMPLATES, environment, when

OURS = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
STYLES = (TEMPLATES / "style.css", TEMPLATES / "graph.css", STATIC / "ui.css")
SCRIPT = STATIC / "ui.js"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)


@dataclass(frozen=True)
class View:
    """What one page is made for. `depth` is the number of folders between it and the first page."""

    project: Project
    depth: int = 0
    static: bool = False
    person: Person | None = None
    form_token: Callable[[str], str] | None = None  # of a form by the path it is sent to; None: there are no forms
    can_sign_out: bool = False
    notes: Sequence[tuple[str, str]] = ()  # (tone, sentence)
    typed: dict[str, str] = field(default_factory=dict)  # the reason, by its form, where that was refused

    @property
    def name(self) -> str:
        """The project's, or its folder's where the pipeline file cannot be read."""
        try:
            return self.project.spec.name
        except RunnerError:
            return self.project.root.name

    def link(self, *parts: str, to: str = "") -> str:
        """The relative address of a page, by the names of its folders, or of the file `to` in them."""
        path = "".join(f"{quote(part, safe='')}/" for part in parts) + to
        if self.static and (not path or path.endswith("/")):
            path += "index.html"
        return "../" * self.depth + path or "./"

    def run(self, run: str) -> str:
        return self.link("run", run)

    def version(self, name: str, version: int) -> str:
        return self.link("model", name, str(version))

    def render(self, template: str, **values: Any) -> str:
        found = environment(OURS).get_template(template)
        return found.render(view=self, clock=clock, minute=minute, **values)


def clock(seconds: float) -> str:
    """A duration as people say it: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def minute(moment: str | None) -> str:
    """A recorded UTC time to the minute."""
    text = when(moment)
    return text[:16] if text.endswith(" UTC") else text


def styles() -> bytes:
    """The reports' style with what the pages add to it, as one sheet."""
    return b"\n".join(path.read_bytes() for path in STYLES)
