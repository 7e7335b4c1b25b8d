"""The web pages: who comes in, what they see, and that a decision is one that somebody made there."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from support import axe, judged
from support.browser import Browser, browser
from support.judged import RUN
from support.places import free_ports
from support.projects import Project
from support.some import some
from support.visits import Pages, Reply, Visitor, answering, pages_of

from runner.errors import UsageError
from runner.model.events import verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import Event
from runner.project import Project as Opened
from runner.records import Metric, StepError
from runner.run.progress import ProgressFile
from runner.run.provenance import who
from runner.run.store import Store
from runner.step.execute import Progress
from runner.ui.access import Passwords, Sessions, TooManyTries, hasher, users
from runner.ui.guard import POLICY
from runner.ui.runs import Query, RunTable
from runner.ui.server import access, jupyter_access
from runner.ui.several import Several

FORMS = ("approve", "reject")
TARGETS = """
[targets.staging]
kind = "local"
port = {}
workers = 1
[targets.production]
kind = "local"
port = {}
second_approval = true
"""
RULES = f"""
[approval]
by = ["ana", "ben", "eve"]
not_starter = true
{TARGETS}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three versions of tiny, all pending, whose runs passed; each test changes a copy."""
    return judged.made(tmp_path_factory.mktemp("judged") / "project")


@pytest.fixture
def place(template: Project, tmp_path: Path) -> Project:
    return judged.copied(template, tmp_path / "project")


@pytest.fixture
def pages(place: Project) -> Iterator[Pages]:
    with pages_of(place.folder / "pipeline.toml") as served:
        yield served


@pytest.fixture(scope="module")
def known() -> str:
    """Two people with passwords, as RUNNER_UI_USERS has them."""
    return "\n".join(f"{name}:{hasher().hash(f'{name}s password')}" for name in ("ana", "ben", "cleo", "eve"))


def events(project: Project) -> Sequence[Event]:
    found = LocalRegistry(project.folder / "runs" / "registry.db").events("tiny")
    assert verify_chain(found) is None
    return found


def decisions(project: Project) -> list[tuple[int, str, str, str]]:
    return [
        (event.version, event.kind, event.who, event.why) for event in events(project) if event.kind != "registered"
    ]


class Parsed(HTMLParser):
    """Elements and text as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(reply: Reply) -> list[str]:
    """The runs in the table, in order."""
    return re.findall(r'name="run" value="([^"]+)"', reply.text)


# Who comes in


def test_the_printed_address_lets_one_browser_in_and_then_another_address_is_printed(pages: Pages) -> None:
    first, visitor = pages.address, pages.visitor()
    token = first.partition("?")[2]
    assert visitor.get().status == 401
    entered = visitor.get(f"/?{token}")
    assert (entered.status, 'http-equiv="refresh"' in entered.text, pages.told) == (200, True, ["signed in"])
    assert "tiny" in visitor.get().text
    second = pages.visitor()
    again = second.get(f"/?{token}")
    assert (again.status, "was used before" in again.text, second.cookies) == (401, True, {})
    assert second.get(f"/?{pages.address.partition('?')[2]}").status == 200
    assert len(pages.told) == 2


def test_without_a_session_nothing_is_shown_but_the_style(pages: Pages) -> None:
    stranger = pages.visitor()
    for path in (
        "/", "/models/", "/model/tiny/1/", "/targets/", f"/run/{RUN.format(1)}/", f"/run/{RUN.format(1)}/report.html",
        "/events", "/comparison.html", "/nothing",
    ):  # fmt: skip
        reply = stranger.get(path)
        assert (reply.status, "tiny" in reply.text) == (401, False), path
    assert stranger.get("/static/ui.css").status == 200
    assert Visitor(pages.port, cookies={f"runner-ui-{pages.port}": "x" * 43}).get().status == 401


def test_every_answer_forbids_to_store_to_frame_and_to_run_anything_but_the_pages_own_script(pages: Pages) -> None:
    visitor = pages.by_address()
    for reply in (visitor.get(), visitor.get("/nothing"), pages.visitor().get(), visitor.get("/static/ui.js")):
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "server" not in reply.headers
    assert "unsafe" not in POLICY
    report = visitor.get(f"/run/{RUN.format(1)}/report.html").headers["content-security-policy"]
    assert "default-src 'none'" in report
    assert report.endswith("sandbox allow-same-origin")
    assert "script-src" not in report


def test_the_cookie_is_for_this_site_and_no_script(pages: Pages) -> None:
    cookie = pages.visitor().get(f"/?{pages.address.partition('?')[2]}").headers["set-cookie"]
    assert cookie.partition("=")[0] == f"runner-ui-{pages.port}"
    assert cookie.endswith("; HttpOnly; SameSite=Strict")


def test_who_signs_out_is_out(pages: Pages) -> None:
    visitor = pages.by_address()
    before = dict(visitor.cookies)
    assert visitor.post("/sign-out", visitor.get().form("sign-out")).status == 303
    assert Visitor(pages.port, cookies=before).get().status == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "[::1", "a b"])
def test_a_foreign_name_that_leads_here_is_not_answered(pages: Pages, host: str) -> None:
    visitor = pages.by_address()
    assert visitor.get("/", host=host).status in (400, 421)
    assert "tiny" not in visitor.get("/", host=host).text


@pytest.mark.soak
def test_another_host_needs_to_know_who_comes(place: Project) -> None:
    done = place.runner("ui", "--host", "0.0.0.0", "--port", "0")
    assert done.code == 2
    assert "RUNNER_UI_USERS=FILE" in done.err
    assert "--trust-user-header" in done.err
    with pytest.raises(UsageError, match="not both"):
        access("127.0.0.1", 1, header="X-User", users_text="a:$argon2id$x")


