"""A local target whose clock, disk, folder, token or record is not as it was: what the commands say is true, what served
goes on, and the next command puts the history right."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.commands import Done
from support.places import TOML, Caller, Place, free_ports, load, wait_for
from support.some import some

from runner.failpoint import VARIABLE
from runner.model.deployment import FAILPOINTS
from runner.model.registry import LocalRegistry
from runner.model.served import Deployment, at_target, before, recorded, write_events
from runner.model.versions import NewVersion

# what Python loads first: this process's clock is as many seconds off as the file says at each moment
CLOCK = """
import datetime, os, time
real = time.time
def now():
    return real() + float(open(os.environ["CLOCK"]).read())
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(now(), tz)
time.time, datetime.datetime = now, Shifted
"""


# The clock


@pytest.mark.soak
def test_a_rollback_goes_by_the_order_of_changes_whatever_the_clock_said(place: Place, tmp_path: Path) -> None:
    clock = tmp_path / "offset"
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    env = {"PYTHONPATH": str(tmp_path), "CLOCK": str(clock)}
    place.registry.decide("tiny", 3, "approved", who="ben@desk", why="reviewed")
    for version, offset_s in ((1, 7200), (2, 3600), (3, 0)):  # corrected by an hour, twice
        clock.write_text(str(offset_s))
        assert place.deploy(version, env=env).code == 0
    at = [event.data["since"] for event in place.events if "target" in event.data]
    assert at == sorted(at, reverse=True)
    for version in (2, 1):
        done = place.runner("rollback", "staging", "--json", env=env)
        assert (done.code, done.json["version"], place.scored()) == (0, version, f"tiny/{version}"), done.err
    assert place.deployments("staging")[0]["model"] == "tiny/1"


def test_changes_of_several_models_at_a_target_are_in_order_whatever_the_clock_said(tmp_path: Path) -> None:
    registry = LocalRegistry(tmp_path / "registry.db")
    from runner.records import Artifact

    for name in ("zebra", "ant"):
        found = Artifact(path="m", sha256="0" * 64, size_bytes=1, files={})
        registry.register(NewVersion(name=name, run=f"run-{name}", sha256=found.sha256, artifact=found, created_by="a"))
        registry.decide(name, 1, "approved", who="ben", why="reviewed")
    told: list[tuple[str, str]] = []
    replaced = ""
    for number, (name, kind) in enumerate(
        [("zebra", "deployed"), ("ant", "deployed"), ("ant", "removed"), ("zebra", "deployed"), ("ant", "deployed")]
    ):
        if replaced and name not in replaced:
            told.append((replaced.partition("/")[0], "removed"))
        told.append((name, kind))
        change: Any = {"kind": kind, "replaced": "" if kind == "removed" else replaced}
        made = Deployment(
            id=str(number), target="staging", name=name, version=1, sha256="", who="ana",
            at=f"2026-11-22T{20 - number}:00:00.000Z", **change,
        )  # fmt: skip
        write_events(registry, made)
        write_events(registry, made)  # twice is once
        assert [(event.name, event.kind) for event in at_target(registry, "staging")] == told
        last = recorded(registry, "staging")
        assert last is not None
        assert (last.id, last.at) == (made.id, made.at)
        replaced = "" if kind == "removed" else f"{name}/1"
    assert before(registry, "staging").name == "zebra"


# The disk


@pytest.fixture
def small(models: Path, tmp_path: Path) -> Iterator[Place]:
    """As `place`, on a disk of its own that can be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    made = Place(disk / "project", dict(zip(("staging", "production"), free_ports(2), strict=True)))
    try:
        shutil.copytree(models, made.folder)
        made.toml(TOML.format(*made.ports.values()))
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(made.supervisor(), signal.SIGKILL)
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextlib.contextmanager
def full(place: Place, pages: int) -> Iterator[None]:
    """Only so many pages of 4 KiB are left on the disk."""
    filler = place.folder.parent / "filler"
    try:
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        os.truncate(filler, max(0, filler.stat().st_size - pages * 4096))
        yield
    finally:
        filler.unlink(missing_ok=True)


