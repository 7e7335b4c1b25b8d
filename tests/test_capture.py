"""What was asked and answered, kept for monitoring: whole, in one form, bounded, and never at a request's cost."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.disk import BLOCK, small_disk  # noqa: F401  # a fixture
from support.models import good, mixed, records, saved, several, trained
from support.places import TOML, Place
from support.projects import Project, children_of
from support.served import CSV, JSON, ROW, Client, approved, serving

import runner.model
import runner.project
from runner.errors import PipelineError, UsageError
from runner.model.captured import Captured, LocalFile, local_files, read_line, windows
from runner.model.captured_envelopes import Envelopes
from runner.model.captured_tables import captured_columns, to_parquet
from runner.model.registry import LocalRegistry
from runner.model.signature import Column, Signature
from runner.pipeline.file import load
from runner.records import Capture, utc_text
from runner.scoring.fast_reading import quick
from runner.scoring.inference import BadInput, Scorer
from runner.serve.capture import Exchange, RequestCapture
from runner.serve.capture_files import CaptureWriter
from runner.serve.capture_settings import CaptureSettings

TARGETS = """
[targets.whole]
kind = "local"
capture = {}
[targets.chosen]
kind = "local"
capture = { hash = ["calls", "phone"], leave_out = ["plan"], keep = ["customer", "phone"], to = "elsewhere" }
[targets.none]
kind = "local"
"""
LINES = "application/jsonlines"


def scorer_of(folder: Path, **options: Any) -> Scorer:
    made = Scorer({file.name: file.read_bytes() for file in folder.iterdir()}, model="tiny/1", **options)
    made.quick = quick(made)
    return made


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return scorer_of(saved(tmp_path_factory.mktemp("model") / "model"))


@dataclass
class Kept:
    """Captures in this process, as a worker does."""

    scorer: Scorer
    folder: Path
    spec: Capture = field(default_factory=Capture)

    def __post_init__(self) -> None:
        target = CaptureSettings(spec=self.spec, folder=str(self.folder / "captured"), key=str(self.folder / "key"))
        self.capture = RequestCapture(self.scorer, target)

    def ask(self, body: Any, kind: str = JSON, id: str = "") -> Any:
        """Scores the body and captures that; the scores."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        exchange = Exchange(200, 0, id or self.capture.id_of({}), None, content, kind)
        exchange.table = self.scorer.table(content, kind)
        exchange.scores = self.scorer.score(exchange.table)
        self.capture.write(exchange, 0.002)
        return exchange.scores.tolist()

    def refuse(self, error: BadInput) -> None:
        self.capture.write(Exchange(error.status, 0, self.capture.id_of({}), error), 0.001)

    @property
    def read(self) -> list[Captured]:
        self.capture.close()
        return list(windows(local_files(self.folder / "captured")))

    @property
    def text(self) -> str:
        self.capture.close()
        return "".join(Path(file.path).read_text() for file in local_files(self.folder / "captured"))


def whole_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in local_files(folder) for line in file.lines()]


# Over HTTP


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("capture"))
    approved(project)
    file = project.folder / "pipeline.toml"
    file.write_text(file.read_text() + TARGETS)
    return project


def project_of(house: Project) -> runner.project.Project:
    return runner.project.Project(house.folder / "pipeline.toml")


def metrics(client: Client) -> dict[str, float]:
    lines = client.ask("GET", "/metrics").body.decode().splitlines()
    return {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines if one[:1] != "#")}