# Who somebody is


def test_a_password_says_who_decides_and_the_event_says_that_it_was_a_password(place: Project, known: str) -> None:
    with pages_of(place.folder / "pipeline.toml", users_text=known) as served:
        stranger = served.visitor()
        assert "Password" in stranger.get().text
        assert stranger.get("/?token=anything").status == 401
        wrong = stranger.post("/sign-in", {"name": "ben", "password": "anas password"})
        assert (wrong.status, "is wrong" in wrong.text, stranger.cookies) == (401, True, {})
        ben = served.by_password("ben", "bens password")
        assert ben.decide("tiny/2", "approve", "measured well").status == 303
    last = events(place)[-1]
    assert (last.kind, last.who, last.why, last.data["known_by"]) == ("approved", "ben", "measured well", "password")


def test_wrong_passwords_cost_time_for_the_name_and_for_the_address(known: str) -> None:
    passwords = Passwords(users(known))
    for _ in range(5):
        assert not passwords.check("ana", "wrong", "10.0.0.1")
    with pytest.raises(TooManyTries, match="Try again in"):
        passwords.check("ana", "anas password", "10.0.0.2")
    with pytest.raises(TooManyTries):
        passwords.check("ben", "bens password", "10.0.0.1")
    assert passwords.check("ben", "bens password", "10.0.0.2")


def test_the_users_are_a_file_or_text_and_every_line_has_a_name_and_a_hash(tmp_path: Path, known: str) -> None:
    file = tmp_path / "users"
    file.write_text(f"# who decides\n\n{known}\n")
    assert set(users(str(file))) == set(users(known)) == {"ana", "ben", "cleo", "eve"}
    for text, word in (
        ("ana:secret", "cannot be read"),
        ("ana:$1$md5", "Argon2"),
        (f"{known}\n{known}", "twice"),
        ("# $nobody", "no user"),
    ):
        with pytest.raises(UsageError, match=word):
            users(text)


def test_a_proxys_header_says_who_somebody_is_and_nothing_is_shown_without_it(place: Project) -> None:
    with pages_of(place.folder / "pipeline.toml", header="X-Auth-User", hosts=("pages.example",)) as served:
        assert served.visitor().get().status == 401
        assert Visitor(served.port).ask("GET", "/", None, {"X-Auth-User": " "}).status == 401
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.putrequest("GET", "/")
        for name in ("eve", "ben"):
            connection.putheader("X-Auth-User", name)
        connection.endheaders()
        assert connection.getresponse().status == 401
        connection.close()
        eve = served.visitor(X_Auth_User="eve", host="pages.example")
        assert "eve" in eve.get().text
        assert eve.post("/model/tiny/1/reject", {}, origin="http://pages.example").status == 403
        page = eve.get("/model/tiny/1/")
        fields = {**page.form("reject"), "reason": "too few rows"}
        ben = Visitor(served.port, headers={"X-Auth-User": "ben", "host": "pages.example"}, cookies=dict(eve.cookies))
        assert ben.post("/model/tiny/1/reject", fields, origin="http://pages.example").status == 403
        assert eve.post("/model/tiny/1/reject", fields, origin="http://pages.example").status == 303
    last = events(place)[-1]
    assert (last.kind, last.who, last.data["known_by"]) == ("rejected", "eve", "header X-Auth-User")


# Decisions


def test_a_decision_on_a_page_is_the_event_that_the_command_makes(pages: Pages, place: Project) -> None:
    visitor = pages.by_address()
    page = visitor.get("/model/tiny/1/")
    assert "Pending: a person has to decide." in page.text
    done = visitor.decide("tiny/1", "approve", "  as good as it gets ")
    assert (done.status, done.headers["location"]) == (303, "./")
    after = visitor.get("/model/tiny/1/")
    assert "tiny/1 is approved." in after.text
    assert "tiny/1 is approved." not in visitor.get("/model/tiny/1/").text  # said once
    assert place.runner("approve", "tiny/2", "--reason", "as good as it gets").code == 0
    ours, theirs = events(place)[-2:]
    assert (
        (ours.kind, ours.who, ours.why)
        == (theirs.kind, theirs.who, theirs.why)
        == ("approved", who(), "as good as it gets")
    )
    assert (ours.data, theirs.data) == ({"known_by": "address"}, {"known_by": "account"})
    assert "by the account of these pages&#39; server" in after.text
    lines = place.runner("history", "tiny").out.splitlines()
    assert [re.split("  +", line)[4:] for line in lines[-2:]] == [
        ["address", "as good as it gets"], ["account", "as good as it gets"]
    ]  # fmt: skip
    shown = place.runner("history", "tiny", "--json").json[-2:]
    assert [event["data"]["known_by"] for event in shown] == ["address", "account"]
    assert visitor.decide("tiny/1", "reject", "drift").status == 303
    assert "Rejected by" in visitor.get("/model/tiny/1/").text


def test_every_page_shows_what_is_decided_by_now(pages: Pages, place: Project) -> None:
    visitor = pages.by_address()
    run = f"/run/{RUN.format(1)}/"
    assert "tiny/1 is registered, pending." in visitor.get(run).text
    assert place.runner("approve", "tiny/1", "--reason", "fine").code == 0
    words = f"pending when it ended; now approved by {who()} on"
    for path in (run, f"{run}report.html"):
        assert words in visitor.get(path).text
    assert "✓ approved" in visitor.get().text
    assert "tiny/1 is the approved version; 2 pending" in visitor.get("/models/").text


