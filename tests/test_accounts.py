"""Two accounts of one machine work in one folder, and whoever acts is the account, whatever it calls itself."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import Done, command, environment
from support.projects import Project
from support.three_steps import made

from runner.failpoint import VARIABLE
from runner.run import provenance
from runner.serve.local.protocol import CONTROL

GROUP = 54_321
ANA, BEN, NAMELESS = (
    "daemon",
    "bin",
    "54322",
)  # accounts that every Linux has; a number without a name, as in containers
READ_ANYTHING = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")


@dataclass(frozen=True)
class Shared(Project):
    """A project in a folder of the group's, whose files the group may write."""

    launcher: tuple[str, ...] = ()

    def by(self, account: str, *arguments: str, env: dict[str, str] | None = None, umask: int = 0o002) -> Done:
        """The command as run by the account, with a umask that lets the group write, or another."""
        return self.executed(account, command(*arguments), env or {}, umask)

    def executed(self, account: str, what: Sequence[str], env: dict[str, str], umask: int) -> Done:
        home = self.folder.parent / f"home of {account}"
        variables = environment({"HOME": str(home), **env})
        user = int(account) if account.isdecimal() else account
        if not home.exists():
            home.mkdir()
            shutil.chown(home, user)
        if self.launcher:
            asked = [*self.launcher, "--reuid", account, "--regid", str(GROUP), "--clear-groups", *READ_ANYTHING]
            how: dict[str, object] = {"args": [*asked, *what]}
        else:
            how = {"args": what, "user": user, "group": GROUP, "extra_groups": []}
        done = subprocess.run(
            **how, cwd=self.folder, env=variables, umask=umask, capture_output=True, text=True, check=False, timeout=240
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def shared() -> Iterator[Shared]:
    if os.getuid() != 0:
        pytest.skip("only root can act as two accounts")
    above = Path(tempfile.mkdtemp(prefix="two accounts "))  # pytest's own folders are for root alone
    above.chmod(0o755)
    try:
        project = Shared(above / "project", launcher())
        made(project.folder)
        toml = project.folder / "pipeline.toml"
        toml.write_text(f"{toml.read_text()}[approval]\nnot_starter = true\n")
        for path in (project.folder, *project.folder.iterdir()):
            os.chown(path, 0, GROUP)
            path.chmod(0o2775 if path.is_dir() else 0o664)
        yield project
    finally:
        shutil.rmtree(above)


def launcher() -> tuple[str, ...]:
    """What starts a command where Python itself lies in a folder that only root may enter."""
    try:
        subprocess.run([sys.executable, "-c", ""], user=ANA, group=GROUP, extra_groups=[], check=True)
    except PermissionError:
        found = shutil.which("setpriv")
        if found is None:
            pytest.skip(f"{sys.executable} can be started by root alone, and there is no setpriv")
        return (found,)
    return ()


def not_the_groups(folder: Path) -> list[str]:
    """What the other account could not work with: files and folders that the group may not write, or of another group.

    Sealed files are for reading.
    """
    wrong = []
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            continue
        sealed = status.st_mode & 0o777 == 0o444
        if status.st_gid != GROUP or not (status.st_mode & stat.S_IWGRP or sealed):
            wrong.append(f"{path.relative_to(folder)} {stat.filemode(status.st_mode)} group {status.st_gid}")
    return wrong


@pytest.mark.soak
def test_two_accounts_run_resume_decide_and_clean_up_in_one_folder(shared: Shared) -> None:
    done = shared.by(ANA, "run", "--json", env={"RUNNER_NO_REPORT": "0"})
    assert done.code == 0, done.err
    assert shared.manifest["started_by"].startswith(f"{ANA}@")
    assert not_the_groups(shared.folder / "runs") == []
    own = shared.by(ANA, "approve", "thing/1", "--reason", "mine", env={"LOGNAME": BEN, "USER": BEN, "SUDO_USER": BEN})
    assert (own.code, f"{ANA}@" in own.err, "started the run" in own.err) == (8, True, True), own.err
    done = shared.by(BEN, "approve", "thing/1", "--reason", "reviewed", "--json")
    assert (done.code, done.json["decided_by"].partition("@")[0]) == (0, BEN), done.err

    for at in ("object half stored", "step sealed:first", "verdict written", "registered"):
        (shared.folder / "in.txt").write_text(at)
        assert shared.by(ANA, "run", env={VARIABLE: at}).code == -9
        done = shared.by(BEN, "resume", "latest", "--json")
        assert done.code == 0, done.err
        assert done.json["verdict"] == "pass"
    assert shared.by(ANA, "report", "latest").code == 0
    assert shared.by(ANA, "run", "--no-register", "--json").json["steps"][0]["status"] == "cached"
    assert shared.by(ANA, "debug", "latest", "first", "--no-open").code == 0
    assert shared.by(BEN, "debug", "latest", "first", "--no-open").code == 0
    done = shared.by(BEN, "verify", "--all")
    assert done.code == 0, done.out
    assert shared.by(BEN, "reject", "thing/2", "--reason", "worse").code == 0
    done = shared.by(BEN, "gc", "--keep", "0")
    assert done.code == 0, done.err
    assert shared.by(ANA, "verify", "--all").code == 0
    assert not_the_groups(shared.folder / "runs") == []


@pytest.mark.soak
def test_an_account_that_may_not_write_what_another_made_is_told_so(shared: Shared) -> None:
    assert shared.by(ANA, "run", umask=0o022).code == 0
    assert shared.by(ANA, "run", "--force", env={VARIABLE: "step sealed:second"}, umask=0o022).code == -9
    for arguments in (("resume", "latest"), ("gc", "--keep", "0"), ("approve", "thing/1", "--reason", "x"), ("run",)):
        done = shared.by(BEN, *arguments)
        assert (done.code, "Traceback" in done.err) == (8, False), (arguments, done.err)
    for arguments in (("show", "latest"), ("verify", "--all"), ("models",), ("history", "thing")):
        done = shared.by(BEN, *arguments)
        assert (done.code, "Traceback" in done.err) == (0, False), (arguments, done.out, done.err)


ASKING = """
import sys
from pathlib import Path
from runner.errors import Refused
from runner.serve.local.protocol import ControlConnection
try:
    ControlConnection(Path(sys.argv[1]), 1)
except Refused as error:
    sys.exit(str(error))
"""


def test_what_serves_a_model_is_changed_by_its_own_account_alone_and_the_other_is_told(shared: Shared) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(shared.folder / CONTROL))
        (shared.folder / CONTROL).chmod(0o600)
        os.chown(shared.folder / CONTROL, pwd.getpwnam(ANA).pw_uid, GROUP)
        listening.listen()
        asking = [sys.executable, "-c", ASKING, str(shared.folder)]
        assert shared.executed(ANA, asking, {}, 0o002).code == 0
        done = shared.executed(BEN, asking, {}, 0o002)
    assert (done.code, f"the number {pwd.getpwnam(ANA).pw_uid}" in done.err) == (1, True), done.err


def test_an_account_without_a_name_is_its_number(shared: Shared) -> None:
    assert shared.by(NAMELESS, "run", "first", env={"LOGNAME": ANA}).code == 0
    assert shared.manifest["started_by"].startswith(f"{NAMELESS}@")


@pytest.mark.parametrize("variable", ["LOGNAME", "USER", "LNAME", "USERNAME", "SUDO_USER"])
def test_no_variable_says_who_somebody_is(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    before = provenance.who()
    monkeypatch.setenv(variable, "bob")
    assert provenance.who() == before