def test_what_is_asked_in_any_form_is_kept_with_its_answer_in_one(house: Project) -> None:
    bodies: list[tuple[str, bytes]] = [
        (JSON, json.dumps(ROW).encode()),
        (JSON, json.dumps({"instances": [ROW, {**ROW, "plan": None, "secret": "Erika"}]}).encode()),
        (JSON, json.dumps([list(ROW.values())]).encode()),
        (LINES, f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n".encode()),
        (CSV, b"roaming,plan,minutes,calls,secret\n1,gold,180.5,3,Erika\n"),
        (CSV, b"180.5,3,gold,1\r\n,3,gold,0\r\n"),
    ]
    answers = []
    began = utc_text()
    with serving(house, "--workers", "1", "--capture", "whole") as served:
        client = Client(served.port)
        for kind, body in bodies:
            answers.append(client.score(body, kind, accept="text/csv", x_request_id=f"mine-{len(answers)}"))
        refused = client.score([{**ROW, "plan": "iron"}])
        too_odd = client.score([ROW], accept="image/png")
        assert client.ask("GET", "/ping").status == 200
        found = metrics(client)
        assert (found["runner_capture_dropped_total"], found["runner_capture_stopped"]) == (0, 0)
        client.close()
        assert served.end() == 0
    captured = list(project_of(house).captured("whole", since=began))
    assert [file.path for file in local_files(house.folder / "runs/captured/whole") if ".part" in file.path] == []
    assert [one.id for one in captured[:6]] == [f"mine-{at}" for at in range(6)]
    assert [answer.headers["x-request-id"] for answer in answers] == [one.id for one in captured[:6]]
    for answer, one in zip(answers, captured, strict=False):
        assert (one.version, one.status, one.columns) == ("tiny/1", 200, tuple(ROW))
        assert [float(line) for line in answer.body.splitlines()] == one.scores
        assert len(one.rows) == len(one.scores)
        assert one.seconds is not None
        assert 0 < one.seconds < 5
        assert began <= one.time <= utc_text()
    assert captured[0].records == [ROW]
    assert captured[1].rows[1] == [180.5, 3, None, True]
    assert captured[4].rows == [["180.5", "3", "gold", "1"]]
    assert captured[5].rows[1] == ["", "3", "gold", "0"]
    assert [(one.status, one.error) for one in captured[6:]] == [
        (refused.status, refused.json["error"]),
        (too_odd.status, too_odd.json["error"]),
    ]
    assert (refused.status, too_odd.status) == (400, 406)
    assert "Erika" not in "".join(map(str, captured))
    folder = house.folder / "runs/captured/whole"
    modes = {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*.jsonl")}
    assert modes == {"0o600"}


@pytest.mark.soak
def test_a_server_without_capture_says_no_id_and_keeps_nothing(house: Project) -> None:
    before = whole_lines(house.folder / "runs/captured/none")
    with serving(house, "--workers", "1") as served:
        client = Client(served.port)
        assert "x-request-id" not in client.score(ROW).headers
        client.close()
    assert before == whole_lines(house.folder / "runs/captured/none") == []
    done = house.runner("serve", "tiny", "--port", "0", "--capture", "none")
    assert (done.code, "[targets.none] keeps no requests" in done.err) == (2, True)
    done = house.runner("serve", "tiny", "--port", "0", "--capture", "hole")
    assert (done.code, "did you mean `whole`" in done.err) == (2, True)


@pytest.mark.soak
def test_a_worker_that_is_killed_loses_at_most_the_last_second(house: Project) -> None:
    """Two workers, so that one lives on; the killed one's file is closed by the next that begins one."""
    answered: dict[str, float] = {}
    folder = house.folder / "runs/captured/whole"

    def ask(port: int, until: float) -> None:
        while time.monotonic() < until:
            client = Client(port)
            try:
                reply = client.score(ROW)
                answered[reply.headers["x-request-id"]] = time.time()
            except (OSError, http.client.HTTPException):
                pass  # the killed one was to answer
            finally:
                client.close()

    with serving(house, "--workers", "2", "--capture", "whole") as served:
        threads = [threading.Thread(target=ask, args=(served.port, time.monotonic() + 3.5)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(2.5)
        killed = time.time()
        for worker in list(children_of(served.process.pid))[:1]:
            os.kill(worker, signal.SIGKILL)
        for thread in threads:
            thread.join()
        kept = {line["id"] for line in whole_lines(folder)}
        assert served.end() == 0
    assert len(answered) > 20
    early = {one for one, at in answered.items() if at < killed - 1}
    assert early
    assert early <= kept | {line["id"] for line in whole_lines(folder)}
    lost = set(answered) - {line["id"] for line in whole_lines(folder)}
    assert all(killed - 1 <= answered[one] <= killed + 0.2 for one in lost)


@pytest.mark.soak
def test_a_full_disk_stops_capture_says_so_and_fails_no_request(
    house: Project,
    small_disk: Path,  # noqa: F811
) -> None:
    file = house.folder / "pipeline.toml"
    before = file.read_text()
    try:
        file.write_text(before + f'[targets.small]\nkind = "local"\ncapture = {{ to = "{small_disk}/captured" }}\n')
        with serving(house, "--workers", "1", "--capture", "small") as served:
            client = Client(served.port)
            assert client.score(ROW, x_request_id="first").status == 200
            wait_for(lambda: metrics(client)["runner_captured_total"] == 1)
            filler = small_disk / "filler"
            fill(filler)
            body = [{**ROW, "calls": at} for at in range(200)]
            wait_for(lambda: client.score(body).status == 200 and metrics(client)["runner_capture_stopped"] == 1)
            dropped = metrics(client)["runner_capture_dropped_total"]
            assert [client.score(ROW).status for _ in range(20)] == [200] * 20
            assert metrics(client)["runner_capture_dropped_total"] == dropped + 20
            filler.unlink()
            wait_for(lambda: metrics(client)["runner_capture_stopped"] == 0)
            assert client.score(ROW, x_request_id="last").status == 200
            client.close()
            assert served.end() == 0
            sentences = [line["capture"] for line in served.log if "capture" in line]
        assert ["stops: No space left" in sentences[0], "goes on" in sentences[-1]] == [True, True]
        captured = list(windows(local_files(small_disk / "captured")))
        assert (captured[0].id, captured[-1].id) == ("first", "last")
        assert all(line.endswith("}") for file in small_disk.rglob("*.jsonl") for line in file.read_text().splitlines())
    finally:
        file.write_text(before)


def fill(file: Path) -> None:
    """To the last block of its disk."""
    for size in (65536, BLOCK):
        with file.open("ab", buffering=0) as full, suppress(OSError):
            while full.write(b"x" * size) == size:
                pass


def wait_for(holds: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_file_that_is_scored_is_kept_where_the_targets_requests_are(house: Project, tmp_path: Path) -> None:
    frame = records(2500).assign(customer=[f"c{at}" for at in range(2500)])
    source = tmp_path / "in.parquet"
    frame.to_parquet(source, index=False)
    done = house.runner("predict", "tiny", str(source), "-o", str(tmp_path / "out.csv"), "--capture", "chosen")
    assert done.code == 0, done.err
    captured = list(project_of(house).captured("chosen"))
    assert [len(one.rows) for one in captured] == [1000, 1000, 500]
    assert captured[0].columns == ("minutes", "calls", "roaming", "customer", "phone")
    assert [row[3] for one in captured for row in one.rows] == frame["customer"].tolist()
    scores = [score for one in captured for score in one.scores]
    assert scores == pd.read_csv(tmp_path / "out.csv")["probability"].tolist()
    csv_rows = house.runner("predict", "tiny", str(tmp_path / "out.csv"), "--capture", "none")
    assert (csv_rows.code, "keeps no requests" in csv_rows.err) == (2, True)


def test_a_local_target_keeps_what_it_is_asked_while_versions_change(place: Place) -> None:
    ports = place.ports.values()
    place.toml(TOML.format(*ports).replace("workers = 1", 'workers = 1\ncapture = { hash = ["calls"] }'))
    for version in (1, 2):
        done = place.deploy(version)
        assert done.code == 0, done.err
        assert place.scored() == f"tiny/{version}"
    assert place.runner("undeploy", "staging").code == 0
    captured = list(runner.project.Project(place.folder / "pipeline.toml").captured("staging"))
    assert [(one.version, len(one.rows), one.status) for one in captured] == [("tiny/1", 1, 200), ("tiny/2", 1, 200)]
    (calls,) = {one.records[0]["calls"] for one in captured}
    assert re.fullmatch("[0-9a-f]{32}", calls)
    folder = place.folder / "runs"
    assert [file.suffix for file in (folder / "captured/staging").glob("*/*")] == [".jsonl", ".jsonl"]
    assert (folder / "capture.key").stat().st_size == 32
    assert place.state()["start"] is None


# What a line has


def test_hidden_columns_are_gone_before_anything_is_written(scorer: Scorer, tmp_path: Path) -> None:
    spec = Capture(hash=["calls", "phone"], leave_out=["plan"], keep=["customer", "phone", "minutes"])
    kept = Kept(scorer, tmp_path, spec)
    more = {"customer": "c-17", "phone": "0170-1234567", "name": "Erika", "deep": {"a": 1}}
    kept.ask([{**ROW, **more}, {**ROW, "calls": None, "customer": {"a": 1}}])
    kept.ask(b"phone,minutes,calls,plan,roaming\n0170-1234567,1,3.0,basic,1\n", CSV)
    kept.ask(b"1,3,basic,1\n2,,basic,1\n", CSV)
    kept.ask(b'{"minutes":1,"calls":3,"plan":"gold","roaming":true,"customer":5}\n', LINES)
    kept.refuse(BadInput("Row 1, column plan: 'Mustermann' is not a known category.", 1, "plan"))
    kept.refuse(BadInput("Row 1, column minutes: 'x' is not a number.", 1, "minutes"))
    kept.refuse(BadInput("The model's features.py has no features of these records: KeyError('Mustermann')."))
    kept.refuse(BadInput("The body is larger than 6 MB.", status=413))
    captured = kept.read
    assert {one.columns for one in captured[:4]} == {("minutes", "calls", "roaming", "customer", "phone")}
    (first, second), (third,), fourth, (fifth,) = (one.rows for one in captured[:4])
    assert first[0] == 180.5
    assert re.fullmatch("[0-9a-f]{32}", first[1])
    assert first[2:4] == [True, "c-17"]
    assert second[1:] == [None, True, None, None]
    assert third[1] == first[1] == fifth[1]  # 3, 3.0 and "3" are one
    assert third[4] == first[4]
    assert [row[1] is None for row in fourth] == [False, True]
    assert [row[3:] for row in fourth] == [[None, None]] * 2
    assert fifth[3] == 5
    errors = [one.error for one in captured[4:]]
    assert errors[0].startswith("Column plan. The sentence is not kept")
    assert "column minutes: 'x'" in errors[1]
    assert "6 MB" in errors[3]
    for secret in ("0170", "Erika", "Mustermann", "gold", "basic"):
        assert secret not in kept.text
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    again, other = Kept(scorer, tmp_path, spec), Kept(scorer, tmp_path / "other", spec)
    assert again.capture.hashed(3) == first[1]
    assert other.capture.hashed(3) != first[1]


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [[1, 2], [3, 4]], "name": "Erika"}',
        '{"instances": [[1, 2], [3, 4]], "names": [["Erika"]]}',
        '{"instances": [[7, 7], [8, 8]], "instances": [[1, 2], [3, 4]]}',
        '{ "instances" : [ [1,\n 2],\r\n [3, 4] ] } \n',
        " [ [1,\n2], [3, 4]]\n",
        "1,2\n3,4\n",
        "1,2\n3,4",
    ],
)
def test_a_body_of_numbers_is_kept_as_it_stands_and_nothing_else_of_it(tmp_path: Path, body: str) -> None:
    raw = records()[["minutes", "calls"]]
    runner.model.save(tmp_path / "model", trained(raw), raw, target="left", positive="yes")
    kept = Kept(scorer_of(tmp_path / "model"), tmp_path)
    kind = CSV if body[0] == "1" else JSON
    scores = kept.ask(body.encode(), kind)
    (one,) = kept.read
    assert ([list(row) for row in one.rows], one.scores) == ([[1, 2], [3, 4]], scores)
    assert ("Erika" in kept.text, "7" in str(one.rows)) == (False, False)


whole_rows = st.lists(st.fixed_dictionaries(good) | mixed, min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=whole_rows)
def test_whatever_is_scored_is_read_back_as_it_was_sent(scorer: Scorer, tmp_path: Path, drawn: Any) -> None:
    kept = Kept(scorer, tmp_path)
    try:
        content = json.dumps(drawn).encode()
        exchange = Exchange(200, 0, "x", None, content, JSON)
        exchange.table = scorer.table(content, JSON)
        exchange.scores = scorer.score(exchange.table)
    except BadInput:
        return
    line = kept.capture._line(exchange, 0.1, kept.capture._rows(exchange))
    one = read_line(line)
    expected = [[record.get(name) for name in ROW] for record in json.loads(content)]
    assert json.dumps([list(row) for row in one.rows]) == json.dumps(expected)
    assert one.scores == exchange.scores.tolist()


def test_the_sample_is_decided_by_the_requests_id_alone(scorer: Scorer, tmp_path: Path) -> None:
    tenth, again = (Kept(scorer, tmp_path, Capture(percent=10)).capture for _ in range(2))
    ids = [tenth.id_of({}) for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    chosen = [one for one in ids if tenth.wants(one)]
    assert chosen == [one for one in ids if again.wants(one)]
    assert 0.09 < len(chosen) / len(ids) < 0.11
    assert not any(map(Kept(scorer, tmp_path, Capture(percent=0)).capture.wants, ids))
    assert tenth.id_of({b"x-request-id": b"mine"}) == "mine"
    for odd in (b"", b"x" * 129, b"\x1b[0m", "ü".encode()):
        assert tenth.id_of({b"x-request-id": odd}).startswith(ids[0].partition("-")[0])


# The files


def line_at(moment: str, size: int = 100) -> bytes:
    head = f'{{"time":"{moment}","version":"tiny/1","id":"{moment}","status":400,"seconds":0.1,"error":"'
    return head.encode() + b"x" * (size - len(head) - 3) + b'"}\n'


def test_each_hour_has_files_of_its_own_and_a_window_reads_only_those(tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path, days=4000, max_bytes=2**30)
    now = datetime.now(UTC).replace(minute=30)
    moments = [utc_text(now - timedelta(hours=hours)) for hours in (5, 5, 4, 3, 0)]
    for moment in moments:
        writer.offer(line_at(moment))
    writer.flush()
    parts = [file.path for file in local_files(tmp_path) if file.path.endswith(".part")]
    assert len(parts) == 1
    assert [one.time for one in windows(local_files(tmp_path))] == moments
    writer.close()
    files = local_files(tmp_path)
    assert len(files) == 4
    assert not [file.path for file in files if file.path.endswith(".part")]
    assert [one.time for one in windows(files, since=moments[2], until=moments[4])] == moments[2:4]
    for file in files[:1]:
        Path(file.path).write_text("this is not read\n")
    assert [one.time for one in windows(files, since=moments[3][:16] + "+00:00")] == moments[3:]
    with pytest.raises(UsageError, match="'yesterday' is not a time"):
        list(windows(files, since="yesterday"))


def test_files_are_bounded_in_bytes_and_days_and_the_oldest_go_first(tmp_path: Path) -> None:
    old = tmp_path / "2020-01-01" / "12-1x1-1.jsonl"
    old.parent.mkdir()
    old.write_bytes(line_at("2020-01-01T12:00:00.000Z"))
    writer = CaptureWriter(tmp_path, days=30, max_bytes=2**20)
    now = datetime.now(UTC)
    for at in range(3000):
        writer.offer(line_at(utc_text(now + timedelta(milliseconds=at)), 1000))
        if at % 50 == 0:
            writer.flush()
            assert sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl*")) <= 2**20
    writer.close()
    assert not old.parent.exists()
    times = [one.time for one in windows(local_files(tmp_path))]
    assert times == [utc_text(now + timedelta(milliseconds=at)) for at in range(3000 - len(times), 3000)]
    assert 700 < len(times) < 1049
    assert (writer.written, writer.dropped) == (3000, 0)
    writer.offer(line_at(utc_text(now), 600_000))  # half of all that may be there
    assert writer.dropped == 1


def test_a_full_queue_drops_and_counts_and_waits_for_nobody(tmp_path: Path) -> None:
    told: list[tuple[int, int, bool]] = []
    writer = CaptureWriter(tmp_path, days=1, max_bytes=2**30, on_change=lambda *one: told.append(one))
    line = line_at(utc_text(), 2**20)
    for _ in range(40):
        writer.offer(line)
    assert writer.dropped == 8
    assert not writer.reserve(2**20)
    writer.flush()
    assert (writer.written, writer.dropped, writer.has_room(2**25)) == (32, 9, True)
    assert writer.reserve(2**25)
    assert not writer.has_room(1)
    writer.release(2**25)
    writer.close()
    assert [sum(part) for part in zip(*told, strict=True)][:2] == [32, 10]


def test_what_a_dead_process_left_is_read_to_its_last_whole_line_and_closed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from runner.serve.capture_files import CaptureWriter\n"
        "writer = CaptureWriter(Path(sys.argv[1]), days=9, max_bytes=2**30)\n"
        "writer.offer(sys.argv[2].encode() + b'\\n'); writer.flush(); os.write(writer._descriptor, b'{\"time\":')\n"
        "os.kill(os.getpid(), 9)"
    )
    first = line_at(utc_text()).decode().strip()
    subprocess.run([sys.executable, "-c", code, str(tmp_path), first], check=False)
    (part,) = local_files(tmp_path)
    assert part.path.endswith(".part")
    assert [line.decode() for line in part.lines()] == [first]
    living = CaptureWriter(tmp_path, days=9, max_bytes=2**30)
    living.offer(line_at(utc_text()))
    living.flush()
    other = CaptureWriter(tmp_path, days=9, max_bytes=2**30)
    other.offer(line_at(utc_text()))
    other.flush()
    names = sorted(Path(file.path).name for file in local_files(tmp_path))
    assert [name.endswith(".part") for name in names].count(True) == 2  # those that live
    assert Path(part.path.removesuffix(".part")).read_text() == first + "\n"
    assert [line.decode() for line in part.lines()] == [first]  # though it was closed in the meantime
    living.close()
    other.close()


# Reading


@pytest.fixture(scope="module")
def deployed(house: Project) -> Envelopes:
    """Of a target whose history says that tiny/1 has served since 2026-11-25."""
    registry = LocalRegistry(house.folder / "runs/registry.db")
    data = {"target": "cloud", "deployment": "d1", "since": "2026-11-25T00:00:00.000Z", "place": "arn", "number": 1}
    registry.record("tiny", 1, "deployed", who="ana", why="", data=data)
    return Envelopes(registry, "cloud", project_of(house).version_folder)


def envelope(
    body: str, kind: str, answer: str | None, answer_kind: str = CSV, *, hidden: bool = False, **event: str
) -> bytes:
    def part(mode: str, data: str, kind: str) -> dict[str, str]:
        encoding = "BASE64" if hidden else "CSV" if kind.startswith(CSV) else "JSON"
        content = base64.b64encode(data.encode()).decode() if hidden else data
        return {"observedContentType": kind, "mode": mode, "data": content, "encoding": encoding}

    held = {"endpointInput": part("INPUT", body, kind)}
    if answer is not None:
        held["endpointOutput"] = part("OUTPUT", answer, answer_kind)
    facts = {"eventId": "e-1", "inferenceTime": "2026-11-29T12:00:00Z", **event}
    return json.dumps({"captureData": held, "eventMetadata": facts, "eventVersion": "0"}).encode()


@pytest.mark.parametrize("hidden", [False, True])
def test_sagemakers_envelopes_are_read_in_the_same_form(scorer: Scorer, deployed: Envelopes, hidden: bool) -> None:
    rows = [[180.5, 3, "gold", True], [None, 4, "südost", False]]
    named = [dict(zip(ROW, row, strict=True)) for row in rows]
    scores = scorer.score(rows).tolist()
    answer = "".join(f"{one!r}\n" for one in scores)
    predictions = [{"prediction": True, "probability": one} for one in scores]
    text = "minutes,calls,plan,roaming\n180.5,3,gold,true\n,4,südost,false\n"
    forms = [
        (text, CSV, answer, "text/csv; charset=utf-8"),
        (text.partition("\n")[2], CSV, answer, CSV),
        (json.dumps(named), JSON, json.dumps({"predictions": predictions, "model": "tiny/1"}), JSON),
        (json.dumps({"instances": rows}), JSON, "\n".join(map(json.dumps, predictions)), LINES),
        ("\n".join(map(json.dumps, named)), LINES, answer, CSV),
    ]
    for body, kind, answered, answer_kind in forms:
        one = read_line(envelope(body, kind, answered, answer_kind, hidden=hidden), deployed)
        assert (one.time, one.version, one.id) == ("2026-11-29T12:00:00.000Z", "tiny/1", "e-1")
        assert (one.status, one.seconds, one.columns, one.scores) == (200, None, tuple(ROW), scores)
        texts = kind == CSV
        assert [row[2] for row in one.rows] == ["gold", "südost"]
        assert one.rows[1][0] == ("" if texts else None)


def test_failed_and_damaged_envelopes_are_what_they_are(
    deployed: Envelopes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good_one = "180.5,3,gold,1"
    refusal = json.dumps({"error": "Row 1, column plan: 'iron' is not known.", "row": 1, "column": "plan"})
    lines = [
        envelope("180.5,3,gold", CSV, None),
        envelope("180.5,3,iron,1", CSV, refusal, JSON, eventId="e-2"),
        envelope(good_one, CSV, None, eventId="e-3"),
        envelope(good_one, CSV, "0.5\n0.5\n"),
        envelope(good_one, CSV, "0.5", inferenceTime="yesterday"),
        b'{"captureData": {}}',
        b'{"captureData": {"endpointInput": 3}, "eventMetadata": []}',
        b'{"time": "2026-11-29T12:00:00.000Z"}',
        b'{"time":"2026-11-29T12:00:00Z","version":"a/1","id":"x","status":200,"rows":[[1]],"columns":["a"],"scores":[]}',
        b"\xff\xfe",
        b"[" * 100_000,
        envelope(good_one, CSV, "0.25", eventId="e-4", inferenceId="asked"),
    ]
    file = tmp_path / "ENDPOINT/all/2026/11/29/12/00-00-1-a.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\n".join(lines) + b"\n")
    captured = list(windows([LocalFile(str(file))], envelopes=deployed))
    assert [(one.id, one.status, len(one.rows)) for one in captured] == [
        ("e-1", 400, 0),
        ("e-2", 400, 0),
        ("e-3", 500, 0),
        ("asked", 200, 1),
    ]
    assert "3 fields" in captured[0].error
    assert captured[1].error == "Row 1, column plan: 'iron' is not known."
    assert captured[3].scores == [0.25]
    assert "8 lines cannot be read" in caplog.text
    assert list(windows([LocalFile(str(file))], until="2026-11-29T08:00Z", envelopes=deployed)) == []


def test_records_by_name_are_read_too() -> None:
    line = {
        "time": "2026-11-29T12:00:00.123Z", "version": "churn/3", "id": "a", "status": 200, "seconds": 0.0031,
        "records": [{"plan": "gold", "minutes": 1.5}, {"plan": None}], "scores": [0.12, 0.4], "later": 1,
    }  # fmt: skip
    one = read_line(json.dumps(line).encode())
    assert (one.columns, [*map(list, one.rows)]) == (("plan", "minutes"), [["gold", 1.5], [None, None]])


def test_a_notebook_gets_tables_with_the_models_types(scorer: Scorer, tmp_path: Path) -> None:
    spec = Capture(hash=["calls"], keep=["customer"])
    kept = Kept(scorer_of(saved(tmp_path / "model"), unknown="missing"), tmp_path, spec)
    kept.ask([{**ROW, "plan": 657.0, "customer": 17}, {**ROW, "plan": "iron", "minutes": None, "roaming": None}])
    kept.ask(b"12.5,3, 657 ,0\n,,,\n", CSV)
    kept.refuse(BadInput("no", 1, "minutes"))
    signature = msgspec.json.decode((tmp_path / "model/signature.json").read_bytes(), type=Signature)
    columns = captured_columns(signature, spec)
    assert [(one.name, one.kind) for one in columns] == [
        ("minutes", "number"), ("calls", "text"), ("plan", "category"), ("roaming", "boolean"), ("customer", "text"),
    ]  # fmt: skip
    assert to_parquet(kept.read, tmp_path, columns) == (3, 4)
    table = pq.read_table(tmp_path / "records.parquet")
    assert [str(kind) for kind in table.schema.types] == [
        "timestamp[ms, tz=UTC]", "string", "string", "int32", "double", "string", "string", "bool", "string", "double",
    ]  # fmt: skip
    read = table.to_pydict()
    assert read["minutes"] == [180.5, None, 12.5, None]
    assert read["plan"] == ["657", "iron", "657", None]
    assert read["roaming"] == [True, None, False, None]
    assert read["customer"] == ["17", None, None, None]
    assert read["row"] == [0, 1, 0, 1]
    assert read["calls"][:3] == [kept.capture.hashed(3)] * 3
    requests = pq.read_table(tmp_path / "requests.parquet").to_pydict()
    assert (requests["status"], requests["rows"]) == ([200, 200, 400], [2, 2, 0])
    assert requests["error"][2] == "no"


def test_several_classes_have_a_score_each_and_no_requests_make_empty_tables(tmp_path: Path) -> None:
    kept = Kept(scorer_of(several(tmp_path / "model")), tmp_path)
    scores = kept.ask([ROW, ROW])
    columns = [Column(name="minutes", kind="number")]
    assert to_parquet(kept.read, tmp_path, columns, labels=["low", "mid", "high"]) == (1, 2)
    read = pq.read_table(tmp_path / "records.parquet").to_pydict()
    assert [[read[f"score_{name}"][row] for name in ("low", "mid", "high")] for row in range(2)] == scores
    assert to_parquet([], tmp_path, columns) == (0, 0)
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.schema.names == ["time", "version", "id", "row", "minutes", "score"]
    assert table.num_rows == 0
    with pytest.raises(UsageError, match="'score'"):
        to_parquet([], tmp_path, [Column(name="score", kind="number")])


READING = """
import resource, sys
from pathlib import Path
from runner.model.captured import local_files, windows
from runner.model.captured_tables import to_parquet
from runner.model.signature import Column
columns = [Column(name=f"n{at}", kind="number") for at in range(15)]
columns += [Column(name=f"c{at}", kind="category", categories=["basic", "gold"]) for at in range(5)]
folder = Path(sys.argv[1])
print(*to_parquet(windows(local_files(folder)), folder, columns), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.soak
def test_ten_million_captured_rows_become_tables_in_two_gib(tmp_path: Path) -> None:
    rows = int(os.environ.get("CAPTURED_ROWS", "10000000"))
    names = [*(f"n{at}" for at in range(15)), *(f"c{at}" for at in range(5))]
    row = [*(round(1.25 * at, 2) for at in range(15)), *["gold", "basic"] * 2, "iron"]
    one = {"version": "tiny/1", "id": "x-1", "status": 200, "seconds": 0.003, "columns": names}
    now = datetime.now(UTC).replace(minute=1)
    for hour in range(10):
        time_of = utc_text(now - timedelta(hours=hour))
        file = tmp_path / time_of[:10] / f"{time_of[11:13]}-1x1-00001.jsonl"
        file.parent.mkdir(exist_ok=True)
        single = json.dumps({"time": time_of, **one, "rows": [row], "scores": [0.25]}) + "\n"
        many = json.dumps({"time": time_of, **one, "rows": [row] * 500, "scores": [0.25] * 500}) + "\n"
        with file.open("w") as written:
            for _ in range(rows // 10 // 1000):
                written.write(single * 500 + many)
    done = subprocess.run([sys.executable, "-c", READING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    requests, records, peak_kib = map(int, done.stdout.split())
    assert (requests, records) == (rows // 1000 * 501, rows)
    assert peak_kib < 2 * 2**20


# pipeline.toml


@pytest.mark.parametrize(
    ("capture", "sentence"),
    [
        ("percent = 101", "targets.here.capture.percent is 101; it is 0 to 100."),
        ('percent = "all"', "percent: Expected `int`"),
        ("day = 3", "unknown field `day`"),
        ("days = 0", "targets.here.capture.days is 0; it is 1 or more."),
        ("max_mb = -1", "max_mb is -1"),
        ('to = "s3://b/c"', "a local target writes to a folder."),
        ('hash = ["a"]\nleave_out = ["a"]', "'a' stands in leave_out and in hash"),
        ('keep = ["a"]\nleave_out = ["a"]', "'a' stands in leave_out and in keep"),
        ('hash = "phone"', "hash: Expected `array`"),
    ],
)
def test_a_capture_that_cannot_be_is_a_sentence(tmp_path: Path, capture: str, sentence: str) -> None:
    file = tmp_path / "pipeline.toml"
    steps = 'name = "t"\n[steps.train]\nnotebook = "train.ipynb"\n'
    file.write_text(f'{steps}[targets.here]\nkind = "local"\n[targets.here.capture]\n{capture}\n')
    with pytest.raises(PipelineError, match=re.escape(sentence)):
        load(file)


@pytest.mark.parametrize("key", ["days = 3", "max_mb = 3", 'hash = ["a"]', 'leave_out = ["a"]', 'keep = ["a"]'])
def test_an_endpoint_takes_no_key_that_only_a_process_here_can_follow(tmp_path: Path, key: str) -> None:
    file = tmp_path / "pipeline.toml"
    steps = 'name = "t"\n[steps.train]\nnotebook = "train.ipynb"\n'
    file.write_text(f'{steps}[targets.there]\nkind = "sagemaker"\ncapture = {{ {key} }}\n')
    with pytest.raises(
        PipelineError, match=f"capture.{key.split()[0]}: an endpoint's requests are captured by SageMaker"
    ):
        load(file)
    file.write_text(f'{steps}[targets.there]\nkind = "sagemaker"\ncapture = {{ to = "there" }}\n')
    with pytest.raises(PipelineError, match="an endpoint writes to S3"):
        load(file)


def test_a_serverless_endpoint_takes_no_capture(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.toml"
    there = '[targets.there]\nkind = "sagemaker"\nserverless = {}\n'
    file.write_text(f'name = "t"\n[steps.train]\nnotebook = "train.ipynb"\n{there}capture = {{}}\n')
    with pytest.raises(
        PipelineError, match=r"targets\.there\.capture: SageMaker captures nothing at a serverless endpoint"
    ):
        load(file)
