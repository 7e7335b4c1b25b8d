"""Killed at every boundary, at random moments, with a full disk: nothing sealed is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import Done, command, environment
from support.disk import BLOCK
from support.projects import Project, children_of, parameters
from support.three_steps import made

from runner.failpoint import NAMES, VARIABLE

# as steps of one run, or runs of one sweep, may be the first to read a manifest at one moment
READ_AT_ONCE = """
import sys, threading
from pathlib import Path
from runner.manifest import RunManifest
from runner.records import read
sys.setswitchinterval(1e-6)
start, read_by = threading.Barrier(8), []
def one():
    start.wait()
    read_by.append(read(RunManifest, Path(sys.argv[1])).run)
threads = [threading.Thread(target=one) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(read_by) == 8
"""
BEFORE_A_MANIFEST = ("run folder made", "snapshot taken")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return made(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = made(tmp_path_factory.mktemp("once"))
    assert project.runner("run").code == 0
    return project


@pytest.fixture(scope="module")
def undisturbed(once: Project) -> dict[str, str]:
    """The hashes of every output of a run that nothing happened to."""
    return outputs(once)


@pytest.fixture
def project(fresh: Project, tmp_path: Path) -> Project:
    shutil.copytree(fresh.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def outputs(project: Project) -> dict[str, str]:
    return {
        f"{step['name']}.{name}": output["sha256"]
        for step in project.manifest["steps"]
        for name, output in (step["result"] or {"outputs": {}})["outputs"].items()
    }


def killed(project: Project, *arguments: str, at: str) -> None:
    done = project.runner(*arguments, env={VARIABLE: at})
    assert done.code == -signal.SIGKILL, f"{at} was never reached: {done.code}\n{done.err}"


def finished(project: Project) -> Done:
    """Resume where there is something to resume, run anew where the run never began."""
    done = project.runner("resume", "latest", "--json") if any(project.runs) else project.runner("run", "--json")
    assert done.code == 0, done.err
    return done


def sound(project: Project, undisturbed: dict[str, str]) -> None:
    """What faults may never break: see each line."""
    assert outputs(project) == undisturbed  # a resumed run's outputs are an uninterrupted run's
    assert project.manifest["status"] == "succeeded"
    (version,) = project.runner("models", "--json").json  # registered once
    assert version["run"] == project.manifest["run"]
    assert project.manifest["model_version"]["version"] == version["version"] == 1
    verified = project.runner("verify", "--all", "--json")  # every file in a manifest is there with its hash
    assert verified.code == 0, verified.out
    assert kernels_of(project) == []  # nothing is left running


def kernels_of(project: Project) -> list[int]:
    deadline = time.monotonic() + 5
    while True:
        found = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and str(project.folder) in _place(entry)
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _place(entry: Path) -> str:
    """The working folder of the process, and its environment as it was when it was started."""
    try:
        return f"{(entry / 'cwd').readlink()} {(entry / 'environ').read_text(errors='replace')}"
    except OSError:
        return ""


def test_a_run_killed_at_every_boundary_one_after_the_other_is_finished_as_if_nothing_had_been(
    project: Project, undisturbed: dict[str, str]
) -> None:
    """Each resume gets as far as the next boundary: of the first step, of the second, of the gate and the registry."""
    for name in BEFORE_A_MANIFEST:
        killed(project, "run", at=name)
        assert not any(project.runs)
    killed(project, "run", at="run begun")
    of_a_step = [name for name in NAMES[3 : NAMES.index("step recorded") + 1] if name != "object half stored"]
    for name in ["object half stored", *of_a_step, "verdict written", *NAMES[NAMES.index("before registering") :]]:
        killed(project, "resume", "latest", at=name)
        assert len(project.runs) == 1
    finished(project)
    sound(project, undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_at_any_boundary_is_finished_as_if_nothing_had_been(
    project: Project, undisturbed: dict[str, str], name: str
) -> None:
    killed(project, "run", at=name)
    assert len(project.runs) == (0 if name in BEFORE_A_MANIFEST else 1)
    finished(project)
    sound(project, undisturbed)


def test_what_was_sealed_before_the_kill_is_not_run_again(project: Project) -> None:
    killed(project, "run", at="step about to run:second")
    before = project.step("first")["result"]["ended"]
    (listed,) = project.runner("runs", "--json").json
    assert listed["status"] == "interrupted"
    finished(project)
    assert project.step("first")["result"]["ended"] == before
    assert project.runner("resume", "latest").code == 0  # of a run that has succeeded: nothing to do


def test_a_second_kill_while_resuming_changes_nothing(project: Project, undisturbed: dict[str, str]) -> None:
    killed(project, "run", at="step sealed:first")
    killed(project, "resume", "latest", at="registered")
    finished(project)
    sound(project, undisturbed)


def test_of_two_resumes_the_second_is_told_who_is_at_work(project: Project) -> None:
    killed(project, "run", at="run begun")
    project.write(
        "first.ipynb", parameters("x: int = 1"), "raise SystemError('the working tree is not what is resumed')"
    )
    going = project.start("resume", "latest", "--json")
    lock, began = project.runs[-1] / "lock", time.monotonic()
    while f"process {going.pid} on" not in lock.read_text() and time.monotonic() - began < 60:
        time.sleep(0.01)
    second = project.runner("resume", "latest")
    _, err = going.communicate(timeout=120)
    assert going.returncode == 0, err
    assert "first.ipynb has changed since" in err
    if second.code != 0:
        assert (second.code, f"process {going.pid} on" in second.err) == (8, True)


def kill_at(project: Project, after_s: float) -> None:
    going = subprocess.Popen(
        command("run"), cwd=project.folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(after_s)
    below = list(children_of(going.pid))
    going.kill()
    going.wait()
    deadline = time.monotonic() + 5
    while left := [Path(f"/proc/{pid}/cmdline").read_text() for pid in below if _alive(pid)]:
        assert time.monotonic() < deadline, f"outlived their runner: {left}"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.soak
@pytest.mark.parametrize("number", [0])
def test_a_run_killed_at_a_random_moment_is_finished(
    project: Project, undisturbed: dict[str, str], number: int
) -> None:
    kill_at(project, random.Random(number).uniform(0.2, 2.5))
    finished(project)
    sound(project, undisturbed)


@pytest.mark.soak
def test_forty_kills_at_random_moments_lose_nothing(
    fresh: Project, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    draw = random.Random(99)
    for number in range(40):
        shutil.copytree(fresh.folder, tmp_path / str(number))
        project = Project(tmp_path / str(number))
        kill_at(project, draw.uniform(0.05, 3.0))
        if any(project.runs) and draw.random() < 0.5:
            going = project.start("resume", "latest")
            time.sleep(draw.uniform(0.05, 2.0))
            going.kill()
            going.communicate()
        finished(project)
        sound(project, undisturbed)
        shutil.rmtree(project.folder)


def run_with_space_for(blocks: int, project: Project) -> Done:
    """Run while the disk has only so many blocks left; afterwards it has room again."""
    filler = project.folder.parent / "filler"
    filler.write_bytes(b"")
    free = os.statvfs(project.folder)
    filler.write_bytes(b"\0" * BLOCK * max(0, free.f_bavail * free.f_frsize // BLOCK - blocks))
    done = project.runner("run")
    filler.unlink()
    return done


@pytest.mark.cases(1)
@pytest.mark.parametrize("blocks", [0, 12])
def test_a_full_disk_seals_nothing_half_and_the_run_goes_on_once_there_is_space(
    fresh: Project, small_disk: Path, undisturbed: dict[str, str], blocks: int
) -> None:
    project = Project(Path(shutil.copytree(fresh.folder, small_disk / "project")))
    done = run_with_space_for(blocks, project)
    assert done.code != 0
    assert "Traceback" not in done.err
    assert "No space left" in done.err
    finished(project)
    sound(project, undisturbed)


@pytest.mark.soak
def test_a_disk_that_fills_at_any_write_loses_nothing(
    fresh: Project, small_disk: Path, undisturbed: dict[str, str]
) -> None:
    for blocks in range(80):
        project = Project(Path(shutil.copytree(fresh.folder, small_disk / "project")))
        done = run_with_space_for(blocks, project)
        assert "Traceback" not in done.err, f"with {blocks} blocks left: {done.err}"
        finished(project)
        sound(project, undisturbed)
        shutil.rmtree(project.folder)
    assert done.code == 0  # by now there was room for all of it


@pytest.fixture
def complete(once: Project, tmp_path: Path) -> Project:
    """A project with one run that succeeded, to spoil."""
    subprocess.run(["cp", "-a", str(once.folder), str(tmp_path / "complete")], check=True)
    return Project(tmp_path / "complete")


def test_threads_that_are_the_first_to_read_a_manifest_all_get_it(complete: Project) -> None:
    done = subprocess.run([sys.executable, "-c", READ_AT_ONCE, complete.runs[0] / "run.json"], check=False)
    assert done.returncode == 0


def test_a_run_of_a_newer_version_is_refused_and_left_as_it_is(complete: Project) -> None:
    project = complete
    file = project.runs[-1] / "run.json"
    newer = json.dumps({**json.loads(file.read_text()), "format": 99, "unheard_of": 1})
    file.write_text(newer)
    for arguments in (("show", "latest"), ("resume", "latest"), ("verify", "latest"), ("reproduce", "latest")):
        done = project.runner(*arguments)
        assert (done.code, "format 99" in done.err + done.out) in ((8, True), (4, True)), arguments
    assert file.read_text() == newer


def test_a_manifest_cut_or_changed_anywhere_is_told_and_never_a_traceback(complete: Project) -> None:
    project = complete
    from runner.errors import RunnerError
    from runner.run.store import Store

    store, file = Store(project.folder / "runs"), project.runs[-1] / "run.json"
    whole = file.read_bytes()
    before = store.manifest(project.runs[-1].name)
    for place in range(0, len(whole), max(1, len(whole) // 400)):
        for broken in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]):
            file.write_bytes(broken)
            try:
                found = store.manifest(file.parent.name)
            except RunnerError:
                continue
            # what still reads says something else, for `verify` to compare with the rest, or it is a key that was as
            # good as not there
            line = whole[whole.rfind(b"\n", 0, place) + 1 : whole.find(b"\n", place)]
            assert found != before or re.fullmatch(rb' *"\w+": (null|false|0|0\.0|""|\[\]|\{\}),?', line), line
    file.write_bytes(whole[: len(whole) // 2])
    done = project.runner("show", "latest")
    assert done.code == 8
    assert "Traceback" not in done.err