@pytest.mark.parametrize("action", FORMS)
def test_without_a_reason_nothing_is_decided_and_what_was_typed_stays(
    pages: Pages, place: Project, action: str
) -> None:
    visitor = pages.by_address()
    refused = visitor.decide("tiny/1", action, "  ")
    assert refused.status == 400
    assert "A decision needs a reason; write one." in refused.text
    assert refused.has_form(action)
    assert decisions(place) == []


def test_what_approval_forbids_is_shown_with_the_reason_and_refused_by_the_server(place: Project, known: str) -> None:
    rules = RULES.format(*free_ports(2))
    with pages_of(place.folder / "pipeline.toml", users_text=known) as served:
        ana, cleo = served.by_password("ana", "anas password"), served.by_password("cleo", "cleos password")
        forms = [(one, one.get("/model/tiny/1/").form("approve")) for one in (ana, cleo)]  # before there are rules
        (place.folder / "pipeline.toml").write_text(judged.TOML.format(more=rules))
        page = ana.get("/model/tiny/1/")
        assert "Not allowed." in page.text
        assert "ana started the run of tiny/1 and may not approve it" in page.text
        assert (page.has_form("approve"), page.has_form("reject")) == (False, True)
        page = cleo.get("/model/tiny/1/")
        assert "cleo may not decide on tiny/1: only ana, ben, eve may" in page.text
        assert (page.has_form("approve"), page.has_form("reject")) == (False, False)
        for one, fields in forms:
            refused = one.post("/model/tiny/1/approve", {**fields, "reason": "let me"})
            assert (refused.status, "Nothing was done." in refused.text) == (409, True)
        assert decisions(place) == []


def test_a_second_approval_is_given_by_another_person_for_one_target(place: Project, known: str) -> None:
    (place.folder / "pipeline.toml").write_text(judged.TOML.format(more=RULES.format(*free_ports(2))))
    with pages_of(place.folder / "pipeline.toml", users_text=known) as served:
        ben, eve = served.by_password("ben", "bens password"), served.by_password("eve", "eves password")
        assert "Approve for production" not in ben.get("/model/tiny/1/").text
        assert ben.decide("tiny/1", "approve", "good").status == 303
        page = ben.get("/model/tiny/1/")
        assert "ben approved tiny/1; for production somebody else has to as well." in page.text
        targets = ben.get("/targets/").text
        assert "tiny/1 needs a second approval for production, by somebody else than ben" in targets
        assert eve.decide("tiny/1", "approve", "good there too", target="production").status == 303
        assert "✓ Approved for production" in eve.get("/model/tiny/1/").text
    assert decisions(place)[-1] == (1, "approved for production", "eve", "good there too")


def test_of_two_who_decide_at_once_one_is_told_by_whom_and_when(place: Project, known: str) -> None:
    with pages_of(place.folder / "pipeline.toml", users_text=known) as served:
        people = [served.by_password(name, f"{name}s password") for name in ("ben", "eve")]
        ready = threading.Barrier(2)

        def decide(one: Visitor, action: str) -> Reply:
            fields = {**one.get("/model/tiny/3/").form(action), "reason": f"I say {action}"}
            ready.wait(30)
            return one.post(f"/model/tiny/3/{action}", fields)

        with ThreadPoolExecutor(2) as pool:
            replies = list(pool.map(decide, people, ["approve", "approve"]))
    assert sorted(reply.status for reply in replies) == [303, 409]
    (loser,) = [reply for reply in replies if reply.status == 409]
    ((version, kind, winner, why),) = decisions(place)
    assert (version, kind, why) == (3, "approved", "I say approve")
    assert f"tiny/3 is already approved, by {winner} at {events(place)[-1].at}" in loser.text
    assert "I say approve</textarea>" not in loser.text  # there is nothing left to approve


# Forged requests


def forged(visitor: Visitor, action: str) -> Iterator[tuple[str, Reply]]:
    """Requests that nobody has made on a page of ours, each with its name."""
    path, other = f"/model/tiny/1/{action}", "/model/tiny/2/"
    fields = {"reason": "forged"}
    own = visitor.get("/model/tiny/1/").form(action)
    stranger = Visitor(visitor.port)
    yield "no token", visitor.post(path, fields)
    yield "an empty token", visitor.post(path, {**fields, "token": ""})
    yield "a token of letters", visitor.post(path, {**fields, "token": "é.a.b"})
    yield "another form's token", visitor.post(path, {**fields, **visitor.get(other).form(action)})
    yield "a changed token", visitor.post(path, {**fields, "token": own["token"].replace(".", ".0", 1)})
    yield "no session", stranger.post(path, {**fields, **own})
    yield "another site's form", visitor.post(path, {**fields, **own}, origin="http://evil.example")
    yield "another port's form", visitor.post(path, {**fields, **own}, origin="http://127.0.0.1:1")
    yield "no site's form", visitor.post(path, {**fields, **own}, origin="null")
    for site in ("cross-site", "same-site", "none"):
        yield site, visitor.post(path, {**fields, **own}, sec_fetch_site=site)
    yield "another Host", visitor.post(path, {**fields, **own}, host="evil.example", origin="http://evil.example")
    yield "another kind", visitor.post(path, {**fields, **own}, content_type="text/plain")
    yield (
        "JSON",
        visitor.ask("POST", path, json.dumps({**fields, **own}).encode(), {"content-type": "application/json"}),
    )
    yield "a link", visitor.get(f"{path}?{urlencode({**fields, **own})}")
    yield "a long form", visitor.post(path, {**fields, **own, "more": "x" * 70_000})
    yield "PUT", visitor.ask("PUT", path, urlencode({**fields, **own}).encode(), {})


