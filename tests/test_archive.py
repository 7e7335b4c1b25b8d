"""A run that comes in a file: anybody's, until all of it was looked at; and decisions that were made elsewhere."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.archives import MANIFEST, PACK, Archive, bomb, changed, header, places
from support.commands import Done, environment
from support.disk import BLOCK
from support.passed import TOML, passed, write_notebooks
from support.projects import Project, parameters

from runner.audit.archive import FAILPOINTS
from runner.cli import entry
from runner.failpoint import VARIABLE
from runner.model.events import chained
from runner.model.versions import Event

OUTSIDE = "outside"  # a folder beside every project here, with a file that nobody may touch


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one run that passed, version 1 pending."""
    return passed(tmp_path_factory.mktemp("origin"))


@pytest.fixture(scope="module")
def packed(origin: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """thing/1 of the origin, pending there."""
    path = tmp_path_factory.mktemp("packed") / "thing.tar.gz"
    assert origin.runner("pack", "thing/1", "-o", str(path)).code == 0
    return path


@pytest.fixture
def laptop(tmp_path: Path) -> Project:
    """An empty folder, beside one with something to lose."""
    (tmp_path / OUTSIDE).mkdir()
    (tmp_path / OUTSIDE / "victim").write_text("mine")
    project = Project(tmp_path / "laptop")
    project.folder.mkdir()
    return project


def said(project: Project, *arguments: str) -> Done:
    """As `project.runner`, in this process, which has everything imported already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(project.folder):
        code = entry(arguments)
    return Done(code, out.getvalue(), err.getvalue())


def taken_in(project: Project, file: Path) -> Done:
    return said(project, "import", str(file), "--json")


def nothing_kept(project: Project) -> bool:
    """No file came into the project, and none beside it was touched."""
    kept = [path for path in project.folder.rglob("*") if path.is_file() and path != project.folder / "runs" / "lock"]
    outside = project.folder.parent / OUTSIDE
    beside = {path.name: path.read_text() for path in outside.iterdir()} if outside.exists() else {"victim": "mine"}
    return not kept and beside == {"victim": "mine"}


def is_refused(done: Done, project: Project) -> bool:
    """One sentence, a code that says so, and nothing kept."""
    assert "Traceback" not in done.err, done.err
    assert len(done.err.splitlines()) == 2, done.err  # the kind of error, and what it was
    return done.code in (2, 8) and nothing_kept(project)


# Names that lead out


def hostile(laptop: Project) -> list[str]:
    victim = laptop.folder.parent / OUTSIDE / "victim"
    ways = [str(victim), f"../../../../../{OUTSIDE}/victim", "..", f"out/../../../../../../{OUTSIDE}/victim"]
    return [*ways, "..\\..\\victim", "C:\\victim", "\\victim", "a\0b", "a\nb", "", "\x1b]0;title\x07"]


NAMED = [  # what in run.json is a path or a part of one
    ("run",), ("pipeline_file",), ("steps", 0, "name"), ("steps", 0, "job", "step"),
    ("steps", 0, "job", "outputs", "table"),
    ("steps", 1, "result", "executed", "path"), ("steps", 0, "result", "outputs", "table", "path"),
    ("steps", 1, "result", "outputs", "model", "path"), ("steps", 0, "result", "outputs", "table", "sha256"),
    ("steps", 1, "job", "inputs", "table", "value"), ("steps", 1, "job", "inputs", "table", "artifact", "path"),
    ("pipeline", "steps", "make", "outputs", "table"),
]  # fmt: skip
KEYED = [  # tables whose keys are
    ("sources",), ("steps", 1, "result", "outputs", "model", "files"), ("steps", 0, "snapshot"),
    ("steps", 1, "job", "inputs"), ("pipeline", "steps"),
]  # fmt: skip


@pytest.mark.soak
def test_a_manifest_that_names_places_elsewhere_is_refused_and_writes_nowhere(packed: Path, laptop: Project) -> None:
    """Every path and name, in run.json and in the records beside it, with every hash as it has to be."""
    good = Archive.read(packed)
    manifest = json.loads(good.content(MANIFEST))
    for place in (*NAMED, *KEYED):
        for value in hostile(laptop):

            def change(was: Any, value: str = value) -> Any:
                return value if isinstance(was, str) else dict(zip([value], was.values(), strict=False))

            archive = Archive(list(good.members))
            archive.put(MANIFEST, json.dumps(changed(manifest, place, change)).encode())
            file = archive.same_everywhere().listed().write(laptop.folder.parent / "bad.tar.gz")
            done = taken_in(laptop, file)
            assert is_refused(done, laptop), (place, value, done)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_pipes_devices_and_folders_have_no_place_in_an_archive(
    packed: Path, laptop: Project, kind: bytes
) -> None:
    for name in ("run/pipeline.toml", "objects/" + "0" * 64, "run/link"):
        archive = Archive.read(packed)
        archive.put(name, b"")
        archive.kinds[name] = kind
        assert is_refused(taken_in(laptop, archive.listed().write(laptop.folder.parent / "bad.tar.gz")), laptop)


UNLISTED: dict[str, Callable[[Archive], None]] = {
    "a page with a script": lambda a: a.put("run/report.html", b"<script>alert(1)</script>"),
    "a page of a step": lambda a: a.put("run/steps/make/executed.html", b"<script>alert(1)</script>"),
    "a module": lambda a: a.put("run/steps/make/modules/statistics.py", b"print('executed')"),
    "a lock": lambda a: a.put("run/lock", b"process 1 on elsewhere"),
    "an owner": lambda a: a.put("run/owned-elsewhere", b"nobody"),
    "an output that nobody made": lambda a: a.put("run/steps/make/out/more.csv", b"x"),
    "an object that nothing needs": lambda a: a.put("objects/" + hashlib.sha256(b"x").hexdigest(), b"x"),
    "a folder elsewhere": lambda a: a.put("../outside/more", b"x"),
    "a member of no kind": lambda a: a.put("more", b"x"),
    "a member twice": lambda a: a.members.append(a.members[-1]),
    "a record that is missing": lambda a: a.members.pop(2),
    "an object that is missing": lambda a: a.members.pop(),
    "the records after the objects": lambda a: a.members.sort(key=lambda member: (member[0] != PACK, member[0])),
}


@pytest.mark.parametrize("what", UNLISTED)
def test_what_the_manifest_does_not_tell_of_is_refused_listed_or_not(packed: Path, laptop: Project, what: str) -> None:
    for finish in (lambda archive: archive, Archive.listed):
        archive = Archive.read(packed)
        UNLISTED[what](archive)
        done = taken_in(laptop, finish(archive).write(laptop.folder.parent / "bad.tar.gz"))
        assert is_refused(done, laptop), (what, done)
        assert (
            what != "a page with a script" or "'run/report.html' has to be" in done.err or finish is not Archive.listed
        )


def test_an_archive_of_an_earlier_version_is_refused_with_what_to_do(packed: Path, laptop: Project) -> None:
    archive = Archive.read(packed)
    with archive.json(PACK) as pack:
        pack.pop("files", None)
    done = taken_in(laptop, archive.write(laptop.folder.parent / "old.tar.gz"))
    assert is_refused(done, laptop)
    assert "Pack the run again" in done.err


def test_a_hundred_thousand_empty_members_are_refused_at_the_first(packed: Path, laptop: Project) -> None:
    with gzip.open(packed) as file:
        whole = file.read().rstrip(b"\0")
    whole += bytes(-len(whole) % 512) + header("run/steps/make/modules/m.py", 0) * 100_000 + bytes(1024)
    (laptop.folder.parent / "bad.tar.gz").write_bytes(gzip.compress(whole, 1))
    assert is_refused(taken_in(laptop, laptop.folder.parent / "bad.tar.gz"), laptop)


@pytest.mark.parametrize("name", [PACK, MANIFEST, "run/steps/make/job.json"])
def test_records_of_a_newer_version_are_refused_and_say_so(packed: Path, laptop: Project, name: str) -> None:
    for more in ({}, {"unheard_of": 1}):
        archive = Archive.read(packed)
        with archive.json(name) as record:
            record.update({"format": 99, **more})
        done = taken_in(laptop, archive.listed().write(laptop.folder.parent / "bad.tar.gz"))
        assert is_refused(done, laptop)
        assert "format 99" in done.err


def climbing(archive: Archive) -> None:
    archive.rename("run/pipeline.toml", "run/../../../climbed.toml")


def altering(archive: Archive) -> None:
    name, content = archive.members[-1]
    archive.put(name, bytes([content[0] ^ 1]) + content[1:])


def lying(archive: Archive) -> None:
    for name, content in list(archive.members):
        archive.put(name, content.replace(b'"value": 0.75', b'"value": 0.99') if name.endswith(".json") else content)


def of_another_folder(archive: Archive) -> None:
    """A folder's hash that is not the one of its files, in every record."""
    for name, content in list(archive.members):
        if name.endswith(".json"):
            archive.put(name, content.replace(_model(archive).encode(), b"0" * 64))


def at_one_place(archive: Archive) -> None:
    with archive.json(MANIFEST) as manifest:
        manifest["steps"][0]["snapshot"]["modules/helper.py/inner.py"] = "0" * 64


def of_another_step(archive: Archive) -> None:
    with archive.json(MANIFEST) as manifest:
        manifest["steps"][1]["name"] = "make"


def of_another_run(archive: Archive) -> None:
    with archive.json(PACK) as pack:
        pack["run"] = "20200101-000000-0000"


def of_both_thresholds(archive: Archive) -> None:
    with archive.json(MANIFEST) as manifest:
        manifest["pipeline"]["gate"][0]["max"] = 1e308


def _model(archive: Archive) -> str:
    made: str = json.loads(archive.content(MANIFEST))["steps"][1]["result"]["outputs"]["model"]["sha256"]
    return made


@pytest.mark.parametrize(
    "change",
    [climbing, altering, lying, of_another_folder, at_one_place, of_another_step, of_another_run, of_both_thresholds],
)
def test_an_archive_that_contradicts_itself_is_refused(
    packed: Path, laptop: Project, change: Callable[[Archive], None]
) -> None:
    for finish in (lambda archive: archive, Archive.listed):
        archive = Archive.read(packed)
        change(archive)
        assert is_refused(taken_in(laptop, finish(archive).write(laptop.folder.parent / "bad.tar.gz")), laptop)


def test_a_file_that_cannot_be_read_or_is_something_else_is_said_in_a_sentence(packed: Path, laptop: Project) -> None:
    whole = packed.read_bytes()
    file = laptop.folder.parent / "bad.tar.gz"
    for content in (b"", b"no archive", whole[:-9], whole[: len(whole) // 2], whole + b"more", b"\x1f\x8b", bytes(512)):
        file.write_bytes(content)
        assert is_refused(taken_in(laptop, file), laptop), content[:20]
    assert taken_in(laptop, laptop.folder).code == 2
    file.chmod(0)
    if os.geteuid():
        assert "Permission denied" in taken_in(laptop, file).err


# What unpacks to gigabytes

LIMITED = """
import contextlib, io, json, resource, sys
from runner.cli import entry
import runner.project, runner.audit.archive
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 400_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for file in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = entry(["import", file])
    print(json.dumps([file, code, err.getvalue()]))
"""


def with_little_memory(project: Project, *files: Path) -> dict[str, Done]:
    """`runner import` of each file, in a process that may take 400 MB on top of what the program itself takes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, files)],
        cwd=project.folder, env=environment(), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(file).name: Done(code, "", err) for file, code, err in lines}


def member(name: str, content: bytes) -> bytes:
    return header(name, len(content)) + content + bytes(-len(content) % 512)


def bombs(packed: Path, folder: Path) -> Iterator[Path]:
    good = Archive.read(packed)
    first, large = member(PACK, good.content(PACK)), 3 << 30
    yield bomb(folder / "name", first, header("././@LongLink", large, tarfile.GNUTYPE_LONGNAME), mebibytes=3072)
    yield bomb(folder / "link", first, header("././@LongLink", large, tarfile.GNUTYPE_LONGLINK), mebibytes=3072)
    yield bomb(folder / "pax", first, header("x", large, tarfile.XHDTYPE), mebibytes=3072, of=b"1")
    yield bomb(folder / "global", header("g", large, tarfile.XGLTYPE), mebibytes=3072, of=b"1")
    yield bomb(folder / "sparse", first, header("s", 0, tarfile.GNUTYPE_SPARSE), mebibytes=3072, of=b"\1")
    chain = header("x", 12, tarfile.XHDTYPE) + b"12 a=bcdefg\n" + bytes(500)
    yield bomb(folder / "chain", first, chain * 200_000, mebibytes=1)
    yield bomb(folder / "pack", header(PACK, 2 << 30), b'{"run": "', mebibytes=2048, of=b"a")
    yield bomb(folder / "deep", header(PACK, 16 << 20), mebibytes=20, of=b"[")
    lists = b'{"run": "r", "events": [{"seq": 1, "data": {"a": [' + b"[]," * 6_000_000 + b"[]]}}]}"
    yield bomb(folder / "lists", member(PACK, lists), mebibytes=1)
    yield bomb(folder / "after", gzip.decompress(packed.read_bytes()), mebibytes=3072)
    with good.json(PACK) as said_so:
        said_so["files"]["run/pipeline.toml"]["size_bytes"] = 2 << 30
    first = member(PACK, good.content(PACK))
    yield bomb(folder / "record", first, header("run/pipeline.toml", 2 << 30), mebibytes=2048, of=b"#")


@pytest.mark.soak
def test_files_that_unpack_to_gigabytes_are_refused_in_little_memory(packed: Path, laptop: Project) -> None:
    files = list(bombs(packed, laptop.folder.parent))
    assert all(file.stat().st_size < 5_000_000 for file in files)
    for name, done in with_little_memory(laptop, *files).items():
        assert is_refused(done, laptop), (name, done)


def test_an_archive_that_bursts_is_refused_before_it_fills_the_disk(packed: Path, laptop: Project) -> None:
    """Its own list says how large it will be; of what is not listed, only so much is read."""
    archive = Archive.read(packed)
    archive.put("run/pipeline.toml", b"#" * 150_000_000)
    for made in (archive, archive.listed()):
        done = taken_in(laptop, made.write(laptop.folder.parent / "bad.tar.gz"))
        assert is_refused(done, laptop)
        assert list((laptop.folder / "runs").glob(".import-*")) == []


# Decisions made elsewhere


def forged(packed: Path, file: Path, *, who: str = "chief@office") -> Path:
    """The pack with the project's own chain, gone on with by a self-made approval."""
    archive = Archive.read(packed)
    with archive.json(PACK) as pack:
        last = msgspec.convert(pack["events"][-1], Event)
        event = Event(
            seq=last.seq + 1, name="thing", version=1, kind="approved", who=who, at="2026-01-02T03:04:05.000Z",
            why="trust me", data={}, previous=last.hash, hash="",
        )  # fmt: skip
        event = chained(event)
        pack["events"].append(msgspec.to_builtins(event))
        pack["versions"][0].update(status="approved", decided_by=who, reason="trust me")
    with archive.json(MANIFEST) as manifest:
        manifest["model_version"]["status"] = "approved"
    return archive.listed().write(file)


SAID = "approved in trust by chief@office on 2026-01-02 (imported, not checked)"
TARGET = '[targets.here]\nkind = "local"\nport = 18431\n'


def test_an_approval_that_comes_in_an_archive_approves_nothing_here_and_is_shown_as_what_it_is(
    packed: Path, laptop: Project
) -> None:
    done = said(laptop, "import", str(forged(packed, laptop.folder.parent / "forged.tar.gz")))
    assert done.code == 0, done.err
    assert f"model thing/1 pending; {SAID}" in done.out
    assert 'runner approve thing/1 --reason "…"' in done.err
    laptop.toml((laptop.folder / "pipeline.toml").read_text() + TARGET)
    (laptop.folder / "in.csv").write_text("a\n1\n2\n")
    for arguments in (
        ("predict", "thing", "in.csv"),
        ("predict", "thing/1", "in.csv"),
        ("serve", "thing"),
        ("serve", "thing/1"),
        ("deploy", "thing/1", "--to", "here"),
        ("deploy", "thing/1", "--to", "here", "--dry-run"),
        ("rest", "thing"),
    ):
        refused = said(laptop, *arguments)
        assert (refused.code, "pending" in refused.err or "No version" in refused.err) == (8, True), (
            arguments,
            refused,
        )
    (version,) = said(laptop, "models", "--json").json
    assert (version["status"], version["decided_by"], version["claim"]) == ("pending", None, SAID)
    assert SAID in said(laptop, "models").out
    assert SAID in said(laptop, "history", "thing").out
    assert [event["kind"] for event in said(laptop, "history", "thing", "--json").json] == ["registered"]
    then = said(laptop, "history", "thing", "--at", "2099-01-01T00:00Z", "--json").json
    assert then["approved"] is None
    shown = said(laptop, "show", "thing/1")
    assert ("imported by" in shown.out, "approved" in shown.out.replace("approved in", "")) == (True, False), shown.out
    assert said(laptop, "verify", "--all").code == 0
    assert laptop.runner("reproduce", "thing/1").code == 0
    assert said(laptop, "approve", "thing/1", "--reason", "looked at here").code == 0
    (version,) = said(laptop, "models", "--json").json
    assert (version["status"], version["reason"]) == ("approved", "looked at here")
    again = taken_in(laptop, packed)
    assert (again.code, again.json["versions"]) == (0, ["thing/1"])
    assert said(laptop, "models", "--json").json == [version]


def test_the_project_s_own_chain_gone_on_with_elsewhere_changes_nothing_in_it(
    origin: Project, packed: Path, tmp_path: Path
) -> None:
    subprocess.run(["cp", "-a", str(origin.folder), str(tmp_path / "project")], check=True)
    project = Project(tmp_path / "project")
    before = project.runner("history", "thing", "--json").json
    done = taken_in(project, forged(packed, tmp_path / "forged.tar.gz"))
    assert (done.code, done.json["versions"]) == (0, ["thing/1"]), done.err
    assert project.runner("history", "thing", "--json").json == before
    assert project.runner("models", "--json").json[0]["status"] == "pending"


def test_a_history_that_is_not_whole_or_not_the_run_s_is_refused(packed: Path, laptop: Project) -> None:
    def altered(pack: Any) -> None:
        pack["events"][0]["who"] = "somebody"

    def of_another_run(pack: Any) -> None:
        event = msgspec.convert(pack["events"][0], Event)
        changed = msgspec.structs.replace(event, data={**event.data, "run": "20200101-000000-0000"})
        pack["events"] = [msgspec.to_builtins(chained(changed))]

    def of_another_model(pack: Any) -> None:
        event = msgspec.convert(pack["events"][0], Event)
        changed = msgspec.structs.replace(event, data={**event.data, "sha256": "0" * 64})
        pack["events"] = [msgspec.to_builtins(chained(changed))]

    for change in (altered, of_another_run, of_another_model):
        archive = Archive.read(packed)
        with archive.json(PACK) as pack:
            change(pack)
        assert is_refused(taken_in(laptop, archive.write(laptop.folder.parent / "bad.tar.gz")), laptop)


def test_neither_who_took_a_run_in_nor_who_is_said_to_have_started_it_approves_it_where_the_starter_may_not(
    packed: Path, laptop: Project
) -> None:
    laptop.toml(TOML + "[approval]\nnot_starter = true\n")
    archive = Archive.read(packed)
    with archive.json(MANIFEST) as manifest:
        manifest["started_by"], manifest["identity"] = "somebody@else", "arn:aws:iam::123456789012:user/somebody"
    assert taken_in(laptop, archive.listed().write(laptop.folder.parent / "other.tar.gz")).code == 0
    done = laptop.runner("approve", "thing/1", "--reason", "mine")
    assert (done.code, "started the run" in done.err) == (8, True), done.err


def test_a_version_is_numbered_as_the_next_of_its_name_here_and_said_by_its_number_there(
    packed: Path, laptop: Project
) -> None:
    (laptop.folder / "in.csv").write_text("a\n1\n2\n")
    write_notebooks(laptop)
    laptop.toml(TOML)
    assert laptop.runner("run").code == 0
    assert laptop.runner("approve", "thing/1", "--reason", "ours").code == 0
    done = taken_in(laptop, forged(packed, laptop.folder.parent / "forged.tar.gz"))
    assert (done.code, done.json["versions"]) == (0, ["thing/2"]), done.err
    assert done.json["claims"] == [SAID.replace("trust by", "trust as thing/1 by")]
    assert [version["status"] for version in laptop.runner("models", "--json").json] == ["approved", "pending"]
    manifest = json.loads((laptop.folder / "runs" / done.json["run"] / "run.json").read_text())
    assert manifest["model_version"] == {
        **manifest["model_version"],
        "name": "thing",
        "version": 2,
        "status": "pending",
    }
    assert laptop.runner("verify", "--all").code == 0


def test_a_run_without_its_version_is_registered_where_somebody_asks_for_it(
    origin: Project, laptop: Project, tmp_path: Path
) -> None:
    assert origin.runner("pack", "latest", "-o", str(tmp_path / "run.tar.gz")).code == 0
    done = taken_in(laptop, tmp_path / "run.tar.gz")
    assert (done.code, done.json["versions"]) == (0, [])
    assert laptop.runner("models", "--json").json == []
    assert laptop.runner("show", "latest", "--json").json["model_version"] is None
    assert laptop.runner("register", "latest").code == 0
    (version,) = laptop.runner("models", "--json").json
    assert (version["status"], version["claim"]) == ("pending", "its run came from trust (imported, not checked)")


def test_what_ran_elsewhere_is_nobody_s_result_here(packed: Path, laptop: Project) -> None:
    """Not even after the cache was made anew: what came in an archive is never taken for what would be computed."""
    assert taken_in(laptop, packed).code == 0
    (laptop.folder / "in.csv").write_text("a\n1\n2\n")
    write_notebooks(laptop)
    assert laptop.runner("gc", "--keep", "9").code == 0
    planned = laptop.runner("run", "--dry-run", "--json").json
    assert (planned[0]["action"], "cached" in {step["action"] for step in planned}) == ("run", False)


def test_a_source_that_no_step_came_to_read_goes_along(laptop: Project, tmp_path: Path) -> None:
    """A run that failed before the step that reads a kept source is whole all the same."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    (project.folder / "late.csv").write_text("a\n1\n")
    project.write("first.ipynb", parameters('out: str = ""'), "1 / 0")
    project.write("second.ipynb", parameters('out: str = ""\nlate: str = ""'), "pass")
    project.toml(
        'name = "late"\n[steps.first]\nnotebook = "first.ipynb"\noutputs = { out = "o.txt" }\n[steps.second]\n'
        'notebook = "second.ipynb"\ninputs = { out = "first.out", late = { from = "./late.csv", keep = true } }\n'
    )
    assert project.runner("run").code == 3
    assert project.runner("pack", "latest", "-o", str(tmp_path / "late.tar.gz")).code == 0
    done = taken_in(laptop, tmp_path / "late.tar.gz")
    assert done.code == 0, done.err
    assert laptop.runner("verify", "--all").code == 0


# Faults on the way


def is_whole(project: Project, file: Path) -> bool:
    """After whatever happened, importing again brings all of it, once."""
    done = said(project, "import", str(file))
    assert done.code == 0, done.err
    (version,) = said(project, "models", "--json").json
    run = json.loads((project.folder / "runs" / version["run"] / "run.json").read_text())
    assert (version["version"], version["status"], len(project.runs)) == (1, "pending", 1)
    assert run["model_version"]["version"] == 1
    return said(project, "verify", "--all").code == 0


def test_an_import_that_is_killed_anywhere_leaves_all_or_nothing_and_is_repeated(packed: Path, laptop: Project) -> None:
    for name in ("object half stored", *FAILPOINTS):
        done = laptop.runner("import", str(packed), env={VARIABLE: name})
        assert done.code == -signal.SIGKILL, f"{name} was never reached: {done.err}"
        there = name in FAILPOINTS[FAILPOINTS.index("run taken in") :]
        assert (len(laptop.runs) == 1) == there
        assert is_whole(laptop, packed)
        assert said(laptop, "gc", "--keep", "9").code == 0
        assert [path for path in (laptop.folder / "runs").iterdir() if path.name.startswith(".import")] == []
        shutil.rmtree(laptop.folder)
        laptop.folder.mkdir()


def import_with_space_for(blocks: int, project: Project, packed: Path) -> Done:
    filler = project.folder.parent / "filler"
    filler.write_bytes(b"")
    free = os.statvfs(project.folder)
    filler.write_bytes(b"\0" * BLOCK * max(0, free.f_bavail * free.f_frsize // BLOCK - blocks))
    done = project.runner("import", str(packed))
    filler.unlink()
    return done


def fill(small_disk: Path, packed: Path, blocks: int) -> Done:
    project = Project(small_disk / "laptop")
    project.folder.mkdir()
    done = import_with_space_for(blocks, project, packed)
    assert "Traceback" not in done.err, f"with {blocks} blocks left: {done.err}"
    assert done.code in (0, 8)
    for run in project.runs:
        assert said(project, "show", run.name).code in (0, 2)  # 2: there is no pipeline.toml yet
    assert is_whole(project, packed)
    shutil.rmtree(project.folder)
    return done


def test_a_full_disk_leaves_no_run_half_taken_in(packed: Path, small_disk: Path) -> None:
    codes = [fill(small_disk, packed, blocks).code for blocks in (0, 6, 20, 45)]
    assert codes[0] == 8


@pytest.mark.soak
def test_a_disk_that_fills_at_any_write_of_an_import_leaves_no_run_half_taken_in(
    packed: Path,
    small_disk: Path,
) -> None:
    codes = [fill(small_disk, packed, blocks).code for blocks in range(90)]
    assert (codes[0], codes[-1]) == (8, 0)


COLLECT = """
import contextlib, io, sys
from runner.cli import entry
while True:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = entry(["gc", "--keep", "0"])
    print(code, err.getvalue().replace(chr(10), " "), flush=True)
    if code not in (0, 8) or "Traceback" in err.getvalue():
        sys.exit(1)
"""


@pytest.mark.soak
def test_garbage_that_is_collected_meanwhile_takes_nothing_from_imports_and_packs(
    origin: Project, packed: Path, laptop: Project, tmp_path: Path
) -> None:
    assert origin.runner("pack", "latest", "-o", str(tmp_path / "run.tar.gz")).code == 0
    assert taken_in(laptop, packed).code == 0
    kept = laptop.runs[0].name  # its version may still be approved
    other = Archive.read(tmp_path / "run.tar.gz")
    with other.json(MANIFEST) as manifest, other.json(PACK) as pack:
        manifest["run"] = pack["run"] = "20200101-000000-00aa"
        for state in manifest["steps"]:
            state["job"]["run"] = manifest["run"]
    file = other.same_everywhere().listed().write(tmp_path / "other.tar.gz")
    going = subprocess.Popen(
        [sys.executable, "-c", COLLECT], cwd=laptop.folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(25):
            for arguments in (
                ["import", str(file)],
                ["pack", kept, "-o", str(tmp_path / "again.tar.gz")],
                ["resume", kept],
            ):
                done = said(laptop, *arguments)
                assert done.code == 0, (arguments, done.err)
    finally:
        ended = going.poll()
        going.kill()
        told, _ = going.communicate()
    assert ended is None, told
    assert told.count("0 ") > 5
    assert laptop.runner("verify", "--all").code == 0


# Thousands, none of them as it was packed

JUNK: list[Any] = [
    None, True, -1, 0, 10**30, 1e308, "", "..", "/etc/passwd", "../../outside/victim", "a\0b", "x" * 5000, [], {},
    [[[]]], {"a": {"a": {}}}, "\\..\\x", "0" * 64, "steps/make", "registered", "approved",
    "20200101-000000-0000", "\u202egnp",
]  # fmt: skip


def bytes_mutated(content: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(content)), draw.choice([1, 1, 2, 16, 512, 4096])
    match draw.choice(["flip", "cut", "drop", "twice", "add", "junk"]):
        case "flip":
            return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        case "cut":
            return content[:at]
        case "drop":
            return content[:at] + content[at + length :]
        case "twice":
            return content[: at + length] + content[at:]
        case "add":
            return content + draw.randbytes(length)
        case _:
            return content[:at] + draw.randbytes(length) + content[at + length :]


def record_mutated(archive: Archive, draw: random.Random) -> str:
    """The name of the record that says something else now."""
    name = draw.choice(
        [MANIFEST, MANIFEST, MANIFEST, PACK, *(name for name, _ in archive.members if name.endswith(".json"))]
    )
    value = json.loads(archive.content(name))
    for _ in range(draw.choice([1, 1, 1, 3])):
        place = draw.choice(list(places(value)))
        junk = draw.choice(JUNK)

        def change(was: Any, junk: Any = junk) -> Any:
            match draw.choice(["replace", "replace", "key", "drop", "more", "text"]):
                case "key" if isinstance(was, dict):
                    return {str(junk): was[key] for key in was} if draw.random() < 0.3 else {**was, str(junk): junk}
                case "drop" if was and isinstance(was, dict | list):
                    gone = draw.randrange(len(was))
                    kept = [
                        item
                        for number, item in enumerate(was.items() if isinstance(was, dict) else was)
                        if number != gone
                    ]
                    return dict(kept) if isinstance(was, dict) else kept
                case "more" if isinstance(was, list):
                    return [*was, *was[:1], junk]
                case "text" if isinstance(was, str):
                    return draw.choice([f"{was}/..", f"../{was}", f"/{was}", was[::-1], was + str(junk), was[:-1]])
                case _:
                    return junk

        value = changed(value, place, change)
    archive.put(name, json.dumps(value).encode())
    return name


def members_mutated(archive: Archive, draw: random.Random) -> None:
    name, content = draw.choice(archive.members)
    at = archive.members.index((name, content))
    match draw.choice(["rename", "kind", "drop", "twice", "move", "content", "add"]):
        case "rename":
            archive.rename(
                name,
                draw.choice([f"run/../../{OUTSIDE}/new", f"/{name}", f"{name}/..", "run/x", name + "x", "x" * 300]),
            )
        case "kind":
            archive.kinds[name] = draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
        case "drop":
            archive.members.pop(at)
        case "twice":
            archive.members.insert(draw.randrange(len(archive.members) + 1), (name, content))
        case "move":
            archive.members.insert(draw.randrange(len(archive.members)), archive.members.pop(at))
        case "content":
            archive.members[at] = (name, bytes_mutated(content or b"x", draw))
        case _:
            archive.put(draw.choice(["run/new", "objects/" + "1" * 64, "new", "run/steps/make/modules/new.py"]), b"x")


def mutated(packed: Path, file: Path, draw: random.Random) -> Path:
    kind = draw.choice(["file", "tar", "record", "record", "record", "members"])
    if kind == "file":
        file.write_bytes(bytes_mutated(packed.read_bytes(), draw))
    elif kind == "tar":
        file.write_bytes(gzip.compress(bytes_mutated(gzip.decompress(packed.read_bytes()), draw), 1))
    else:
        archive = Archive.read(packed)
        name = record_mutated(archive, draw) if kind == "record" else members_mutated(archive, draw)
        if draw.random() < 0.8:
            if name == MANIFEST:
                with contextlib.suppress(Exception):  # where it is not a manifest any more
                    archive.same_everywhere()
            with contextlib.suppress(Exception):
                archive.listed()
        archive.write(file)
    return file


def look_at(packed: Path, laptop: Project, seed: int) -> int:
    """The exit code for one archive that was altered, after everything was compared that must hold."""
    file = mutated(packed, laptop.folder.parent / "mutated.tar.gz", random.Random(seed))
    before = sorted(path.name for path in laptop.folder.parent.iterdir())
    try:
        done = taken_in(laptop, file)
        if done.code != 0:
            assert is_refused(done, laptop), (seed, done)
            return done.code
        checked = said(laptop, "verify", done.json["run"])
        assert checked.code in (0, 2), (seed, checked)  # 2: it brought another pipeline.toml, with a finding
        assert (laptop.folder.parent / OUTSIDE / "victim").read_text() == "mine", seed
        for version in done.json["claims"]:
            assert "not checked" in version
        return 0
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        assert sorted(path.name for path in laptop.folder.parent.iterdir()) == before, seed
        shutil.rmtree(laptop.folder)
        laptop.folder.mkdir()


@pytest.mark.soak
def test_three_hundred_altered_archives_write_nowhere_else_and_leave_nothing_half(
    packed: Path, laptop: Project
) -> None:
    codes = [look_at(packed, laptop, seed) for seed in range(300)]
    assert codes.count(8) > 200


@pytest.mark.soak
def test_five_thousand_altered_archives_write_nowhere_else_and_leave_nothing_half(
    packed: Path, laptop: Project
) -> None:
    codes = [look_at(packed, laptop, seed) for seed in range(1000, 6000)]
    assert codes.count(8) > 4000
