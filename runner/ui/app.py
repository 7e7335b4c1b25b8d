"""The application: which address is which page, what a form does, and how an error looks.

Pages are made in a few threads; each is made from the files as they are now.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from runner import decisions
from runner.errors import PipelineError, Refused, RunnerError, UsageError
from runner.model.registry_rules import Person
from runner.model.served import still_served
from runner.project import LOOK_S, Project
from runner.report.clean import POLICY as REPORT_POLICY
from runner.ui import live, model_pages, run_pages
from runner.ui.access import Session
from runner.ui.guard import Access, Guard, page_path
from runner.ui.runs import Query, RunTable
from runner.ui.view import SCRIPT, View, styles

PULL_S = 15.0  # between two looks at what others share
# a report in a frame runs nothing, sends nothing, and loads nothing but itself
FRAMED = f"{REPORT_POLICY}; frame-ancestors 'self'; sandbox allow-same-origin"


class Pages:
    """The pages of one project. Every request looks at the project anew."""

    def __init__(self, file: Path, access: Access, *, patience_s: float = LOOK_S) -> None:
        """`patience_s` is how long a page waits for AWS where that does not answer."""
        self._file, self._access, self._patience_s = file, access, patience_s
        self._table = RunTable()
        self._styles = styles()
        self._pulled = -PULL_S
        self.is_ending: Callable[[], bool] = lambda: False  # set by who serves them

    def application(self, *, prefix: str = "") -> Guard:
        routes = [
            ("/", self.runs),
            ("/compare", self.compare),
            ("/comparison.html", self.comparison),
            ("/run/{run}/", self.run),
            ("/run/{run}/report.html", self.report),
            ("/run/{run}/steps/{step}/executed.html", self.executed),
            ("/run/{run}/steps/{step}/executed-no-code.html", self.executed),
            ("/run/{run}/steps/{step}/{path:path}", self.file),
            ("/models/", self.models),
            ("/model/{name}/{version:int}/", self.version),
            ("/model/{name}/{version:int}/card/", self.card),
            ("/targets/", self.targets),
            ("/targets/{target}/{action}", self.confirm),
        ]
        forms = [
            ("/model/{name}/{version:int}/approve", self.approve),
            ("/model/{name}/{version:int}/reject", self.reject),
            ("/targets/{target}/{action}", self.change_target),
        ]
        application = Starlette(
            routes=[
                *(Route(path, page) for path, page in routes),
                *(Route(path, form, methods=["POST"]) for path, form in forms),
                Route("/events", self.events),
                Route("/static/{name}", self.static),
            ],
            exception_handlers={
                RunnerError: self.refused,
                404: lambda request, _: self.problem(request, 404, "There is no such page."),
                405: lambda request, _: self.problem(request, 405, "This page takes no such request."),
                Exception: lambda request, _: self.problem(request, 500, "This is a fault of the server; see its log."),
            },
        )
        return Guard(application, self._access, lambda depth: View(self._project(), depth), prefix=prefix)

    def warm(self) -> None:
        """Read all runs once, little by little, so that a filter need not wait for it."""
        with contextlib.suppress(RunnerError, OSError):
            self._table.warm(self._project().store_here)

    def _project(self, *, decides: bool = False) -> Project:
        """The project as it is now; runs that others share are asked for now and then.

        Whoever `decides` waits for AWS as long as by a command.
        """
        project = Project(self._file, patience_s=None if decides else self._patience_s)
        if time.monotonic() - self._pulled < PULL_S:
            project.store = project.store_here
        else:
            self._pulled = time.monotonic()
        return project

    def view(self, request: Request) -> View:
        session: Session = request.state.session
        notes, session.notes = session.notes, []
        return View(
            self._project(),
            depth=max(0, page_path(request.scope).count("/") - 1),
            person=session.person,
            form_token=lambda path: self._access.sessions.form_token(session, path),
            can_sign_out=not self._access.asks_each_time,
            notes=notes,
        )

    def runs(self, request: Request) -> Response:
        query = Query.of(request.query_params, request.query_params.getlist("metric"))
        return HTMLResponse(run_pages.runs(self.view(request), self._table, query))

    def run(self, request: Request) -> Response:
        view = self.view(request)
        manifest = run_pages.find(view.project, request.path_params["run"])
        show, code = request.query_params.get("show", ""), request.query_params.get("code") != "hidden"
        return HTMLResponse(run_pages.run(view, manifest, show=show, code=code))

    def report(self, request: Request) -> Response:
        project = self._project()
        return _framed(run_pages.report(project, run_pages.find(project, request.path_params["run"])))

    def executed(self, request: Request) -> Response:
        project = self._project()
        manifest = run_pages.find(project, request.path_params["run"])
        code = not request.url.path.endswith("-no-code.html")
        return _framed(run_pages.executed(project, manifest, request.path_params["step"], code=code))

    def file(self, request: Request) -> Response:
        """An output or the executed notebook of a step, to be saved, never shown."""
        project = self._project()
        manifest = run_pages.find(project, request.path_params["run"])
        state, path = manifest.step(request.path_params["step"]), request.path_params["path"]
        artifacts = state.result.artifacts() if state.result is not None else []
        if path not in [artifact.path for artifact in artifacts if artifact.files is None]:
            return self.problem(request, 404, f"Step {state.name} has no file {path}; a folder is not sent.")
        place = project.store.folder(manifest.run) / "steps" / state.name / path
        if not place.is_file() or not place.resolve().is_relative_to(project.store.root.resolve()):
            return self.problem(request, 404, f"{path} is not here. `runner fetch` brings what stayed in S3.")
        return FileResponse(place, media_type="application/octet-stream", filename=place.name)

    def compare(self, request: Request) -> Response:
        view = self.view(request)
        manifests = run_pages.chosen(view.project, request.query_params.getlist("run"))
        return HTMLResponse(run_pages.compared(view, manifests, f"comparison.html?{request.url.query}"))

    def comparison(self, request: Request) -> Response:
        project = self._project()
        manifests = run_pages.chosen(project, request.query_params.getlist("run"))
        links = {manifest.run: f"run/{manifest.run}/report.html" for manifest in manifests}
        return _framed(run_pages.side_by_side(project, manifests, links))

    def models(self, request: Request) -> Response:
        return HTMLResponse(model_pages.models(self.view(request)))

    def version(self, request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params["version"]
        return HTMLResponse(model_pages.version(self.view(request), name, number))

    def card(self, request: Request) -> Response:
        return HTMLResponse(model_pages.card(self.view(request), *_version(request)))

    def targets(self, request: Request) -> Response:
        return HTMLResponse(model_pages.targets(self.view(request)))

    def confirm(self, request: Request) -> Response:
        label = request.query_params.get("version", "")
        target, action = request.path_params["target"], _action(request)
        return HTMLResponse(model_pages.confirmation(self.view(request), target, action, label))

    def approve(self, request: Request) -> Response:
        form, (name, number) = request.state.form, _version(request)
        target, notes = form.get("target", ""), list[str]()
        options: dict[str, Any] = {
            "why": form.get("reason", "").strip(),
            "by": _person(request),
            "allow_schema_change": form.get("allow_schema_change") == "yes",
            "say": notes.append,
        }

        def decide(project: Project) -> str:
            notes.extend(decisions.older_rest(project, name, number, target or None))
            if target:
                decisions.approve_for(project, name, number, target=target, **options)
                return f"{name}/{number} is approved for {target}."
            decisions.approve(project, name, number, **options)
            return f"{name}/{number} is approved."

        return self._decided(request, decide, notes)

    def reject(self, request: Request) -> Response:
        form, (name, number) = request.state.form, _version(request)
        notes = list[str]()

        def decide(project: Project) -> str:
            why = form.get("reason", "").strip()
            decisions.reject(project, name, number, why=why, by=_person(request), say=notes.append)
            served = still_served(project.registry, name, number)
            notes.extend(
                f"{target} serves it still; end that at Targets, or by {one}." for target, one in served.items()
            )
            return f"{name}/{number} is rejected."

        return self._decided(request, decide, notes)

    def _decided(self, request: Request, decide: Callable[[Project], str], notes: list[str]) -> Response:
        """Carry the decision out; then the version's page, which also says why where it was refused."""
        try:
            sentence = decide(self._project(decides=True))
        except UsageError as error:
            return self._again(request, 400, _without_option(str(error)))
        except Refused as error:
            return self._again(request, 409, str(error))
        request.state.session.notes += [("good", sentence), *(("unsure", note) for note in notes)]
        return RedirectResponse("./", 303)

    def _again(self, request: Request, status: int, sentence: str) -> Response:
        """The version's page with what was typed and why it was not done."""
        view = self.view(request)
        form, action = request.state.form, page_path(request.scope).rpartition("/")[2]
        typed = {f"{action} {form.get('target', '')}".strip(): form.get("reason", "")}
        view = replace(view, notes=[*view.notes, ("bad", f"Nothing was done. {sentence}")], typed=typed)
        return HTMLResponse(model_pages.version(view, *_version(request)), status)

    def change_target(self, request: Request) -> Response:
        """Deploy, roll back or undeploy, as it was confirmed: the version and the target that the form names."""
        form, target, action = request.state.form, request.path_params["target"], _action(request)
        project, notes, label = self._project(decides=True), list[str](), form.get("version", "")
        deployer = project.deployer(target)
        options: dict[str, Any] = {"why": form.get("reason", "").strip(), "by": _person(request)}
        if action == "deploy":
            name, _, number = label.rpartition("/")
            allow = form.get("allow_schema_change") == "yes"
            if not name or not number.isdecimal():
                raise UsageError(f"{label!r} is not a model version.")
            deployed = decisions.deploy(
                project, deployer, name, int(number), **options, allow_schema_change=allow, say=notes.append
            )
            sentence = f"{target} serves {deployed.label} at {deployed.place}."
        elif action == "rollback":
            deployed = decisions.rollback(project, deployer, **options, expected=label, say=notes.append)
            sentence = f"{target} serves {deployed.label} again."
        else:
            deployed = decisions.undeploy(project, deployer, **options, expected=label, say=notes.append)
            sentence = f"{deployed.label} is not served at {target} any more."
        notes.extend(decisions.older_rest(project, deployed.name, deployed.version, target))
        request.state.session.notes += [("good", sentence), *(("unsure", note) for note in notes)]
        return RedirectResponse("../", 303)

    async def events(self, request: Request) -> Response:
        runs, newest = request.query_params.getlist("run"), request.query_params.get("newest", "")
        lines = live.events(self._project(), runs, newest, is_ending=self.is_ending)
        return StreamingResponse(lines, media_type="text/event-stream")

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name == "ui.css":
            return Response(self._styles, media_type="text/css")
        if name == "ui.js":
            return FileResponse(SCRIPT, media_type="text/javascript")
        return Response(status_code=404)

    def refused(self, request: Request, error: Exception) -> Response:
        status = 400 if isinstance(error, PipelineError) else 404 if isinstance(error, UsageError) else 409
        if not isinstance(error, UsageError | Refused):
            title = error.headline[:1].upper() + error.headline[1:] if isinstance(error, RunnerError) else ""
            return self.problem(request, 502, _without_command(str(error)), title=title)
        if status == 404 and (request.method == "POST" or page_path(request.scope).startswith("/compar")):
            status = 400
        return self.problem(request, status, str(error))

    def problem(self, request: Request, status: int, sentence: str, *, title: str = "") -> Response:
        with contextlib.suppress(AttributeError):  # a request for the style has no session
            view = self.view(request)
            title = title or ("Not found" if status == 404 else "Not possible")
            return HTMLResponse(view.render("problem.html.j2", sentence=sentence, title=title), status)
        return Response(status_code=status)


def _framed(content: bytes) -> Response:
    return Response(content, media_type="text/html", headers={"content-security-policy": FRAMED})


def _version(request: Request) -> tuple[str, int]:
    return request.path_params["name"], request.path_params["version"]


def _person(request: Request) -> Person:
    person: Person = request.state.session.person
    return person


def _action(request: Request) -> str:
    action: str = request.path_params["action"]
    if action not in ("deploy", "rollback", "undeploy"):
        raise UsageError(f"There is no {action!r}; a target can deploy, rollback and undeploy.")
    return action


def _without_command(sentence: str) -> str:
    """A sentence of a service that did not answer, for who only looks."""
    return sentence.partition(" What was started goes on;")[0]


def _without_option(sentence: str) -> str:
    """A sentence for who has a form and no command line."""
    return sentence.replace("A decision needs a reason: --reason TEXT.", "A decision needs a reason; write one.")