@pytest.mark.parametrize("action", FORMS)
def test_a_forged_request_does_nothing(pages: Pages, place: Project, action: str) -> None:
    for name, reply in forged(pages.by_address(), action):
        assert reply.status in (400, 401, 403, 404, 405, 413, 415, 421), name
    assert decisions(place) == []


def test_a_form_is_refused_once_all_of_it_has_come(pages: Pages) -> None:
    """Whoever is answered while sending, as a proxy, may find the line closed and lose the answer."""
    head = (
        f"POST /model/tiny/3/approve HTTP/1.1\r\nhost: 127.0.0.1:{pages.port}\r\norigin: http://evil.example\r\n"
        "content-type: application/x-www-form-urlencoded\r\ncontent-length: 10\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", pages.port), 60) as connection:
        connection.sendall(head.encode() + b"token")
        assert not select.select([connection], [], [], 0.3)[0]
        connection.sendall(b"=abcd")
        assert connection.recv(1000).startswith(b"HTTP/1.1 403 ")


def test_a_form_that_was_refused_is_sent_again_from_the_page_it_brings(pages: Pages, place: Project) -> None:
    visitor = pages.by_address()
    fields = {**visitor.get("/model/tiny/1/").form("approve"), "reason": " "}
    refused = visitor.post("/model/tiny/1/approve", fields)
    assert refused.status == 400
    again = visitor.post("/model/tiny/1/approve", {**fields, "reason": "good"})
    assert (again.status, "counted" in again.text, "Nothing was done now." in again.text) == (403, False, True)
    assert visitor.post("/model/tiny/1/approve", {**refused.form("approve"), "reason": "good"}).status == 303
    page = visitor.get("/model/tiny/1/").text
    assert "Read what speaks" not in page
    assert "Read what speaks" in visitor.get("/model/tiny/2/").text
    assert [kind for _, kind, _, _ in decisions(place)] == ["approved"]


def test_a_form_counts_once(pages: Pages, place: Project) -> None:
    visitor = pages.by_address()
    fields = {**visitor.get("/model/tiny/1/").form("approve"), "reason": "good"}
    assert visitor.post("/model/tiny/1/approve", fields).status == 303
    again = visitor.post("/model/tiny/1/approve", fields)
    assert (again.status, "was sent before" in again.text) == (403, True)
    assert [kind for _, kind, _, _ in decisions(place)] == ["approved"]


def test_a_token_is_good_for_its_session_and_its_form_alone() -> None:
    from runner.model.registry_rules import Person
    from runner.ui.access import FormRefused

    sessions = Sessions()
    one, other = (sessions.find(sessions.begin(Person(name))) for name in ("ana", "ben"))
    assert one is not None
    assert other is not None
    token = sessions.form_token(one, "/a")
    for session, purpose in ((other, "/a"), (one, "/b")):
        with pytest.raises(FormRefused):
            sessions.take_form(session, purpose, token)
    sessions.take_form(one, "/a", token)
    with pytest.raises(FormRefused, match="before"):
        sessions.take_form(one, "/a", token)


# What comes from notebooks and people

HOSTILE = "</td><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[31m"


def test_hostile_names_notes_cards_and_outputs_are_inert(place: Project) -> None:
    more = {
        "note": HOSTILE, "tags": [HOSTILE, "javascript:alert(1)"], "started_by": HOSTILE,
        "card": f"# Card {HOSTILE}\n[link](javascript:alert(1)) <form action=/x><button>Approve</button></form> <style>*{{}}</style>",
    }  # fmt: skip
    run = RUN.format(4)
    shutil.copytree(place.folder / "runs" / RUN.format(1) / "steps", place.folder / "runs" / run / "steps")
    judged.passed(place, 4, Metric(value=0.9), **more)
    judged.executed(place, 4, {"output_type": "display_data", "data": {"text/html": HOSTILE}, "metadata": {}})
    error = StepError(kind="exception", ename=HOSTILE, evalue=HOSTILE, cell=2, first_line=HOSTILE, traceback=[HOSTILE])
    judged.write(place, judged.manifest_of(place, RUN.format(5), {}, error=error, overrides={HOSTILE: HOSTILE}))
    with pages_of(place.folder / "pipeline.toml") as served:
        visitor = served.by_address()
        paths = [
            "/",
            f"/?tag={HOSTILE!r}&sort={HOSTILE!r}&metric={HOSTILE!r}",
            "/models/",
            "/model/tiny/4/",
            f"/run/{run}/",
        ]
        paths += [
            f"/run/{RUN.format(5)}/",
            f"/run/{HOSTILE!r}/",
            f"/model/{HOSTILE!r}/1/",
            f"/targets/{HOSTILE!r}/deploy",
        ]
        paths += [f"/compare?run={run}&run={RUN.format(5)}", f"/compare?run={HOSTILE!r}&run=a"]
        framed = [
            f"/run/{run}/report.html",
            f"/run/{run}/steps/train/executed.html",
            f"/run/{RUN.format(5)}/report.html",
        ]
        framed += [f"/comparison.html?run={run}&run={RUN.format(5)}"]
        for path in [*paths, *framed]:
            reply = visitor.get(
                "/" + "".join(c if c.isalnum() or c in "/?&=.-_" else f"%{b:02x}" for c in path[1:] for b in c.encode())
            )
            parsed = Parsed(reply.text)
            scripts = [attributes for tag, attributes in parsed.tags if tag == "script"]
            assert len(scripts) == (path in paths), path
            assert all(str(one["src"]).endswith("static/ui.js") for one in scripts), path
            for tag, attributes in parsed.tags:
                assert not [name for name in attributes if name.startswith("on")], (path, tag, attributes)
                for name in ("href", "src", "action"):
                    assert not str(attributes.get(name, "")).strip().lower().startswith(("javascript:", "vbscript:")), (
                        path
                    )
            assert path in framed or not {"\x1b", "\u202e"} & {*reply.text}, (
                path
            )  # an output is shown as it is, in its frame
        card = re.search(
            r'<article class="card prose"[^>]*>(.*?)</article>', visitor.get("/model/tiny/4/").text, re.DOTALL
        )
        assert card is not None
        assert not {"form", "button", "style", "script"} & {tag for tag, _ in Parsed(card[1]).tags}


