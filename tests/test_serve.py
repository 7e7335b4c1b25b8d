"""An approved version over HTTP: what is answered, what is refused, and what many or slow or rude clients can do."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import command, environment
from support.models import PLANS, good, mixed, number, records, saved, several, whole
from support.projects import ROOT, Project, children_of, program
from support.served import CSV, JSON, ROW, Client, Served, approved, serving
from support.some import some

import runner.model
from runner.errors import RunnerError
from runner.import_blocking import without
from runner.model.registry import LocalRegistry
from runner.scoring.inference import CONTENT_TYPES
from runner.serve.app import KNOWN
from runner.serve.describe import REFUSALS

ALLOWED = {200, 400, 406, 413, 415}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("serve"))
    approved(project)
    return project


@pytest.fixture(scope="module")
def served(house: Project) -> Iterator[Served]:
    with serving(house, "--workers", "1", "--max-body-mb", "0.25", "--timeout-s", "2") as found:
        yield found


@pytest.fixture(scope="module")
def model(house: Project) -> runner.model.Model:
    return runner.model.load(next(house.folder.glob("runs/2*/steps/train/out/model")))


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    made = Client(served.port, patient=True)
    yield made
    made.close()


# What is answered


def test_it_answers_as_sagemaker_asks(client: Client, model: runner.model.Model) -> None:
    assert client.ask("GET", "/ping").status == 200
    answer = client.score({"instances": [ROW, {**ROW, "minutes": None}]})
    expected = model.predict(pd.DataFrame([ROW, {**ROW, "minutes": None}]))
    assert answer.status == 200
    assert answer.headers["content-type"] == JSON
    assert answer.headers["x-model"] == "tiny/1"
    assert answer.json == {
        "predictions": [{"prediction": bool(one >= 0.4), "probability": float(one)} for one in expected],
        "model": "tiny/1",
    }


def test_every_form_of_request_and_answer_has_the_same_scores(client: Client, model: runner.model.Model) -> None:
    raw = records(60)
    expected = model.predict(raw)
    lines = "\n".join(json.dumps(row) for row in json.loads(raw.to_json(orient="records"))).encode()
    bodies = {
        "text/csv": raw.to_csv(index=False).encode(),
        "text/csv; header=absent; charset=utf-8": raw.to_csv(index=False, header=False).encode(),
        "application/json": raw.to_json(orient="records").encode(),
        "application/jsonlines": lines,
    }
    for kind, body in bodies.items():
        for accept in ("application/json", "text/csv", "application/jsonlines"):
            answer = client.score(body, kind, accept=accept)
            assert answer.status == 200, answer.body
            assert answer.headers["content-type"].startswith(accept)
            if accept == "text/csv":
                found = [float(line) for line in answer.body.decode().splitlines()]
            else:
                rows = answer.json["predictions"] if accept == JSON else map(json.loads, answer.body.splitlines())
                found = [row["probability"] for row in rows]
            assert np.array(found, dtype="float32").tobytes() == expected.tobytes()


def test_the_answer_says_what_is_wrong_where(client: Client) -> None:
    answer = client.score(b"minutes,calls,plan,roaming\n1,2,gold,1\n1,2,iron,1\n", CSV, accept="text/csv")
    said = "Row 2, column plan: 'iron' is not a known category (657, basic, gold, südost)."
    assert (answer.status, answer.json) == (400, {"error": said, "row": 2, "column": "plan"})
    assert client.score(b"1", "text/html").status == 415
    assert client.score(b"1", CSV, accept="image/png").status == 406
    assert client.score(b"", CSV).status == 400
    assert client.score([ROW], content_encoding="gzip").status == 415
    assert client.ask("GET", "/invocations").status == 405
    assert client.ask("POST", "/ping").status == 405
    assert client.ask("GET", "/nothing/here").status == 404
    assert "/invocations" in client.ask("GET", "/nothing/here").json["error"]


@pytest.mark.parametrize("column", ["minutes", "plan"])
def test_a_value_as_deep_as_the_interpreter_can_read_is_refused(client: Client, column: str) -> None:
    for depth in range(900, 1001):
        value = "[" * depth + "]" * depth
        answer = client.score(json.dumps({**ROW, column: 0.5}).replace("0.5", value).encode())
        assert (answer.status, answer.json["column"]) in ((400, column), (400, None)), (depth, answer.body)


def test_a_long_text_is_refused_in_a_moment(client: Client) -> None:
    """A pattern that goes back and forth in it would take minutes."""
    digits = "1" * 60_000 + "x"
    began = time.monotonic()
    for name in ROW:
        assert client.score({**ROW, name: digits}).json["column"] == name
    assert client.score(ROW, accept=f"text/csv;q={digits[-30_000:]}").status == 406
    assert time.monotonic() - began < 4


@pytest.mark.soak
def test_an_unknown_category_can_be_a_missing_value(house: Project, model: runner.model.Model) -> None:
    with serving(house, "--workers", "1", "--unknown", "missing") as served:
        client = Client(served.port)
        answer = client.score([{**ROW, "plan": "iron"}])
        client.close()
    frame = pd.DataFrame([{**ROW, "plan": "iron"}])
    assert answer.json["predictions"][0]["probability"] == float(model.predict(frame, unknown="missing")[0])


@pytest.mark.soak
@pytest.mark.parametrize("make", some([number, several], [several]))
def test_numbers_and_classes_are_served_too(project: Project, make: Callable[[Path], Path]) -> None:
    folder = approved(project, make)
    scores = runner.model.load(folder).predict(pd.DataFrame([ROW]))
    with serving(project, "--workers", "1") as served:
        client = Client(served.port)
        answer, text = client.score(ROW).json, client.score(ROW, accept="text/csv").body.decode()
        client.close()
    if make is number:
        assert answer["predictions"] == [{"prediction": float(scores[0])}]
        assert text == f"{float(scores[0])!r}\n"
    else:
        assert answer["predictions"] == [{"prediction": int(scores[0].argmax()), "probability": float(scores.max())}]
        assert text == ",".join(repr(float(one)) for one in scores[0]) + "\n"


def test_the_page_shows_the_version_and_loads_nothing_from_elsewhere(client: Client) -> None:
    answer = client.ask("GET", "/")
    page = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for shown in (
        "tiny/1",
        "20261122-101630-0000",
        "looked &amp; liked",
        "Who &lt;leaves&gt;",
        "evaluate.auc",
        "südost",
        "Says ‘left yes’ from 40 %.",
    ):
        assert shown in page.encode().decode("unicode_escape", "ignore") or shown in page, shown
    assert "[[" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")


def test_the_description_is_openapi(client: Client) -> None:
    with without("rfc3987_syntax"):
        from openapi_spec_validator import validate

    described = client.ask("GET", "/openapi.json").json
    validate(described)
    assert described["components"]["schemas"]["Record"]["required"] == ["minutes", "calls", "plan", "roaming"]
    sample = described["paths"]["/invocations"]["post"]["requestBody"]["content"]
    for kind in sample:
        example = sample[kind]["example"]
        answer = client.score(example.encode() if isinstance(example, str) else example, kind)
        assert answer.status == 200, (kind, answer.body)


def test_metrics_count_what_was_answered(client: Client) -> None:
    def read() -> dict[str, float]:
        text = client.ask("GET", "/metrics").body.decode()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = read()
    client.score([ROW] * 3)
    client.score([{}])
    after = read()
    ok, bad = (f'runner_requests_total{{path="/invocations",status="{code}"}}' for code in (200, 400))
    assert after[ok] - before.get(ok, 0) == 1
    assert after[bad] - before.get(bad, 0) == 1
    assert after["runner_rows_total"] - before["runner_rows_total"] == 3
    assert after["runner_request_seconds_count"] - before["runner_request_seconds_count"] == 2
    assert after['runner_request_seconds_bucket{le="+Inf"}'] == after["runner_request_seconds_count"]
    assert after["runner_connections"] >= 1
    assert any(name.startswith('runner_model_info{name="tiny",version="1",run="2026') for name in after)


def test_the_log_has_version_and_time_and_nothing_of_the_customer(served: Served, client: Client) -> None:
    seen = len(served.log)
    client.ask(
        "POST", "/invocations?name=Erika", json.dumps([{**ROW, "plan": "Mustermann"}]).encode(), content_type=JSON
    )
    client.ask("GET", "/customers/Erika")
    for path, status in (("/invocations", 400), ("other", 404)):
        line = served.wait_for_line(seen, path, status)
        assert set(line) == {"at", "method", "path", "status", "ms", "rows", "model", "worker"}
        assert line["model"] == "tiny/1"
        assert line["ms"] > 0
    assert "Erika" not in "".join(served.lines)
    assert "Mustermann" not in "".join(served.lines)


def test_the_guide_names_every_refusal_path_and_content_type() -> None:
    guide = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    missing = [status for status in REFUSALS if not re.search(rf"^\| {status}\b", guide, re.MULTILINE)]
    missing += [path for path in KNOWN if f" {path}`" not in guide]
    missing += [kind for kind in CONTENT_TYPES if f"`{kind}`" not in guide]
    assert missing == []


# Who may


def test_only_approved_versions_are_served(project: Project) -> None:
    folder = approved(project, approve=False)
    registry = LocalRegistry(project.folder / "runs/registry.db")
    for model in ("tiny", "tiny/1"):
        done = project.runner("serve", model, "--port", "0")
        assert (done.code, "approved" in done.err) == (8, True), done.err
    registry.decide("tiny", 1, "rejected", who="ben", why="no")
    done = project.runner("serve", "tiny/1", "--port", "0")
    assert (done.code, "tiny/1 is rejected" in done.err) == (8, True)
    assert project.runner("serve", "tiny/7").code == 2
    assert project.runner("serve", "tyni").code == 2
    assert project.runner("serve", "tiny/x").code == 2
    assert folder.exists()


@pytest.mark.parametrize("name", ["model.ubj", "signature.json"])
@pytest.mark.parametrize("change", ["byte", "gone", "more", "folder"])
def test_altered_bytes_are_not_served(house: Project, tmp_path: Path, name: str, change: str) -> None:
    project = Project(Path(shutil.copytree(house.folder, tmp_path / "project")))
    folder = next(project.folder.glob("runs/2*/steps/train/out/model"))
    content = (folder / name).read_bytes()
    if change == "byte":
        (folder / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif change == "gone":
        (folder / name).unlink()
    elif change == "more":
        (folder / "more.txt").write_text("x")
    else:
        shutil.rmtree(folder)
    done = project.runner("serve", "tiny", "--port", "0")
    assert (done.code, "altered or damaged" in done.err) == (8, True), done.err
    assert "http://" not in done.err


def test_a_model_that_fails_its_self_test_is_never_ready(project: Project) -> None:
    def lying(folder: Path) -> Path:
        saved(folder)
        path = folder / "signature.json"
        signature = json.loads(path.read_text())
        path.write_text(json.dumps({**signature, "sample_prediction": 0.123}))
        return folder

    approved(project, lying)
    done = project.runner("serve", "tiny", "--port", "0")
    assert (done.code, "cannot score its own sample record" in done.err) == (8, True), done.err


@pytest.mark.soak
def test_beyond_loopback_a_token_is_needed_and_asked_for(house: Project) -> None:
    done = house.runner("serve", "tiny", "--host", "0.0.0.0", "--port", "0")
    assert (done.code, "RUNNER_TOKEN" in done.err) == (2, True)
    with serving(house, "--host", "0.0.0.0", "--workers", "1", RUNNER_TOKEN="s3cret") as served:
        client = Client(served.port)
        assert client.ask("GET", "/ping").status == 200
        for given_ in ("", "Bearer wrong", "Basic !", "Basic " + base64.b64encode(b"x:wrong").decode()):
            for method, path in (("POST", "/invocations"), ("GET", "/"), ("GET", "/metrics"), ("GET", "/openapi.json")):
                answer = client.ask(method, path, b"{}" if method == "POST" else None, authorization=given_)
                assert answer.status == 401
                assert answer.headers["www-authenticate"].startswith("Basic")
        basic = "Basic " + base64.b64encode(b"anyone:s3cret").decode()
        assert client.score(ROW, authorization="Bearer s3cret").status == 200
        assert client.ask("GET", "/", authorization=basic).status == 200
        client.close()
        assert "s3cret" not in "".join(served.lines)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_page_of_another_name_does_not_reach_a_server_without_a_token(client: Client, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/openapi.json"), ("POST", "/invocations"), ("GET", "/ping")):
        answer = client.ask(method, path, json.dumps([ROW]).encode(), host=host, content_type=JSON)
        assert (answer.status, "prediction" in answer.body.decode()) == (421, False), (method, path)


def test_a_server_is_asked_by_each_name_of_its_machine(served: Served, client: Client) -> None:
    for host in (
        "localhost",
        "LOCALHOST:9000",
        "localhost.",
        "a.localhost",
        "127.0.0.1",
        "[::1]:80",
        "10.0.0.7:80",
        "box",
    ):
        assert client.score(ROW, host=host).status == 200, host
    with connected(served) as connection:
        connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
        assert receive(connection).startswith(b"HTTP/1.1 200")


def test_a_port_that_is_taken_is_said(served: Served, house: Project) -> None:
    done = house.runner("serve", "tiny", "--port", str(served.port))
    assert (done.code, "--port" in done.err) == (2, True)


# Rude, slow and many clients


def receive(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=15) as connection:
        yield connection


def test_large_bodies_that_arrive_together_are_bounded(served: Served, client: Client) -> None:
    size = 256 * 1024  # the largest
    head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: %d\r\n\r\n"
    lines = (b"1,2,gold,1\n" * size)[:size]
    large = lines[: size // 11 * 11]
    with ExitStack() as held:
        slow = [held.enter_context(connected(served)) for _ in range(17)]
        for connection in slow:
            connection.sendall(head % size + lines[:-1])
        ready = select.select(slow, [], [], 5)[0]  # the one that there was no room for
        assert len(ready) == 1
        answer = ready[0].recv(65536)  # and no more: after 2 s all the others are refused
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        assert client.score(large, CSV).status == 503
        assert client.score(ROW).status == 200  # a small one has room
    until = time.monotonic() + 5
    while (answered := client.score(large, CSV)).status == 503 and time.monotonic() < until:
        time.sleep(0.02)
    assert answered.status == 200, answered.body


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused_before_it_is_read(served: Served, chunked: bool) -> None:
    before = _memory(served)
    with connected(served) as connection:
        how = b"transfer-encoding: chunked" if chunked else b"content-length: 100000000000"
        connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\n" + how + b"\r\n\r\n")
        block = b"1,2,gold,1\n" * 5000
        sent = 0
        connection.settimeout(0.01)
        answer = b""
        while sent < 100_000_000 and not answer:
            try:
                connection.sendall(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
            except TimeoutError:
                pass
            except OSError:
                break
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
        connection.settimeout(5)
        while answer and b"MB" not in answer:  # head and body are sent one after the other
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 0.25 MB" in answer
    assert sent < 20_000_000
    assert _memory(served) - before < 20_000_000


def _memory(served: Served) -> int:
    text = Path(f"/proc/{served.process.pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def test_a_body_just_small_enough_is_scored_and_one_more_byte_is_not(client: Client) -> None:
    most = int(0.25 * 2**20)
    row = b"1,2,gold,1\n"
    body = (row * (most // len(row))).ljust(most, b"\n")
    assert client.score(body, CSV).status == 200
    assert client.score(body + b"\n", CSV).status == 413


@pytest.mark.soak
@pytest.mark.parametrize("sent", some([b"", b"POST /invoca", b"POST /invocations HTTP/1.1\r\nhost: x\r\nx: "], [b""]))
def test_a_client_that_does_not_finish_its_headers_is_left(served: Served, sent: bytes) -> None:
    with connected(served) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        receive(connection)
        assert 1 < time.monotonic() - began < 5


def drip(connection: socket.socket, part: bytes, every_s: float) -> float:
    """Send the part again and again till the connection is closed; the seconds that took, at most 10."""
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - began < 10:
            connection.sendall(part)
            time.sleep(every_s)
    return time.monotonic() - began


@pytest.mark.soak
def test_a_client_that_drips_its_headers_is_left(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\n")
        assert drip(connection, b"x: y\r\n", 0.05) < 6


def test_endless_headers_are_cut(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\n")
        assert drip(connection, b"x: " + b"y" * 60_000 + b"\r\n", 0.01) < 1.5


CHUNKED = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ntransfer-encoding: chunked\r\n\r\n"
BLOCK = b"x" * 4096
ENDLESS = {  # what begins, and what is sent after it for ever
    "trailers": (CHUNKED + b"b\r\n1,2,gold,1\n\r\n0\r\n", b"x: " + BLOCK + b"\r\n"),
    "small trailers": (CHUNKED + b"b\r\n1,2,gold,1\n\r\n0\r\n", b"x:\r\n" * 1000),
    "one trailer": (CHUNKED + b"b\r\n1,2,gold,1\n\r\n0\r\nx: ", BLOCK),
    "a chunk's extension": (CHUNKED + b"b;x=", BLOCK),
    "one header": (b"GET /ping HTTP/1.1\r\nx: ", BLOCK),
    "small headers": (b"GET /ping HTTP/1.1\r\n", b"x:\r\n" * 100),
    "an address": (b"GET /", BLOCK),
    "blank lines": (b"", b"\r\n" * 2048),
    "headers behind a large request": (
        CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (220_000, b"1,2,gold,1\n" * 20_000) + b"GET /ping HTTP/1.1\r\nx: ",
        BLOCK,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_is_not_a_body_and_has_no_end_is_cut(served: Served, client: Client, what: str) -> None:
    before, (begin, more), sent = _memory(served), ENDLESS[what], 0
    with ExitStack() as held:
        for connection in [held.enter_context(connected(served)) for _ in range(4)]:
            with suppress(OSError):
                connection.sendall(begin)
                while sent < 200_000_000:
                    connection.sendall(more * 16)
                    sent += len(more) * 16
        assert sent < 50_000_000  # most of it in the kernel's buffers
        assert _memory(served) - before < 20_000_000
        assert client.score(ROW).status == 200


def test_headers_may_have_64_kib_however_they_arrive(served: Served) -> None:
    begin, end = b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", b"\r\n\r\n"
    for size, pieces, answered in ((60_000, 1, True), (70_000, 1, False), (60_000, 9, True), (70_000, 9, False)):
        sent = begin + b"x: " + b"y" * (size - len(begin) - 3) + end
        step = len(sent) // pieces + 1
        with connected(served) as connection:
            for at in range(0, len(sent), step):
                with suppress(OSError):
                    connection.sendall(sent[at : at + step])
                time.sleep(0.01)
            assert receive(connection).startswith(b"HTTP/1.1 200") == answered, (size, pieces)
    with connected(served) as connection:
        connection.sendall(begin + b"x: y\r\n" * 300 + b"\r\n")
        assert receive(connection) == b""


def test_what_follows_a_body_is_not_among_its_headers(served: Served) -> None:
    said = b"b\r\n1,2,gold,1\n\r\n0\r\ncontent-type: text/html\r\naccept: image/png\r\nhost: evil.example\r\n\r\n"
    with connected(served) as connection:
        connection.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + said)
        assert receive(connection).startswith(b"HTTP/1.1 200")


def test_a_body_in_very_small_chunks_is_scored(served: Served) -> None:
    row = b"1,2,gold,1\n"
    body = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in row * 2000)
    with connected(served) as connection:
        connection.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + body + b"0\r\n\r\n")
        answer = receive(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b'prediction"') == 2000


@pytest.mark.soak
def test_a_body_that_stops_is_answered_with_408(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 99\r\n\r\n1,"
        )
        began = time.monotonic()
        answer = receive(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 9


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(served: Served, client: Client) -> None:
    seen = len(served.log)
    with connected(served) as connection:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 99\r\n\r\n1,"
        )
        time.sleep(0.2)
    served.wait_for_line(seen, "/invocations", 499)
    assert client.score(ROW).status == 200


@pytest.mark.soak
def test_more_connections_than_allowed_are_turned_away_and_the_others_answered(house: Project) -> None:
    with serving(house, "--workers", "1", "--max-connections", "8") as served:
        waiting = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(8)]
        time.sleep(0.3)
        with connected(served) as late:
            assert b" 503 " in receive(late).partition(b"\r\n")[0]
        request = b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        for connection in waiting:
            connection.sendall(request)
            assert receive(connection).startswith(b"HTTP/1.1 200")
            connection.close()
        client = Client(served.port)
        assert client.score(ROW).status == 200
        assert b"runner_connections_refused_total 1\n" in client.ask("GET", "/metrics").body
        client.close()


def test_a_hundred_slow_clients_hold_up_nobody(served: Served, client: Client) -> None:
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=15) for _ in range(100)]
    for connection in slow:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 9\r\n\r\n1"
        )
    began = time.monotonic()
    assert all(client.score(ROW).status == 200 for _ in range(20))
    assert time.monotonic() - began < 5
    for connection in slow:
        connection.close()


# Ends


def hammer(port: int, stop: threading.Event, wrong: list[str], counts: list[int]) -> None:
    """Requests one after the other; a connection refused at its beginning is the server being gone."""
    body = json.dumps([ROW]).encode()
    client, answered = Client(port), 0
    while not stop.is_set():
        try:
            answer = client.ask("POST", "/invocations", body, content_type=JSON)
        except ConnectionRefusedError:
            break
        except (http.client.HTTPException, OSError) as error:
            wrong.append(repr(error))
            break
        if answer.status != 200 or len(answer.json["predictions"]) != 1:
            wrong.append(f"{answer.status} {answer.body!r}")
        answered += 1
    client.close()
    counts.append(answered)


@pytest.mark.parametrize("workers", some(["1", "2"], ["2"]))
def test_sigterm_under_load_loses_no_reply(house: Project, workers: str) -> None:
    with serving(house, "--workers", workers) as served:
        stop, wrong, counts = threading.Event(), list[str](), list[int]()
        threads = [threading.Thread(target=hammer, args=(served.port, stop, wrong, counts)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        began = time.monotonic()
        code = served.end()
        assert time.monotonic() - began < 30
        stop.set()
        for thread in threads:
            thread.join(20)
        assert code == 0
        assert not wrong
        assert sum(counts) > 50


@pytest.mark.soak
def test_a_request_under_way_is_answered_after_sigterm(house: Project) -> None:
    with serving(house, "--workers", "1") as served, connected(served) as connection:
        body = json.dumps(ROW).encode()
        head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body[:10])
        time.sleep(0.2)
        served.process.terminate()
        time.sleep(2)
        connection.sendall(body[10:])
        answer = receive(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert served.process.wait(20) == 0


def test_ctrl_c_ends_it_as_well(house: Project) -> None:
    with serving(house, "--workers", "2") as served:
        assert served.end(signal.SIGINT) == 0
        assert "Traceback" not in "".join(served.lines)


@pytest.mark.soak
def test_a_worker_that_dies_is_replaced_and_none_outlives_the_supervisor(house: Project) -> None:
    def workers() -> list[int]:
        listed = subprocess.run(
            [program("pgrep"), "-P", str(served.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(line) for line in listed.stdout.split()]

    with serving(house, "--workers", "2") as served:
        until = time.monotonic() + 10
        while len(workers()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        first = workers()
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        while (len(workers()) < 2 or first[0] in workers()) and time.monotonic() < until:
            time.sleep(0.05)
        second = workers()
        assert len(set(first) & set(second)) == 1
        client = Client(served.port)
        assert client.score(ROW).status == 200
        client.close()
        served.process.kill()
        served.process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in second) and time.monotonic() < until:
            time.sleep(0.05)
        assert not [pid for pid in second if Path(f"/proc/{pid}").exists()]


class AsNobody(Project):
    """Commands run as a user who has a limit on processes, which root has not, and may read what root may."""

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.who, *command(*arguments)], cwd=self.folder, env=environment(env), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def who(self) -> tuple[str, ...]:
        reading = ("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override")
        return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading) if os.getuid() == 0 else ()

    def may_have(self, processes: int, pid: int) -> None:
        """Set the process's own limit; 0 is as many as at first."""
        code = f"from resource import *; _, n = prlimit({pid}, RLIMIT_NPROC); prlimit({pid}, RLIMIT_NPROC, ({processes} or n, n))"
        subprocess.run([*self.who, sys.executable, "-c", code], check=True)