def tells_the_truth(place: Place, done: Done, old: str, new: str) -> None:
    """Which version serves is what the command's words say, and the next command puts the history right."""
    assert "Traceback" not in done.err, done.err
    serves, said = place.scored(), done.err
    if done.code == 0:
        assert serves == new
    elif done.code != -signal.SIGKILL:
        assert done.code == 8, done.err
        switched = f"{new} serves at staging, and the history does not say so yet" in said
        assert switched != ("Nothing was switched" in said or "Nothing was changed" in said), said
        assert serves == (new if switched else old), said
    (row,) = place.deployments("staging")
    assert (row["model"], row["health"]) == (serves, "serving")
    last = recorded(place.registry, "staging")
    assert last is not None
    assert last.label == serves


def changes_on_a_full_disk(place: Place, pages: list[int], killed: tuple[str | None, ...]) -> None:
    assert place.deploy(1).code == 0
    with load(place, "staging", 2) as callers:
        for number in pages:
            for at in killed:
                old = place.scored()
                new = "tiny/2" if old == "tiny/1" else "tiny/1"
                with full(place, number):
                    done = place.deploy(int(new[-1]), env={VARIABLE: at} if at is not None else None)
                tells_the_truth(place, done, old, new)
    assert not [failure for caller in callers for failure in caller.failures]
    assert all(caller.answers for caller in callers)


@pytest.mark.soak
def test_a_deployment_on_a_full_disk_says_what_serves(small: Place) -> None:
    changes_on_a_full_disk(small, [0, 2, 4, 8], (None,))


@pytest.mark.soak
def test_a_deployment_on_a_full_disk_that_is_killed_anywhere_leaves_what_can_be_put_right(small: Place) -> None:
    changes_on_a_full_disk(small, list(range(24)), (None, *FAILPOINTS))


@pytest.mark.soak
def test_a_target_on_a_full_disk_goes_on_and_can_be_ended_and_begun(small: Place) -> None:
    with full(small, 0):
        done = small.deploy(1)
        assert (done.code, "Traceback" in done.err) == (8, False), done.err
    assert small.told == []
    assert small.deploy(1).code == 0
    with full(small, 0):
        (worker,) = subprocess.run(
            ["pgrep", "-P", str(small.deployments("staging")[0]["process"])], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(worker), signal.SIGKILL)  # its log cannot be written
        wait_for(lambda: answers(small))
        done = small.runner("undeploy", "staging")
        assert (done.code, "Traceback" in done.err) == (8, False), done.err
        assert answers(small)
    assert small.runner("undeploy", "staging").code == 0
    assert small.told == [(1, "deployed"), (1, "removed")]


def answers(place: Place) -> bool:
    with contextlib.suppress(OSError):
        return place.scored() == "tiny/1"
    return False


# The folder


@pytest.mark.soak
def test_a_project_that_is_moved_while_it_serves_goes_on(place: Place, tmp_path: Path) -> None:
    assert place.deploy(1).code == 0
    moved = Place(tmp_path / "else where" / "project", place.ports)
    with load(place, "staging", 2) as callers:
        moved.folder.parent.mkdir()
        place.folder.rename(moved.folder)
        try:
            (found,) = moved.deployments("staging")
            assert (found["model"], found["health"]) == ("tiny/1", "serving")
            assert moved.deploy(2).code == 0
            assert moved.runner("rollback", "staging").code == 0
        finally:
            moved.folder.rename(place.folder)  # where the fixture and the callers look for it
    assert not [failure for caller in callers for failure in caller.failures]
    place.folder.rename(moved.folder)
    os.kill(moved.deployments("staging")[0]["process"], signal.SIGKILL)  # is started again, from where it is now
    wait_for(lambda: "started again" in moved.log() and moved.runner("deployments", "staging").code == 0)
    assert "started again once" in moved.deployments("staging")[0]["message"]
    assert moved.scored() == "tiny/1"
    assert moved.runner("undeploy", "staging").code == 0
    assert moved.told == [(1, "deployed"), (2, "deployed"), (1, "rolled back"), (1, "removed")]