def test_only_files_that_a_run_has_made_are_sent_and_only_to_be_saved(pages: Pages, place: Project) -> None:
    visitor = pages.by_address()
    (place.folder / "secret.txt").write_text("secret")
    run = RUN.format(1)
    for path in (
        "../../../../secret.txt",
        "..%2f..%2f..%2f..%2fsecret.txt",
        "out/model/signature.json",
        "run.json",
        "job.json",
    ):
        assert visitor.get(f"/run/{run}/steps/train/{path}").status == 404, path
    assert visitor.get("/run/..%2f..%2fsecret.txt/").status in (404, 409)


# The runs


def test_the_address_says_which_runs_and_in_which_order(pages: Pages, place: Project) -> None:
    failed = StepError(kind="exception", ename="ValueError", evalue="no rows", cell=1, first_line="x")
    judged.write(
        place,
        judged.manifest_of(
            place, RUN.format(7), {}, error=failed, note="June", tags=["nightly"], started_by="eve@desk"
        ),
    )
    visitor = pages.by_address()
    one, two, three, seven = (RUN.format(number) for number in (1, 2, 3, 7))
    assert rows(visitor.get()) == [seven, three, two, one]
    for query, expected in (
        ("?status=failed", [seven]), ("?verdict=pass", [three, two, one]), ("?tag=nightly", [seven]), ("?q=june", [seven]),
        ("?who=eve@desk", [seven]), ("?sort=train.auc", [one, two, three, seven]), ("?sort=-train.auc", [three, two, one, seven]),
        ("?sort=run", [one, two, three, seven]), ("?verdict=none", [seven]), ("?status=running", []), ("?page=9", []),
        ("?sort=status&verdict=pass", [three, two, one]), ("?sort=nothing&page=x&metric=a.b", [seven, three, two, one]),
    ):  # fmt: skip
        assert rows(visitor.get(f"/{query}")) == expected, query
    text = visitor.get("/?sort=-train.auc").text
    assert "ValueError" in text
    assert "0.93" in text
    assert 'href="?sort=train.auc"' in text  # the other way round


def test_a_changed_run_is_read_again(place: Project) -> None:
    store, table = Store(place.folder / "runs"), RunTable()
    newest = RUN.format(3)

    def tagged() -> list[str]:
        return [one.run for one in table.page(store, Query.of({"tag": "late"})).manifests]

    assert tagged() == []
    judged.write(place, store.manifest(newest), tags=["late"])
    assert tagged() == [newest]
    (place.folder / "runs" / newest / "run.json").write_text("{")
    assert tagged() == []
    page = table.page(store, Query())
    assert (len(page.manifests), len(page.problems)) == (2, 1)
    assert newest in page.problems[0]


def test_two_runs_show_what_differs_and_more_are_a_table_with_plots(pages: Pages) -> None:
    visitor = pages.by_address()
    runs = [RUN.format(number) for number in (1, 2, 3)]
    two = visitor.get(f"/comparison.html?run={runs[0]}&run={runs[1]}").text
    assert "Gate passed in both" in two
    three = visitor.get(f"/comparison.html?{urlencode({'run': runs}, doseq=True)}").text
    assert "3 runs side by side" in three
    assert "data:image/svg+xml" in three
    assert f'href="run/{runs[0]}/report.html"' in three
    assert visitor.get(f"/compare?{urlencode({'run': runs}, doseq=True)}").status == 200
    assert visitor.get(f"/compare?run={runs[0]}").status == 400


def test_the_run_has_its_graph_its_neighbours_and_its_report_in_a_frame_that_runs_nothing(
    pages: Pages, place: Project
) -> None:
    judged.executed(place, 2, {"output_type": "stream", "name": "stdout", "text": "hello"})
    visitor = pages.by_address()
    run = RUN.format(2)
    page = visitor.get(f"/run/{run}/")
    assert '<iframe class="report" sandbox="allow-same-origin" src="report.html"' in page.text
    assert 'class="node step succeeded"' in page.text
    assert f'href="../../run/{RUN.format(3)}/">← Next run' in page.text
    assert f'href="../../run/{RUN.format(1)}/">Previous run →' in page.text
    assert 'src="steps/train/executed.html"' in visitor.get(f"/run/{run}/?show=train").text
    assert 'src="steps/train/executed-no-code.html"' in visitor.get(f"/run/{run}/?show=train&code=hidden").text
    shown, hidden = (
        visitor.get(f"/run/{run}/steps/train/{name}.html").text for name in ("executed", "executed-no-code")
    )
    assert (shown.count('<body class="no-code">'), hidden.count('<body class="no-code">')) == (0, 1)
    assert "hello" in hidden


