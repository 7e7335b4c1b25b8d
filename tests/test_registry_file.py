"""The registry's SQLite file: rows altered behind its back, damage, locks, many processes, and processes that die."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.commands import environment
from support.registries import FIRST_MODEL, SECOND_MODEL, everything, new, numbers

from runner.errors import NewerStore, Refused, RegistryUnusable, RunnerError, Tampered, UsageError
from runner.model.events import FIRST, chained, verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import Event

# registers `count` versions one by one and writes the number of each once it is there
WORKER = """
import sys
from pathlib import Path
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion
from runner.records import Artifact
path, who, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
registry = LocalRegistry(path)
artifact = Artifact(path="steps/train/out/model", sha256="ab" * 32, size_bytes=1)
for number in range(count):
    run = f"{who}-{number}"
    new = NewVersion(name="m", run=run, sha256="ab" * 32, artifact=artifact, created_by=who)
    print(run, registry.register(new).version, flush=True)
"""
DECIDER = """
import sys
from pathlib import Path
from runner.errors import Refused
from runner.model.registry import LocalRegistry
try:
    LocalRegistry(Path(sys.argv[1])).decide("m", 1, "approved", who=sys.argv[2], why="at once")
except Refused:
    sys.exit(8)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a registry: m/1 revoked, m/2 approved, m/3 pending; other/1 rejected last of all."""
    made = LocalRegistry(tmp_path_factory.mktemp("filled") / "registry.db")
    for number in (1, 2, 3):
        made.register(new(number))
    made.register(new(1, name="other"))
    made.decide("m", 1, "approved", who="ana", why="reviewed")
    made.decide("m", 2, "approved", who="ana", why="better")
    made.decide("m", 1, "rejected", who="ben", why="wrong month")
    made.decide("other", 1, "rejected", who="ben", why="überholt")
    return made.path.read_bytes()


@pytest.fixture
def filled(path: Path, content: bytes) -> LocalRegistry:
    path.write_bytes(content)
    return LocalRegistry(path)


TAMPERED = [
    "UPDATE events SET event = replace(event, 'reviewed', 'revlewed') WHERE name = 'm'",
    "UPDATE events SET event = replace(event, 'wrong month', 'wrong mouth') WHERE name = 'm'",
    "DELETE FROM events WHERE name = 'm' AND seq = 1",
    "DELETE FROM events WHERE name = 'm' AND seq = 4",
    "DELETE FROM events WHERE name = 'm' AND seq = 6",  # the last one: without it m/1 would be approved again
    "UPDATE events SET seq = 99 - seq WHERE name = 'm'",
    "UPDATE events SET name = 'n' WHERE name = 'm'",
    "UPDATE versions SET name = 'n' WHERE name = 'm'",
    "UPDATE versions SET facts = replace(facts, '0.875', '0.975') WHERE name = 'm' AND version = 2",
    f"UPDATE versions SET facts = replace(facts, '{FIRST_MODEL}', '{SECOND_MODEL}') WHERE name = 'm' AND version = 2",
    "UPDATE versions SET facts = replace(facts, 'Tiny', 'Tidy') WHERE name = 'm' AND version = 3",
    "UPDATE versions SET created = '2020-01-01T00:00:00.000Z' WHERE name = 'm' AND version = 1",
    "UPDATE versions SET run = 'another' WHERE name = 'm' AND version = 1",
    "UPDATE versions SET version = 7 WHERE name = 'm' AND version = 3",
    "DELETE FROM versions WHERE name = 'm' AND version = 3",
    "DELETE FROM versions WHERE name = 'm'",
]


@pytest.mark.parametrize("statement", TAMPERED)
def test_a_row_altered_behind_its_back_is_found(filled: LocalRegistry, statement: str) -> None:
    with sqlite3.connect(filled.path) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        assert connection.execute(statement).rowcount
    connection.close()
    with pytest.raises(Tampered):
        everything(filled)
    acts: list[Callable[[], object]] = [
        lambda: filled.register(new(9)),
        lambda: filled.decide("m", 3, "approved", who="ana", why="x"),
        lambda: filled.approved("m"),
    ]
    for act in acts:
        with pytest.raises((Tampered, UsageError)):
            act()


@pytest.mark.parametrize("statement", TAMPERED)
def test_the_file_itself_keeps_its_rows(filled: LocalRegistry, statement: str) -> None:
    before = everything(filled)
    connection = sqlite3.connect(filled.path)
    with pytest.raises(sqlite3.IntegrityError, match=r"never change|are kept"):
        connection.execute(statement)
    connection.close()
    assert everything(filled) == before


def damaged(registry: LocalRegistry, contents: Iterable[bytes]) -> None:
    """Each content of the file reads right or is an error of ours; the file itself is left as it is."""
    expected = everything(registry)
    bad = registry.path.with_name("bad.db")
    for number, content in enumerate(contents):
        bad.write_bytes(content)
        try:
            found = everything(LocalRegistry(bad))
        except RunnerError:
            assert bad.read_bytes() == content
        else:
            assert found == expected, f"content {number} reads as something else"
        for beside in bad.parent.glob("bad.db-*"):
            beside.unlink()


def flipped(content: bytes, place: int, bits: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


def test_a_damaged_byte_never_reads_as_another_history(filled: LocalRegistry) -> None:
    content = filled.path.read_bytes()
    places = [*range(100), *range(100, len(content), 307)]
    damaged(filled, (flipped(content, place, (1, 2, 16, 255)[place % 4]) for place in places))


def test_a_truncated_file_never_reads_as_a_shorter_history(filled: LocalRegistry) -> None:
    content = filled.path.read_bytes()
    damaged(filled, (content[:size] for size in range(0, len(content), 613)))
    for size in (0, 1, 100, 4096, len(content) - 1):
        filled.path.write_bytes(content[:size])
        with pytest.raises((RegistryUnusable, Tampered)):
            filled.register(new(9))
        assert filled.path.read_bytes() == content[:size]


@pytest.mark.soak
@pytest.mark.parametrize(("first", "bits"), list(enumerate([1, 2, 16, 128, 255])))
def test_no_damaged_byte_reads_as_another_history(filled: LocalRegistry, first: int, bits: int) -> None:
    content = filled.path.read_bytes()
    damaged(filled, (flipped(content, place, bits) for place in range(first, len(content), 5)))


def test_a_newer_registry_is_refused_and_left_alone(filled: LocalRegistry) -> None:
    connection = sqlite3.connect(filled.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = filled.path.read_bytes()
    for act in (filled.list, lambda: filled.register(new(9)), lambda: filled.approved("m")):
        with pytest.raises(NewerStore, match=r"format 99.*reads up to \d"):
            act()
    assert filled.path.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE versions (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(RegistryUnusable, match="is not a registry"):
        LocalRegistry(path).register(new(1))
    assert path.read_bytes() == before
    path.write_text("not a database at all, but long enough to look at" * 100)
    with pytest.raises(RegistryUnusable, match="restore"):
        LocalRegistry(path).list()


def test_a_locked_registry_is_waited_for_and_then_said(filled: LocalRegistry) -> None:
    connection = sqlite3.connect(filled.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    hasty = LocalRegistry(filled.path, busy_s=0.2)
    for act in (hasty.list, lambda: hasty.register(new(9))):
        began = time.monotonic()
        with pytest.raises(RegistryUnusable, match=r"locked for 0\.2 s"):
            act()
        assert 0.15 < time.monotonic() - began < 5
    connection.close()
    assert hasty.register(new(9)).version == 4


def test_looking_at_a_registry_that_is_not_there_makes_none(path: Path) -> None:
    assert list(LocalRegistry(path).list()) == []
    assert LocalRegistry(path).approved("m") is None
    assert not path.exists()


def test_its_folder_may_have_any_name(tmp_path: Path) -> None:
    odd = LocalRegistry(tmp_path / "läufe mit ? # % & leer" / "registry.db")
    odd.register(new(1))
    assert numbers(odd.list()) == [("m", 1, "pending")]
    assert sorted(entry.name for entry in odd.path.parent.iterdir()) == ["registry-events", "registry.db"]


# Many processes, and processes that die


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment(), stdout=subprocess.PIPE, text=True
    )


def registered_at_once(path: Path, *, processes: int, each: int) -> None:
    workers = [start(WORKER, path, f"worker{number}", each) for number in range(processes)]
    said = [worker.communicate(timeout=300)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes
    told = {(run, int(version)) for lines in said for run, version in zip(lines[::2], lines[1::2], strict=True)}
    versions = LocalRegistry(path).list()
    assert [version.version for version in versions] == list(range(1, processes * each + 1))
    assert {(version.run, version.version) for version in versions} == told
    assert verify_chain(LocalRegistry(path).events("m")) is None


def test_processes_registering_at_once_leave_no_gap_and_lose_nothing(path: Path) -> None:
    registered_at_once(path, processes=8, each=12)


def test_of_decisions_made_at_once_one_wins(path: Path) -> None:
    LocalRegistry(path).register(new(1))
    deciders = [start(DECIDER, path, f"person{number}") for number in range(4)]
    codes = [(decider.communicate(timeout=60), decider.returncode)[1] for decider in deciders]
    assert sorted(codes) == [0, 8, 8, 8]
    assert LocalRegistry(path).get("m", 1).decided_by == f"person{codes.index(0)}"
    assert len(LocalRegistry(path).events("m")) == 2


def killed_at_random_moments(path: Path, *, kills: int) -> None:
    told: set[tuple[str, int]] = set()
    chance = random.Random(7)
    for number in range(kills):
        worker = start(WORKER, path, f"life{number}", 100_000)
        assert worker.stdout is not None
        lines = [worker.stdout.readline()]  # it has begun
        time.sleep(chance.uniform(0, 0.2))
        os.kill(worker.pid, signal.SIGKILL)
        lines += worker.communicate(timeout=60)[0].splitlines()
        told |= {(run, int(version)) for run, version in (line.split() for line in lines)}
    versions = LocalRegistry(path).list()
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    assert told <= {(version.run, version.version) for version in versions}
    assert len(versions) - len(told) <= kills  # written, and killed before it could say so
    assert len(told) > kills


def test_a_killed_process_loses_nothing_it_said_was_registered(path: Path) -> None:
    killed_at_random_moments(path, kills=4)


@pytest.mark.soak
def test_many_processes_registering_at_once_lose_nothing(path: Path) -> None:
    registered_at_once(path, processes=8, each=50)


@pytest.mark.soak
def test_sixty_killed_processes_lose_nothing(path: Path) -> None:
    killed_at_random_moments(path, kills=60)


LIMITED = """
import resource, sys
from pathlib import Path
from runner.errors import RegistryUnusable
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion
from runner.records import Artifact
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
artifact = Artifact(path="steps/train/out/model", sha256="ab" * 32, size_bytes=1)
new = NewVersion(name="m", run="big", sha256="ab" * 32, artifact=artifact, created_by="ana", card="x" * 200_000)
try:
    LocalRegistry(path).register(new)