# The record


@pytest.mark.parametrize("content", some([b"", b"{", b"\xff\x00", b'{"format": 1}'], [b"{"]))
def test_a_record_that_is_damaged_is_made_good(place: Place, content: bytes) -> None:
    def damage() -> None:
        (place.folder / "runs/targets/staging/state.json").write_bytes(content)

    assert place.deploy(1).code == 0
    damage()
    (found,) = place.deployments("staging")
    assert (found["model"], found["health"]) == ("tiny/1", "serving")
    assert place.deploy(2).code == 0
    damage()
    assert place.runner("rollback", "staging").code == 0
    assert (place.state()["change"]["version"], place.scored()) == (1, "tiny/1")

    damage()
    os.kill(place.supervisor(), signal.SIGKILL)
    done = place.runner("deployments", "staging", "--json")
    assert (done.code, done.json[0]["model"], done.json[0]["health"]) == (4, "tiny/1", "down")
    done = place.runner("deployments", "staging", "--restart")
    assert (done.code, "may have had to (state.json is damaged) bring a token" in done.err) == (2, True)
    assert place.deployments("staging", "--restart", "--no-token")[0]["health"] == "serving"
    assert place.scored() == "tiny/1"
    damage()
    os.kill(place.supervisor(), signal.SIGKILL)
    assert place.runner("undeploy", "staging").code == 0
    assert place.deployments("staging")[0]["model"] is None
    assert place.told == [(1, "deployed"), (2, "deployed"), (1, "rolled back"), (1, "removed")]


# The token


def status(place: Place) -> int:
    """Of an answer to somebody without a token."""
    caller = Caller(place.ports["staging"], place.sample(1)[0])
    with contextlib.closing(caller):
        try:
            caller.once()
        except AssertionError as error:
            return int(str(error)[1:4])
    return 200


@pytest.mark.soak
def test_a_token_is_never_lost_without_a_word(place: Place) -> None:
    token = {"RUNNER_TOKEN": "secret"}
    assert place.deploy(1, env=token).code == 0
    assert status(place) == 401
    commands: list[Callable[[], Done]] = [
        lambda: place.deploy(2),
        lambda: place.runner("rollback", "staging"),
        lambda: place.deploy(2, env={"RUNNER_TOKEN": ""}),
    ]
    for change in commands:  # its process knows the token
        done = change()
        assert (done.code, status(place)) == (0, 401), done.err
    os.kill(place.supervisor(), signal.SIGKILL)
    for change in (lambda: place.runner("deployments", "--restart"), *commands):
        done = change()
        assert done.code == 2, done.err
        assert "Requests to staging had to bring a token, which is written nowhere. Set RUNNER_TOKEN" in done.err
    assert place.runner("deployments", "staging", "--restart", env=token).code == 0
    assert status(place) == 401
    assert place.runner("undeploy", "staging").code == 0
    assert place.deploy(1).code == 2  # it had one before it was ended
    assert "secret" not in "".join(map(str, (place.state(), place.log(), msgspec.to_builtins(place.events))))
    assert place.deploy(1, "staging", "--no-token").code == 0
    assert status(place) == 200
    os.kill(place.supervisor(), signal.SIGKILL)
    assert place.runner("deployments", "staging", "--restart").code == 0
    assert status(place) == 200


def test_a_token_can_be_given_up_or_changed_while_it_serves(place: Place) -> None:
    assert place.deploy(1, env={"RUNNER_TOKEN": "secret"}).code == 0
    assert place.deploy(2, "staging", "--no-token").code == 0
    assert status(place) == 200
    assert place.runner("rollback", "staging", env={"RUNNER_TOKEN": "other"}).code == 0
    assert status(place) == 401