def test_a_version_is_compared_with_the_champion_and_no_overlap_is_called_better(pages: Pages, place: Project) -> None:
    assert place.runner("approve", "tiny/1", "--reason", "fine").code == 0
    text = pages.by_address().get("/model/tiny/3/").text
    assert 'Metrics against <a href="../../../model/tiny/1/">tiny/1</a>' in text
    assert "intervals overlap" in text
    assert ">better<" not in text
    assert "ab" * 32 in text  # the data's hash
    assert text.index("Model card") < text.index("Metrics against") < text.index("Decide</h2>")


def test_the_rows_of_runs_that_go_on_follow_the_progress_of_the_terminal(pages: Pages, place: Project) -> None:
    store, run = Store(place.folder / "runs"), RUN.format(8)
    manifest = judged.manifest_of(place, run, {})
    running = msgspec.structs.replace(manifest.steps[0], status="running", result=None)
    judged.write(place, manifest, status="running", steps=[running], ended=None)
    visitor = pages.by_address()
    with store.lock(run):
        note = ProgressFile(store.folder(run))
        note.note(Progress("train", 3, 7, 4, "model.fit(rows)"))
        page = visitor.get()
        assert f'data-running="{run}"' in page.text
        assert "train: 3 of 7 cells, now [4] model.fit(rows)" in page.text
        connection = http.client.HTTPConnection("127.0.0.1", pages.port, timeout=30)
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        connection.request("GET", f"/events?run={run}&newest={run}", headers={"cookie": cookie})
        stream = connection.getresponse()
        assert event(stream) == ("row", {"run": run, "lines": ["train: 3 of 7 cells, now [4] model.fit(rows)"]})
        time.sleep(0.3)
        note.note(Progress("train", 4, 7, 5, "score(rows)"))
        assert event(stream)[1]["lines"] == ["train: 4 of 7 cells, now [5] score(rows)"]
        note.close()
        judged.write(place, manifest)
    assert event(stream) == ("ended", {"run": run})
    connection.close()


def event(stream: http.client.HTTPResponse) -> tuple[str, Any]:
    """The next event, without the comments between."""
    while not (line := stream.readline().decode()).startswith("event: "):
        assert line
    return line.removeprefix("event: ").strip(), json.loads(stream.readline().decode().removeprefix("data: "))


# Targets


def test_a_target_is_changed_only_by_a_confirmation_that_names_version_and_target(place: Project) -> None:
    (place.folder / "pipeline.toml").write_text(judged.TOML.format(more=TARGETS.format(*free_ports(2))))
    for number in (1, 2):
        assert place.runner("approve", f"tiny/{number}", "--reason", "fine").code == 0
    try:
        with pages_of(place.folder / "pipeline.toml") as served:
            visitor = served.by_address()
            assert "Nothing is served." in visitor.get("/targets/").text
            for number in (1, 2):
                confirm = visitor.get(f"/targets/staging/deploy?version=tiny/{number}")
                assert f"Deploy tiny/{number} to staging?" in confirm.text
                fields = confirm.form("../../targets/staging/deploy")
                done = visitor.post("/targets/staging/deploy", {**fields, "reason": "ticket 41"})
                assert (done.status, done.headers["location"]) == (303, "../")
            page = visitor.get("/targets/").text
            assert "✓ serving" in page
            assert "staging serves tiny/2 at http" in page
            back = visitor.get("/targets/staging/rollback")
            assert "Roll staging back to tiny/1?" in back.text
            end = visitor.get("/targets/staging/undeploy").form("../../targets/staging/undeploy")
            assert visitor.post("/targets/staging/rollback", back.form("../../targets/staging/rollback")).status == 303
            late = visitor.post("/targets/staging/undeploy", end)  # names tiny/2, which does not serve any more
            assert (late.status, "staging serves tiny/1 now, not tiny/2" in late.text) == (409, True)
            end = visitor.get("/targets/staging/undeploy").form("../../targets/staging/undeploy")
            assert visitor.post("/targets/staging/undeploy", end).status == 303
            assert "Nothing is served." in visitor.get("/targets/").text
    finally:
        place.runner("undeploy", "staging")
    told = [event for event in events(place) if "deployment" in event.data]
    assert [(one.version, one.kind, one.data["known_by"]) for one in told] == [
        (1, "deployed", "address"), (2, "deployed", "address"), (1, "rolled back", "address"), (1, "removed", "address"),
    ]  # fmt: skip


def test_what_cannot_be_deployed_is_refused_before_and_after_the_confirmation(place: Project) -> None:
    (place.folder / "pipeline.toml").write_text(judged.TOML.format(more=RULES.format(*free_ports(2))))
    with pages_of(place.folder / "pipeline.toml") as served:
        visitor = served.by_address()
        for path in ("deploy?version=tiny/1", "rollback", "undeploy"):
            assert visitor.get(f"/targets/staging/{path}").status == 409, path
        for path in (
            "staging/explode",
            "nowhere/undeploy",
            "staging/deploy?version=tiny",
            "staging/deploy?version=tiny/9",
        ):
            assert visitor.get(f"/targets/{path}").status in (400, 404), path


# Elsewhere


