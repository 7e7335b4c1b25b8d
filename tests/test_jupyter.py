"""The pages inside JupyterLab, by its launcher's tile, through a real jupyter-server-proxy below a prefix."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from support import judged
from support.commands import environment
from support.projects import Project, parameters
from support.visits import Visitor, answering

from runner.errors import UsageError
from runner.model.registry import LocalRegistry
from runner.serve.listening import bind_file
from runner.ui import jupyter
from runner.ui.server import jupyter_access
from runner.ui.several import Several, projects

TOKEN, PREFIX = "a-token-of-jupyter", "/jupyterlab/default"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project `churn` in it, as a home folder of Studio has it."""
    folder = tmp_path_factory.mktemp("home")
    judged.made(folder / "churn", versions=2)
    return folder


@pytest.fixture(scope="module")
def lab(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """JupyterLab below a prefix, and somebody whom it has let in."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = tmp_path_factory.mktemp("jupyter")
    env = environment({f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")})
    (own / "tmp").mkdir()
    command = [
        sys.executable, "-m", "jupyter", "lab", "--allow-root", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.base_url={PREFIX}/", f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=", "--LanguageServerManager.autodetect=False",
    ]  # fmt: skip
    with open(own / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=home, env={**env, "TMPDIR": str(own / "tmp")}, stdout=log, stderr=log)
    visitor = Visitor(port, PREFIX, {"authorization": f"token {TOKEN}"})
    try:
        until = time.monotonic() + 60
        while True:
            try:
                visitor.get("/api")
                break
            except OSError:
                alive = time.monotonic() < until and process.poll() is None
                assert alive, (own / "log").read_text()
                time.sleep(0.1)
        yield visitor
    finally:
        process.terminate()
        process.wait(30)


def linked(page: str) -> set[str]:
    return {unescape(link) for link in re.findall(r'(?:href|src|action)="([^"]*)"', page)}


@pytest.mark.soak
def test_one_click_opens_the_pages_below_the_prefix_and_a_decision_is_made_there(lab: Visitor, home: Path) -> None:
    (tile,) = json.loads(lab.get("/server-proxy/servers-info").text)["server_processes"]
    assert (tile["name"], tile["launcher_entry"]["title"], tile["new_browser_tab"]) == (
        "runner",
        "Runs and models",
        False,
    )
    assert lab.get("/server-proxy/icon/runner").body.startswith(b"<svg")
    first = lab.get(f"/{tile['launcher_entry']['path_info']}")
    assert (first.status, first.headers["location"]) == (303, "./churn/")
    seen, pending = set[str](), ["/runner/churn/"]
    while pending:
        path = pending.pop()
        page = lab.get(path)
        assert page.status == 200, path
        seen.add(path)
        for link in linked(page.text) if page.headers["content-type"].startswith("text/html") else ():
            address = urljoin(f"http://lab{PREFIX}{path}", link)
            assert urlsplit(address).path.startswith(f"{PREFIX}/runner/churn/"), (
                path,
                link,
            )  # all stay below the prefix
            target = urlsplit(address).path.removeprefix(PREFIX)
            if target.endswith(("/", ".css", ".js")) and target not in seen and target not in pending:
                pending.append(target)
    assert {"/runner/churn/static/ui.css", "/runner/churn/models/", "/runner/churn/targets/"} <= seen
    version = "/runner/churn/model/tiny/1"
    page = lab.get(f"{version}/")
    assert (
        lab.post(
            f"{version}/approve", {**page.form("approve"), "reason": "forged"}, origin="https://evil.example"
        ).status
        == 403
    )
    fields = {**lab.get(f"{version}/").form("approve"), "reason": "looks well"}
    assert lab.post(f"{version}/approve", fields).status == 303
    assert lab.post(f"{version}/approve", fields).status == 403  # the same form again
    event = LocalRegistry(home / "churn" / "runs" / "registry.db").events("tiny")[-1]
    assert (event.kind, event.why, event.data["known_by"]) == ("approved", "looks well", "jupyter")


@pytest.mark.soak
def test_who_has_not_signed_in_at_jupyter_and_other_accounts_do_not_reach_the_pages(lab: Visitor) -> None:
    stranger = Visitor(lab.port, lab.prefix)
    assert stranger.get("/runner/churn/").status == 302
    assert stranger.post("/runner/churn/model/tiny/2/approve", {"reason": "x"}).status == 403
    assert lab.get("/runner/churn/").status == 200
    command = next(
        words for pid in Path("/proc").iterdir() if pid.name.isdigit() and b"--socket" in (words := _command(pid))
    )  # fmt: skip
    place = Path(os.fsdecode(command[command.index(b"--socket") + 1]))
    assert (stat.S_IMODE(place.stat().st_mode), stat.S_IMODE(place.parent.stat().st_mode)) == (0o600, 0o700)


def _command(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_a_socket_in_a_folder_that_others_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match="can be entered by other accounts"):
        jupyter_access(tmp_path / "socket")
    with pytest.raises(UsageError, match="cannot be served"):
        bind_file(tmp_path / "missing" / "socket")
    for _ in range(2):  # the second takes the place of one that nobody listens at
        with bind_file(tmp_path / "socket"):
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


def test_several_projects_are_listed_and_a_name_leads_only_to_a_project(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for place in ("a", "b/a", "<img src=x>", ".hidden", "not/so/near"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "pipeline.toml").write_text('name = "p"\n[steps.a]\nnotebook = "a.ipynb"\n')
    assert sorted(projects(tmp_path)) == ["<img src=x>", "a", "b-a"]
    with answering(Several(tmp_path, jupyter_access(tmp_path / "socket"))) as port:
        visitor = Visitor(port)
        first = visitor.get("/")
        linked_safely = 'href="./%3Cimg%20src%3Dx%3E/"' in first.text
        assert (first.status, "<img" in first.text, linked_safely) == (200, False, True)
        for name in ("b-a", "%3Cimg%20src%3Dx%3E"):
            assert visitor.get(f"/{name}/").status == 200
        assert visitor.get("/a").headers["location"] == "./a/"
        for name in ("..", "%2e%2e/", "near/", ".hidden/", "nothing/x"):
            reply = visitor.get(f"/{name}")
            assert (reply.status, "There is no project" in reply.text) == (404, True), name


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://localhost:8888/", "http://localhost:8888/runner/churn/run/r1/"),
        ("http://localhost:8888/jupyterlab/default/", "http://localhost:8888/jupyterlab/default/runner/churn/run/r1/"),
    ],
)
def test_a_page_has_its_address_in_the_jupyterlab_whose_terminal_this_is(home: Path, base: str, expected: str) -> None:
    assert jupyter.page_address(home / "churn", "run", "r1", environment={"JUPYTER_SERVER_URL": base}) == expected
    assert jupyter.page_address(home / "churn", "run", "r1", environment={}) is None


def test_report_and_open_print_addresses_in_a_terminal_of_jupyterlab(home: Path, tmp_path: Path) -> None:
    env = {"JUPYTER_SERVER_URL": "http://localhost:8888/jupyterlab/default/", "JUPYTER_SERVER_ROOT": str(home)}
    project = Project(home / "churn")
    project.write("train.ipynb", parameters('source: str = ""\nmodel: str = ""'), "print(1)")
    (project.folder / "in.csv").write_text("a\n")
    run = judged.RUN.format(2)
    report = project.runner("report", run, env=env)
    assert (report.code, f"in JupyterLab: {env['JUPYTER_SERVER_URL']}runner/churn/run/{run}/" in report.err) == (
        0,
        True,
    )
    opened = project.runner("open", "train", env=env)
    assert (opened.code, opened.out) == (0, f"{env['JUPYTER_SERVER_URL']}lab/tree/churn/train.ipynb\n"), opened.err
    elsewhere = {**env, "JUPYTER_SERVER_ROOT": str(tmp_path)}
    assert jupyter.notebook_address(home / "churn" / "train.ipynb", elsewhere) is None


def test_a_jupyterlab_that_is_installed_elsewhere_gets_the_tile_by_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    path = jupyter.configure()
    assert path.parent == tmp_path / "jupyter_server_config.d"
    (server,) = json.loads(path.read_text())["ServerProxy"]["servers"].values()
    assert server["command"][:4] == [sys.executable, "-P", "-m", "runner"]