@pytest.mark.soak
def test_a_worker_that_cannot_be_started_is_tried_until_it_can(house: Project) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root has no limit on processes, and there is no setpriv to be somebody else")
    house.folder.chmod(0o755)
    (house.folder / "pipeline.toml").chmod(0o644)
    project = AsNobody(house.folder)
    with serving(project, "--workers", "2") as served:
        boss = served.process.pid
        wait_until(lambda: len(list(children_of(boss))) == 2)
        project.may_have(1, boss)
        first, second = children_of(boss)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "cannot be started: Resource temporarily unavailable" in "".join(served.lines))
        client = Client(served.port)
        assert client.score(ROW).status == 200
        client.close()
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: not list(children_of(boss)))
        project.may_have(0, boss)
        wait_until(lambda: len(list(children_of(boss))) == 2)
        assert client.score(ROW).status == 200
        client.close()
        assert served.end() == 0


def wait_until(held: Callable[[], bool], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not held():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.soak
def test_it_is_ready_soon_and_small(house: Project) -> None:
    began = time.monotonic()
    with serving(house, "--workers", "1") as served:
        client = Client(served.port)
        assert client.ask("GET", "/ping").status == 200
        seconds = time.monotonic() - began
        assert all(client.score([ROW] * 100).status == 200 for _ in range(50))
        assert _memory(served) < 220e6
        client.close()
    assert seconds < 10  # alone on a machine 3; several tests share this one


# Anything at all

kinds = st.sampled_from([JSON, CSV, "application/jsonlines", "text/csv; header=present", "text/csv;header=absent"])
fields_ = st.sampled_from(
    ["1", "", "nan", "gold", "657", '"', '""', "minutes", "plan", "calls", "roaming", "é", "\0", "1e39"]
)
tables = st.lists(st.lists(fields_ | st.text(max_size=5), max_size=6).map(",".join), max_size=6).map("\n".join)
trees = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(ROW)) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
# text, as json.dumps would not go as deep: up to the interpreter's depth and beyond, and past the digits that int() takes
deep = st.builds(
    lambda depth, around: around[0] * depth + around[1] * depth,
    st.integers(1, 40) | st.integers(960, 990) | st.integers(850, 1100),  # json gives up at some 977, repr 4 before
    st.sampled_from([("[", "]"), ('{"plan":', "}"), ('[{"minutes":', "}]")]),
).map(lambda text: text.replace(":}", ":1}"))
long = st.builds(
    lambda count, around: around.replace("#", "7" * count),
    st.integers(30, 400) | st.integers(4250, 6000),
    st.sampled_from(["#", "-#.5", "#e-#", "0.#", '"#"', '"#.0"', '"0.#x"', '"#e9"', '"1e#"']),
)
large = st.builds(
    lambda name, value, around: around.replace("#", json.dumps({**ROW, name: "#"}).replace('"#"', value)).encode(),
    st.sampled_from([*ROW, "more"]),
    deep | long,
    st.sampled_from(["#", "[#]", '{"instances": [#]}', "#\n#"]),
)
bodies = (
    st.binary(max_size=200)
    | (deep | long).map(str.encode)
    | long.map(lambda value: f"1,{value},gold,1\n{value},2,{value},{value}\n".encode())
    | tables.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | trees.map(lambda tree: json.dumps(tree).encode())
    | st.lists(mixed, max_size=4).map(lambda rows: json.dumps({"instances": rows}).encode())
)