def test_every_link_is_relative_so_that_the_pages_work_under_a_prefix(place: Project) -> None:
    with pages_of(place.folder / "pipeline.toml", prefix="/user/ana/proxy/8765") as served:
        visitor = served.by_address()
        for path in ("/", "/models/", "/model/tiny/1/", f"/run/{RUN.format(1)}/", "/targets/", "/nothing/at/all"):
            reply = visitor.get(path)
            for tag, attributes in Parsed(reply.text).tags:
                for name in ("href", "src", "action"):
                    address = attributes.get(name)
                    assert address is None or not address.startswith(("/", "http")), (path, tag, attributes)
        assert "tiny" in visitor.get().text
        assert visitor.decide("tiny/1", "approve", "good").status == 303
    assert decisions(place)[-1][1] == "approved"


def test_a_broken_pipeline_file_is_told_on_the_page(pages: Pages, place: Project) -> None:
    visitor = pages.by_address()
    (place.folder / "pipeline.toml").write_text("name = 3")
    reply = visitor.get("/models/")
    assert (reply.status, "name" in reply.text) == (400, True)


def test_the_command_prints_the_address_and_ends_with_a_signal(place: Project) -> None:
    process = place.start("ui", "--port", "0")
    assert process.stderr is not None
    assert process.stdout is not None
    line = process.stderr.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/\?(token=\S+)", line)
    assert found, line
    visitor = Visitor(int(found[1]))
    assert visitor.get(f"/?{found[2]}").status == 200
    assert "signed in; for another browser: http://127.0.0.1" in process.stderr.readline()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)) as connection:
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        connection.request("GET", "/events", headers={"cookie": cookie})
        assert connection.getresponse().status == 200  # and goes on, until the server ends
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()


def test_the_site_has_the_same_pages_without_forms_and_every_link_leads_to_a_file(
    place: Project, tmp_path: Path
) -> None:
    judged.executed(place, 1, {"output_type": "stream", "name": "stdout", "text": "hello"})
    site = tmp_path / "site"
    done = place.runner("site", str(site), "--json")
    assert (done.code, done.json["runs"], done.json["versions"], done.json["left_out"]) == (0, 3, 3, []), done.err
    written = sorted(site.rglob("*.html"))
    assert len(written) == 1 + 1 + 1 + 2 * 3 + 2 * 3 + 1
    for path in written:
        tags = Parsed(path.read_text()).tags
        assert not {"script", "input", "button"} & {tag for tag, _ in tags}, path
        for _, attributes in tags:
            for name in ("href", "src"):
                address = str(attributes.get(name) or "")
                if address and not address.startswith(("#", "data:")):
                    assert (path.parent / address.partition("#")[0]).is_file(), (path, address)
    assert place.runner("site", str(site)).code == 0  # again
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    refused = place.runner("site", str(tmp_path / "other"))
    assert (refused.code, "was not written by `runner site`" in refused.err) == (8, True)


def test_users_lines_are_made_by_the_command(place: Project) -> None:
    from click.testing import CliRunner

    from runner.cli.ui import ui_command

    made = CliRunner().invoke(ui_command, ["--user", "ana"], input="long enough\nlong enough\n")
    line = made.stdout.strip().splitlines()[-1]
    passwords = Passwords(users(line))
    assert passwords.check("ana", "long enough", "here")


# In a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("script", some([True, False], [True]))
def test_by_keyboard_alone_a_reviewer_finds_what_is_pending_reads_why_and_approves(
    place: Project, tab: Browser, script: bool
) -> None:
    assert place.runner("approve", "tiny/1", "--reason", "fine").code == 0
    judged.executed(place, 3, {"output_type": "stream", "name": "stdout", "text": "hello"})
    with pages_of(place.folder / "pipeline.toml") as served:
        tab.open(served.address, script=script)
        wait_until(lambda: tab.value("document.title") == "Runs · tiny")
        tab.follow('nav a[href="models/"]')
        assert "1 is the approved version; 2 pending" in tab.value("document.body.innerText")
        tab.follow('a[href="../model/tiny/3/"]')
        text = tab.value("document.body.innerText")
        assert "The model of run 3." in text
        assert "above the required minimum 0.8" in text
        assert "intervals overlap" in text
        tab.follow(f'a[href="../../../compare?run={RUN.format(1)}&run={RUN.format(3)}"]')
        frame = "document.querySelector('iframe').contentDocument"
        assert "Gate passed in both" in tab.value(f"{frame}.body.innerText")
        tab.follow(f'a[href="run/{RUN.format(3)}/"]')
        assert "tiny/3 is registered, pending." in tab.value(f"{frame}.body.innerText")
        tab.follow('.verdict a[href="../../model/tiny/3/"]')
        tab.write('form[action="approve"] textarea', "read it all")
        tab.follow('form[action="approve"] button')
        assert "tiny/3 is approved." in tab.value("document.querySelector('[role=status]').textContent")
        assert "Approved by" in tab.value("document.querySelector('.headline').textContent")
        assert not [one for one in tab.requests if not one.startswith((f"http://127.0.0.1:{served.port}/", "data:"))]
    assert decisions(place)[-1] == (3, "approved", who(), "read it all")


@pytest.mark.soak
def test_nothing_is_wider_than_a_telephone_and_the_dark_is_dark(place: Project, tab: Browser) -> None:
    failed = StepError(kind="exception", ename="ValueError", evalue="x" * 300, cell=1, first_line="y" * 300)
    judged.write(place, judged.manifest_of(place, RUN.format(7), {}, error=failed, note="n" * 300, tags=["t" * 90]))
    with pages_of(place.folder / "pipeline.toml") as served:
        tab.open(served.address)
        for path in ("", "models/", "model/tiny/1/", f"run/{RUN.format(7)}/", "targets/", "nothing"):
            for width in (390, 1280):
                tab.open(f"http://127.0.0.1:{served.port}/{path}", width=width, dark=width == 390)
                assert tab.value("document.documentElement.scrollWidth - innerWidth") <= 0, (path, width)
                if not path:
                    shadows = "getComputedStyle(document.querySelector('.wide')).backgroundAttachment"
                    assert tab.value(shadows) == "local, local, scroll, scroll"
                ground = tab.value("getComputedStyle(document.body).backgroundColor")
                assert ground == ("rgb(20, 24, 29)" if width == 390 else "rgb(255, 255, 255)")