except RegistryUnusable as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("room", [100, 40_000])
def test_a_file_that_cannot_grow_is_said_and_nothing_is_half_written(filled: LocalRegistry, room: int) -> None:
    before = everything(filled)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(filled.path), str(room)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(filled) == before
    assert filled.register(new(9)).version == 4


def lived(path: Path) -> LocalRegistry:
    """Two names, three versions, two decisions."""
    registry = LocalRegistry(path)
    for number, name in ((1, "m"), (2, "m"), (3, "other")):
        registry.register(new(number, name=name))
    registry.decide("m", 1, "approved", who="ana", why="good")
    registry.decide("m", 2, "rejected", who="ben", why="bad")
    return registry


@pytest.mark.parametrize("fault", ["truncated", "overwritten", "lost"])
def test_a_damaged_registry_is_made_anew_with_every_decision_and_the_damaged_file_is_kept(
    tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "registry.db"
    registry = lived(path)
    before = everything(registry)
    damaged = {"truncated": path.read_bytes()[:3000], "overwritten": b"\0" * 9000, "lost": b""}[fault]
    path.unlink() if fault == "lost" else path.write_bytes(damaged)
    registry.rebuild()
    assert everything(registry) == before
    kept = [file.read_bytes() for file in tmp_path.glob("registry.db.damaged-*")]
    assert kept == ([] if fault == "lost" else [damaged])
    registry.decide("m", 1, "rejected", who="ana", why="revoked")
    assert [event.seq for event in registry.events("m")] == [1, 2, 3, 4, 5]


def test_a_sound_registry_is_not_made_anew_and_altered_copies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registry = lived(path)
    with pytest.raises(Refused, match="is sound"):
        registry.rebuild()
    copy = tmp_path / "registry-events" / "m" / "000003.json"
    whole = copy.read_text()
    path.write_bytes(b"rubbish")
    for altered in (whole.replace('"good"', '"best"'), whole[:50], None):
        copy.unlink() if altered is None else copy.write_text(altered)
        with pytest.raises(Tampered):
            registry.rebuild()
        assert path.read_bytes() == b"rubbish"
    copy.write_text(whole)
    assert [version.status for version in registry.rebuild()] == ["approved", "rejected", "pending"]


def test_a_registry_that_is_gone_is_not_begun_anew_while_copies_of_its_events_are_there(tmp_path: Path) -> None:
    registry = lived(tmp_path / "registry.db")
    before = everything(registry)
    registry.path.unlink()
    acts: list[Callable[[], object]] = [
        lambda: registry.register(new(7)),
        registry.list,
        lambda: registry.approved("m"),
        lambda: registry.decide("m", 1, "rejected", who="ana", why="x"),
    ]
    copies = tmp_path / "registry-events"
    for name in ("registry-events.before-1f2e", "registry-events"):  # moved away, as was done once; put back
        copies = copies.rename(tmp_path / name)
        for act in acts:
            with pytest.raises(RegistryUnusable, match="runner models --rebuild"):
                act()
        assert not registry.path.exists()
    assert [version.status for version in registry.rebuild()] == ["approved", "rejected", "pending"]
    assert everything(registry) == before


def altered_by(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def emptied(registry: LocalRegistry) -> None:
    altered_by(registry.path, "DELETE FROM versions", "DELETE FROM events", "DELETE FROM sqlite_sequence")


def last_removed(registry: LocalRegistry) -> None:
    """The rejection of m/2, and the count of events with it."""
    altered_by(
        registry.path,
        "DELETE FROM events WHERE name = 'm' AND seq = 4",
        "UPDATE sqlite_sequence SET seq = (SELECT count(*) FROM events)",
    )


def name_removed(registry: LocalRegistry) -> None:
    altered_by(
        registry.path,
        *("DELETE FROM versions WHERE name = 'other'", "DELETE FROM events WHERE name = 'other'"),
        "UPDATE sqlite_sequence SET seq = 4",
    )


def an_older_one(registry: LocalRegistry) -> None:
    older = LocalRegistry(registry.path.with_name("older.db"), keeps=False)
    older.adopt({1: registry.get("m", 1)}, registry.events("m")[:1])
    older.path.replace(registry.path)


@pytest.mark.parametrize("change", [emptied, last_removed, name_removed, an_older_one])
def test_a_registry_that_lost_events_which_the_copies_have_is_refused_and_made_anew(
    tmp_path: Path, change: Callable[[LocalRegistry], None]
) -> None:
    registry = lived(tmp_path / "registry.db")
    before = everything(registry)
    change(registry)
    assert everything(LocalRegistry(registry.path, keeps=False)) != before  # sound by itself
    for act in (registry.list, lambda: registry.register(new(9)), lambda: registry.approved("m")):
        with pytest.raises(Tampered, match=r"lacks event \d of .*runner models --rebuild"):
            act()
    registry.rebuild()
    assert everything(registry) == before
    assert registry.register(new(9)).version == 3


def test_each_event_is_found_where_the_registry_or_the_copies_still_have_it(tmp_path: Path) -> None:
    registry = lived(tmp_path / "registry.db")
    registry.record("other", 1, "deployed", who="ana", why="x", data={"target": "t"})
    before = everything(registry)
    last_removed(registry)  # m's fourth: only its copy is left
    (tmp_path / "registry-events" / "m" / "000002.json").unlink()
    for copy in sorted((tmp_path / "registry-events" / "other").iterdir()):
        copy.unlink()
    registry.rebuild()
    assert everything(registry) == before
    assert list(registry.differences()) == []


def rechained(events: Sequence[Event], number: int, **changes: Any) -> list[Event]:
    """The history with one event changed and every hash made to fit, as somebody does who may write the file."""
    made: list[Event] = []
    for event in events:
        event = msgspec.structs.replace(event, **changes) if event.seq == number else event
        made.append(chained(msgspec.structs.replace(event, previous=made[-1].hash if made else FIRST)))
    return made


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_event_rewritten_with_all_hashes_after_it_is_another_history_than_the_copies(
    tmp_path: Path, number: int
) -> None:
    registry = lived(tmp_path / "registry.db")
    versions = {version.version: version for version in registry.list("m")}
    true, false = list(registry.events("m")), rechained(registry.events("m"), number, who="eve")
    forged = LocalRegistry(tmp_path / "forged.db", keeps=False)
    forged.adopt(versions, false)
    forged.adopt({1: registry.get("other", 1)}, registry.events("other"))
    sound = registry.path.read_bytes()
    forged.path.replace(registry.path)
    with pytest.raises(Tampered, match="one of the two was altered"):
        registry.list()
    with pytest.raises(Refused, match="one of the two was altered"):
        registry.rebuild()
    (found, *_) = registry.differences()
    assert f"Event {number} of m is another one in" in found
    # whoever may write both is not seen here: that is what `history --head` is for
    shutil.rmtree(tmp_path / "registry-events" / "m")
    assert [event.who for event in registry.events("m")][number - 1] == "eve"
    assert registry.events("m")[-1].hash != true[-1].hash
    registry.path.write_bytes(sound)
    assert list(registry.events("m")) == true


def test_each_copy_that_is_removed_altered_or_moved_is_named_and_lost_ones_are_written_again(tmp_path: Path) -> None:
    registry = lived(tmp_path / "registry.db")
    before = everything(registry)
    assert list(registry.differences()) == []
    folder = tmp_path / "registry-events" / "m"
    whole = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    assert len(whole) == 4
    for file, content in whole.items():
        file.unlink()
        (said,) = registry.differences()
        assert f"the copy of event {int(file.stem)} is gone" in said
        assert everything(registry) == before
        registry.rebuild()
        assert file.read_bytes() == content
        others = [other for other in whole.values() if other != content]
        for altered in (content[:50], content.replace(b'"who": "', b'"who": "x'), *others):
            file.write_bytes(altered)
            (said,) = registry.differences()
            assert file.name in said
            if file == max(whole):  # each access looks at the last one
                with pytest.raises(Tampered):
                    registry.list()
        file.write_bytes(content)
    shutil.rmtree(tmp_path / "registry-events")
    assert len(list(registry.differences())) == 5
    registry.decide("m", 1, "rejected", who="ana", why="revoked")  # writes those of its name
    assert len(list(registry.differences())) == 1
    registry.rebuild()
    assert list(registry.differences()) == []


def test_several_processes_that_begin_a_registry_at_once_do_not_take_each_other_for_a_lost_one(path: Path) -> None:
    registered_at_once(path, processes=6, each=1)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_file_its_journal_and_its_copies_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        registry = LocalRegistry(tmp_path / "runs" / "registry.db")
        registry.register(new(1))
        registry.path.write_bytes(b"rubbish")
        registry.rebuild()
        connection = sqlite3.connect(registry.path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO versions VALUES ('m', 9, 'r', 'now', '{}')")
        modes = {path.name: path.stat().st_mode & 0o777 for path in registry.path.parent.rglob("*") if path.is_file()}
        connection.close()
    finally:
        os.umask(before)
    assert {"registry.db", "registry.db-journal", "000001.json"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items()} == dict.fromkeys(modes, oct(0o666 & ~umask))