@dataclass(frozen=True)
class Asked:
    """A request, and the records in it where it is a sound one."""

    body: bytes
    kind: str
    accept: str = JSON
    rows: list[dict[str, Any]] | None = None


def as_csv(rows: list[dict[str, Any]], header: bool) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows(([list(ROW)] if header else []) + [[row[name] for name in ROW] for row in rows])
    return file.getvalue().encode()


sound = st.lists(whole, min_size=1, max_size=6)
asked = (
    st.builds(Asked, bodies, kinds | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12), st.sampled_from([JSON, CSV, "*/*", "text/html"]))
    | st.builds(Asked, large, st.sampled_from([JSON, "application/jsonlines"]))
    | sound.map(lambda rows: Asked(json.dumps(rows).encode(), JSON, rows=rows))
    | sound.map(lambda rows: Asked(json.dumps({"instances": [[row[n] for n in ROW] for row in rows]}).encode(), JSON, rows=rows))
    | sound.map(lambda rows: Asked("\n".join(map(json.dumps, rows)).encode(), "application/jsonlines", rows=rows))
    | sound.map(lambda rows: Asked(as_csv(rows, True), CSV, rows=rows))
    | sound.map(lambda rows: Asked(as_csv(rows, False), "text/csv; header=absent", rows=rows))
)  # fmt: skip


