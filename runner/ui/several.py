"""The pages of all projects in a folder, each below its own name; the first page leads on where there is only one.

Whoever gets this far is let in, so it is served where only this account comes: at a socket in its own folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import HTMLResponse, RedirectResponse, Response

from runner.report.files import environment
from runner.ui.app import Pages
from runner.ui.guard import HEADERS, Access, Guard, page_path
from runner.ui.view import OURS, styles

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

FILE = "pipeline.toml"
WITHIN = ("", "*/", "*/*/")  # where projects are looked for, the folder itself first
STYLE = "/static/ui.css"


class Several:
    """An ASGI application. Projects are looked for whenever a page names one that is not known, or none."""

    def __init__(self, folder: Path, access: Access) -> None:
        self._folder, self._access = folder.resolve(), access
        self._guards: dict[str, Guard] = {}
        self.is_ending: Callable[[], bool] = lambda: False  # live rows end then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            application = self._application(scope)
            await application(scope, receive, send)

    def _application(self, scope: Scope) -> ASGIApp:
        path = page_path(scope)
        if path == STYLE:
            return Response(styles(), media_type="text/css", headers=HEADERS)
        name, slash, _ = path.lstrip("/").partition("/")
        if name and name not in self._guards:
            file = projects(self._folder).get(name)
            if file is not None:
                pages = Pages(file, self._access)
                pages.is_ending = lambda: self.is_ending()
                self._guards[name] = pages.application(prefix=f"/{name}")
        if name in self._guards:
            return self._guards[name] if slash else RedirectResponse(f"./{quote(name, safe='')}/", 303, HEADERS)
        return self._first_page("" if path == "/" else name)

    def _first_page(self, name: str) -> Response:
        """The projects to choose from, or the way to the only one."""
        found = projects(self._folder)
        if len(found) == 1 and not name:
            return RedirectResponse(f"./{quote(next(iter(found)), safe='')}/", 303, HEADERS)
        rows = [(known, f"./{quote(known, safe='')}/", str(file.parent)) for known, file in sorted(found.items())]
        body = (
            environment(OURS)
            .get_template("projects.html.j2")
            .render(projects=rows, folder=str(self._folder), missing=name, style=f".{STYLE}")
        )
        return HTMLResponse(body, 404 if name else 200, HEADERS)


def projects(folder: Path) -> dict[str, Path]:
    """The pipeline files in the folder and two levels below, by the names of their folders.

    Where two folders have one name, it is that of the one that is nearer; the others are called by their path.
    """
    found: dict[str, Path] = {}
    for within in WITHIN:
        for file in sorted(folder.glob(f"{within}{FILE}")):
            parts = file.parent.relative_to(folder).parts
            if any(part.startswith(".") for part in parts):
                continue
            name = file.parent.name
            found[name if name not in found else "-".join(parts)] = file
    return found