# (width, dark): one after the other, page by page; in `make soak` all of them on each page, with a target that serves
LOOKS = [(1280, False), (390, True), (1280, True), (390, False)]


@pytest.mark.soak
def test_axe_finds_no_fault_on_any_page(place: Project, tab: Browser, known: str, tmp_path: Path) -> None:
    file = place.folder / "pipeline.toml"
    file.write_text(judged.TOML.format(more=TARGETS.format(*free_ports(2))))
    running = judged.of_every_kind(place)
    for arguments in (("approve", "tiny/1"), ("approve", "tiny/2"), ("reject", "tiny/3")):
        assert place.runner(*arguments, "--reason", "looked at").code == 0
    tmp_path.chmod(0o700)  # the folder of several projects
    with contextlib.ExitStack() as stack:
        stack.callback(place.runner, "undeploy", "staging")
        for number in (1, 2):
            assert place.runner("deploy", f"tiny/{number}", "--to", "staging").code == 0
        stack.enter_context(Store(place.folder / "runs").lock(running))
        asking = stack.enter_context(pages_of(file, users_text=known))
        served = stack.enter_context(pages_of(file))
        several = stack.enter_context(answering(Several(tmp_path, jupyter_access(tmp_path / "socket"))))
        here = f"http://127.0.0.1:{served.port}/"
        pages = [here, f"http://127.0.0.1:{asking.port}/", f"http://127.0.0.1:{several}/nothing"]
        tab.open(here, policy=False)
        assert "Open the address" in tab.value("document.body.innerText")
        found = axe.faults(tab)
        tab.open(served.address)
        wait_until(lambda: tab.value("document.title") == "Runs · tiny")
        pages += [axe.sweep_page(Opened(file)), *(here + path for path in axe.served_paths())]
        pages += axe.site_pages(Opened(file), tmp_path / "site")
        for page in pages:
            tab.open(page, policy=False)
            for width, dark in LOOKS:
                tab.show(width=width, dark=dark)
                found += [f"{page} {width} {'dark' * dark} {fault}" for fault in axe.faults(tab)]
    assert found == []


def test_axe_finds_what_is_wrong_with_a_page(tab: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<!DOCTYPE html><title>x</title><p style="color: #999; background: #fff">pale<img src="data:,">')
    tab.open(page.as_uri(), policy=False)
    for rule in ("serious color-contrast: <p", "critical image-alt: <img", "serious html-has-lang: <html"):
        assert [fault for fault in axe.faults(tab) if fault.startswith(rule)], rule


def test_the_live_rows_and_the_checkboxes_work_in_a_browser(place: Project, tab: Browser) -> None:
    store, run = Store(place.folder / "runs"), RUN.format(8)
    manifest = judged.manifest_of(place, run, {})
    running = msgspec.structs.replace(manifest.steps[0], status="running", result=None)
    judged.write(place, manifest, status="running", steps=[running], ended=None)
    with pages_of(place.folder / "pipeline.toml") as served, store.lock(run):
        tab.open(served.address)
        wait_until(lambda: tab.value("document.getElementById('compare')?.disabled") is True)
        ProgressFile(store.folder(run)).note(Progress("train", 2, 9, 3, "fit()"))
        wait_until(lambda: "2 of 9 cells" in tab.value("document.querySelector('.live').textContent"))
        for number in (2, 1):
            tab.focus(f'input[value="{RUN.format(number)}"]')
            tab.press(" ")
        assert tab.value("document.getElementById('selected').textContent") == "2 selected"
        assert not tab.value("document.getElementById('compare').disabled")
        judged.write(place, manifest)  # it has ended; who has selected something is asked before the page changes
        wait_until(lambda: not tab.value("document.getElementById('news').hidden"))


def wait_until(held: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not held():
        assert time.monotonic() < until
        time.sleep(0.05)


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.soak
def test_ten_thousand_runs_are_listed_at_once_and_take_little_memory(place: Project) -> None:
    runs = place.folder / "runs"
    text = (runs / RUN.format(1) / "run.json").read_text()
    for number in range(10_000):
        name = f"20251{number // 5000}01-{number % 24:02d}{number // 24 % 60:02d}00-{number:04x}"
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text.replace(RUN.format(1), name))
    process = place.start("ui", "--port", "0")
    assert process.stderr is not None
    found = re.search(r":(\d+)/\?(token=\S+)", process.stderr.readline())
    assert found
    visitor = Visitor(int(found[1]))
    visitor.get(f"/?{found[2]}")

    def taken(path: str) -> float:
        """Processor seconds of the server, as other tests may take the cores."""
        began = processor_s(process.pid)
        assert len(rows(visitor.get(path))) == 50
        return processor_s(process.pid) - began

    wait_until(lambda: taken("/?sort=-train.auc") < 0.5)  # all were read once
    first, sorted_ = taken("/"), taken("/?sort=-train.auc&verdict=pass")
    (memory,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    assert first < 0.3, first
    assert sorted_ < 0.5, sorted_
    assert int(memory) < 120_000, memory