def check(client: Client, model: runner.model.Model, one: Asked) -> None:
    """Never a fault of the server's; a sound request has the scores of the model folder, to the bit."""
    answer = client.score(one.body, one.kind.strip(), accept=one.accept)
    assert answer.status in ALLOWED, (answer.status, answer.body)
    if answer.status != 200:
        assert answer.json["error"]
    if one.rows is not None:
        expected = _expected(model, one)
        assert answer.status == 200, answer.body
        found = [row["probability"] for row in answer.json["predictions"]]
        assert np.array(found, dtype="float32").tobytes() == expected.tobytes()


def _expected(model: runner.model.Model, one: Asked) -> np.ndarray:
    assert one.rows is not None
    rows: Any = one.rows
    if one.kind.startswith(CSV):
        rows = [["" if row[name] is None else str(row[name]) for name in ROW] for row in one.rows]
    return model.predict(pd.DataFrame(rows, columns=list(ROW)))


@pytest.mark.soak
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=asked)
def test_no_request_is_a_fault_or_scored_wrong(client: Client, model: runner.model.Model, one: Asked) -> None:
    check(client, model, one)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=asked)
def test_ten_thousand_requests_have_no_fault_and_no_wrong_score(
    client: Client, model: runner.model.Model, one: Asked
) -> None:
    check(client, model, one)


@pytest.mark.soak
def test_an_hour_of_requests_does_not_grow_the_server(served: Served, client: Client) -> None:
    """In short: the memory after 2,000 requests and after 20,000 is the same."""
    body = records(100).to_csv(index=False).encode()
    for _ in range(2_000):
        assert client.score(body, CSV).status == 200
    before = _memory(served)
    for _ in range(18_000):
        client.score(body, CSV)
    assert _memory(served) - before < 8_000_000


def test_the_plans_of_these_tests_are_the_models(model: runner.model.Model) -> None:
    assert sorted(PLANS) == model.signature.columns[2].categories
    assert list(good) == list(ROW) == [column.name for column in model.signature.columns]
    with pytest.raises(RunnerError):
        model.predict(pd.DataFrame([{**ROW, "plan": "iron"}]))
