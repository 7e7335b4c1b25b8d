"""Versions at a local target: only what may be served is, nothing is lost while they change, and everything is on record."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support.commands import Done, command, environment
from support.models import records, trained
from support.places import RUN, Caller, Place, free_ports, load, remade, wait_for
from support.projects import children_of

import runner.errors
import runner.model
from runner.content import artifact
from runner.failpoint import VARIABLE
from runner.model.deployment import FAILPOINTS
from runner.model.files import check_format
from runner.model.served import served_at
from runner.model.versions import NewVersion
from runner.run import provenance

STRICT = 'requires = "staging"\nsecond_approval = true\n'
ME = provenance.who()  # whom every command is run by


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Nothing is lost


def keeps_on(place: Place, seconds: float, clients: int) -> None:
    assert place.deploy(1, "production").code == 0
    began, rounds = time.monotonic(), 0
    with load(place, "production", clients) as callers:
        while time.monotonic() - began < seconds:
            assert place.deploy(2, "production").code == 0
            assert place.runner("rollback", "production").code == 0
            rounds += 1
        time.sleep(0.5)
    assert not [failure for caller in callers for failure in caller.failures]
    answers = {answer for caller in callers for answer in caller.answers}
    assert {name for name, _ in answers} == {"tiny/1", "tiny/2"}
    for name, prediction in answers:  # each answer is of the version that it names
        same = [score for other, score in answers if other == name]
        assert same == [prediction]
    assert place.told == [(1, "deployed"), *[(2, "deployed"), (1, "rolled back")] * rounds]
    assert sum(len(caller.answers) for caller in callers) > 20 * seconds


def test_no_request_fails_while_versions_change(place: Place) -> None:
    keeps_on(place, 2, 4)


@pytest.mark.soak
def test_no_request_fails_in_a_minute_of_changes(place: Place) -> None:
    keeps_on(place, 60, 16)


@pytest.mark.soak
def test_no_request_fails_while_deployments_are_killed_at_random_moments(place: Place) -> None:
    assert place.deploy(1).code == 0
    with load(place, "staging", 8) as callers:
        for number in range(30):
            process = place.start("deploy", f"tiny/{2 - number % 2}", "--to", "staging")
            time.sleep(random.uniform(0.1, 2.0))
            process.kill()
            process.communicate()
    assert not [failure for caller in callers for failure in caller.failures]
    done = place.deploy(2)
    assert done.code == 0, done.err
    assert place.scored() == "tiny/2"
    states = [event.data["deployment"] for event in place.events if "target" in event.data]
    assert len(states) == len(set(states))
    wait_for(lambda: len(list(children_of(place.supervisor()))) == 2)


@pytest.mark.soak
def test_a_connection_that_rests_while_versions_change_is_answered(place: Place) -> None:
    assert place.deploy(1).code == 0
    caller = Caller(place.ports["staging"], place.sample(1)[0])
    assert caller.once()[0] == "tiny/1"
    assert place.deploy(2).code == 0
    time.sleep(2)  # longer than the old version waits for new requests
    assert caller.once()[0] == "tiny/1"
    assert caller.once()[0] == "tiny/2"
    caller.close()
    assert place.runner("undeploy", "staging").code == 0


# Only what may be served is


def served_still(place: Place, done: Done, *words: str) -> None:
    """The command was refused with these words, and tiny/1 goes on."""
    assert done.code == 8, done.err
    for word in words:
        assert word in done.err
    assert place.scored() == "tiny/1"
    assert place.told == [(1, "deployed")]


def spoil(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def coded(code: str) -> Callable[[Path], None]:
    """A model whose features are made by this code."""

    def change(folder: Path) -> None:
        raw = records()
        source = folder.parent / "features.py"
        source.write_text("def transform(frame):\n    return frame\n")
        runner.model.save(folder, trained(raw), raw, target="left", positive="yes", code=source)
        source.write_text(code + source.read_text())
        said = json.loads((folder / "signature.json").read_text())
        said["code_sha256"] = artifact(source, name=source.name).sha256
        (folder / "signature.json").write_text(json.dumps(said))
        (folder / "features.py").write_bytes(source.read_bytes())

    return change


def test_only_an_approved_version_is_deployed(place: Place) -> None:
    assert place.deploy(1).code == 0
    served_still(place, place.deploy(3), "tiny/3 is pending")
    place.registry.decide("tiny", 2, "rejected", who="ben@desk", why="wrong month")
    served_still(place, place.deploy(2), "tiny/2 is rejected")
    served_still(place, place.deploy(2, "staging", "--dry-run"), "tiny/2 is rejected")


def test_a_model_that_was_altered_is_not_deployed(place: Place) -> None:
    assert place.deploy(1).code == 0
    trees = (place.model(2) / "model.ubj").read_bytes()
    spoil(place.model(2) / "model.ubj", trees[:-9] + bytes([trees[-9] ^ 1]) + trees[-8:])
    served_still(place, place.deploy(2), "tiny/2 was altered", "altered or damaged")
    shutil.rmtree(place.model(2))
    served_still(place, place.deploy(2), "altered or damaged")


@pytest.mark.soak
def test_a_model_that_was_altered_while_it_serves_is_not_loaded_again(place: Place) -> None:
    assert place.deploy(1).code == 0
    trees = place.model(1) / "model.ubj"
    sound = trees.read_bytes()
    spoil(trees, (place.model(2) / "model.ubj").read_bytes())
    (found,) = place.deployments("staging")
    os.kill(found["process"], signal.SIGKILL)
    wait_for(lambda: place.log().count("tiny/1 was altered") >= 2)
    done = place.runner("deployments", "staging")
    assert done.code == 4
    assert "unhealthy" in done.out
    spoil(trees, sound)
    wait_for(lambda: place.runner("deployments", "staging").code == 0)
    assert place.scored() == "tiny/1"


def test_a_pickle_is_not_approved_not_deployed_and_not_loaded(place: Place) -> None:
    assert place.deploy(1).code == 0
    remade(place, 4, lambda folder: spoil(folder / "model.ubj", pickle.dumps({"trees": 1})))
    with pytest.raises(runner.errors.Refused, match="is a pickle"):  # what `runner approve` asks
        check_format(place.model(4))
    served_still(place, place.deploy(4), "is a pickle")
    done = place.runner("serve", "tiny/4", "--port", str(free_ports(1)[0]))
    assert done.code == 8
    assert "is a pickle" in done.err


def test_a_version_that_does_not_answer_as_recorded_is_not_switched_to(place: Place) -> None:
    def other_answer(folder: Path) -> None:
        said = json.loads((folder / "signature.json").read_text())
        spoil(folder / "signature.json", json.dumps({**said, "sample_prediction": 0.123}).encode())

    assert place.deploy(1).code == 0
    remade(place, 4, other_answer)
    served_still(place, place.deploy(4), "The sample record scores", "tiny/1 goes on")


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\nos._exit(3)\n", "its process ended with status 3"),
        ("raise OSError('no such table')\n", "no such table"),
    ],
)
def test_a_version_that_cannot_start_is_not_switched_to(place: Place, code: str, said: str) -> None:
    assert place.deploy(1).code == 0
    remade(place, 4, coded(code))
    served_still(place, place.deploy(4), said)


@pytest.mark.soak
def test_where_no_process_can_be_started_the_one_that_serves_goes_on(place: Place) -> None:
    """As where the interpreter is gone with its environment, or the machine has no process or memory to spare."""
    environment_ = place.folder / "environment"
    (environment_ / "bin").mkdir(parents=True)
    shutil.copyfile(Path(sys.prefix) / "pyvenv.cfg", environment_ / "pyvenv.cfg")
    (environment_ / "lib").symlink_to(Path(sys.prefix) / "lib")
    interpreter = environment_ / "bin" / Path(sys.executable).name
    interpreter.symlink_to(Path(sys.executable).resolve())
    started = [str(interpreter), *command("deploy", "tiny/1", "--to", "staging")[1:]]
    subprocess.run(started, cwd=place.folder, env=environment(), check=True, capture_output=True)
    interpreter.unlink()
    served_still(place, place.deploy(2), "No process can be started for tiny/2", "No such file", "tiny/1 goes on")

    (found,) = place.deployments("staging")
    os.kill(found["process"], signal.SIGKILL)
    wait_for(lambda: place.log().count("the version that serves cannot be started") >= 2)
    served = place.deploy(2)
    assert (served.code, "tiny/1 goes on" in served.err, "tiny/1 is unhealthy" in served.err) == (8, False, True)
    interpreter.symlink_to(Path(sys.executable).resolve())
    wait_for(lambda: place.runner("deployments", "staging").code == 0)
    assert place.scored() == "tiny/1"


@pytest.mark.soak
def test_a_version_whose_code_prints_is_served(place: Place) -> None:
    remade(place, 4, coded("print('loaded')\n"))
    done = place.deploy(4, "staging", "--json")
    assert (done.code, done.json["version"]) == (0, 4)
    assert "loaded" in place.log()


# What a target can ask for


def strict(place: Place) -> None:
    file = place.folder / "pipeline.toml"
    file.write_text(file.read_text() + STRICT)


def test_production_can_require_staging_and_a_second_approval(place: Place) -> None:
    strict(place)
    assert place.deploy(1, "staging").code == 0
    done = place.deploy(2, "production")
    assert done.code == 8
    assert "runner deploy tiny/2 --to staging" in done.err
    done = place.deploy(1, "production")
    assert done.code == 8
    assert "second approval for production, by somebody else than ben@desk" in done.err

    approve = ("approve", "tiny/1", "--to", "production", "--reason")
    remade(place, 4, approver=ME)
    for posing in ({}, {"LOGNAME": "cleo", "USER": "cleo", "LNAME": "cleo", "USERNAME": "cleo", "SUDO_USER": "cleo"}):
        done = place.runner("approve", "tiny/4", "--to", "production", "--reason", "fine", env=posing)
        assert (done.code, "somebody else" in done.err) == (8, True), done.err
    assert place.runner(*approve, " ").code == 2
    assert place.runner("approve", "tiny/1", "--to", "staging", "--reason", "x").code == 2
    done = place.runner("approve", "tiny/3", "--to", "production", "--reason", "x")
    assert (done.code, "pending" in done.err) == (8, True)
    done = place.runner(*approve, "as good in staging")
    assert (done.code, done.out.splitlines()[0]) == (0, "model tiny/1 approved for production")
    assert place.runner(*approve, "once more").code == 8
    assert place.deploy(1, "production").code == 0
    assert place.told == [(1, "deployed"), (1, "approved for production"), (1, "deployed")]
    assert {row["target"]: row["model"] for row in place.deployments()} == {"staging": "tiny/1", "production": "tiny/1"}


def test_who_may_decide_holds_for_the_second_approval_too(place: Place) -> None:
    strict(place)
    toml = (place.folder / "pipeline.toml").read_text()
    for by, code in (("somebody", 8), (ME.partition("@")[0], 0)):
        place.toml(f'{toml}[approval]\nby = ["{by}"]\n')
        done = place.runner("approve", "tiny/1", "--to", "production", "--reason", "fine", env={"LOGNAME": "somebody"})
        assert done.code == code, done.err


def test_whoever_started_the_run_may_be_kept_from_the_second_approval(place: Place) -> None:
    strict(place)
    with open(place.folder / "pipeline.toml", "a") as file:
        file.write("[approval]\nnot_starter = true\n")
    remade(place, 4, starter=ME)
    approve = ("--to", "production", "--reason", "fine")
    done = place.runner("approve", "tiny/4", *approve, env={"LOGNAME": "cleo"})
    assert (done.code, "started the run of tiny/4" in done.err) == (8, True)
    assert place.runner("approve", "tiny/1", *approve).code == 0


def test_who_decided_in_studio_does_not_give_the_second_approval(place: Place) -> None:
    strict(place)
    place.registry.decide("tiny", 3, "approved", who=f"external ({ME.partition('@')[0]})", why="in Studio")
    remade(place, 4, approver="external (cleo)")
    approve = ("--to", "production", "--reason", "fine")
    assert place.runner("approve", "tiny/3", *approve).code == 8
    assert place.runner("approve", "tiny/4", *approve).code == 0


def test_a_version_that_is_revoked_while_it_serves_is_pointed_out(place: Place) -> None:
    assert place.deploy(1).code == 0
    done = place.runner("reject", "tiny/1", "--reason", "wrong month")
    assert (done.code, "  staging serves it still: runner undeploy staging" in done.out.splitlines()) == (0, True)
    done = place.runner("deployments")
    assert (done.code, "tiny/1 is rejected since it was deployed: runner undeploy staging" in done.out) == (4, True)


@pytest.mark.soak
def test_a_release_goes_on_where_it_stopped(place: Place) -> None:
    strict(place)
    remade(place, 4, approver=ME)
    release = ("release", "tiny/4", "--reason", "ticket 41")
    done = place.runner(*release, "--dry-run", "--json")
    assert done.json["steps"] == [
        "deploy tiny/4 to staging",
        "approve tiny/4 for production",
        "deploy tiny/4 to production",
    ]
    assert place.told == []
    done = place.runner(*release, "--yes")
    assert done.code == 8
    assert "✓ deploy tiny/4 to staging" in done.out
    assert "somebody else has to" in done.err
    production = {"target": "production"}
    place.registry.record("tiny", 4, "approved for production", who="cleo@desk", why="as good", data=production)
    done = place.runner(*release, "--yes")
    assert done.code == 0, done.err
    assert [event.kind for event in place.events if "target" in event.data] == [
        "deployed",
        "approved for production",
        "deployed",
    ]
    assert "released already" in place.runner(*release, "--yes").out


@pytest.mark.soak
def test_a_release_asks_before_each_step(place: Place) -> None:
    strict(place)

    def released(answers: str) -> tuple[int, str]:
        release = command("release", "tiny/1", "--reason", "x")
        env = environment()
        done = subprocess.run(
            release, cwd=place.folder, env=env, input=answers, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stderr

    code, err = released("")
    assert (code, "deploy tiny/1 to staging?" in err, place.told) == (130, True, [])  # nobody answers
    code, err = released("y\nn\n")
    assert (code, "Stopped before it would approve tiny/1 for production" in err) == (8, True)
    assert place.told == [(1, "deployed")]
    code, err = released("y\ny\n")
    assert (code, "deploy tiny/1 to staging" in err) == (0, False)
    assert place.told == [(1, "deployed"), (1, "approved for production"), (1, "deployed")]


def test_a_release_has_one_way_to_go(place: Place) -> None:
    done = place.runner("release", "tiny/1", "--reason", "x", "--yes")
    assert (done.code, "Which target is the last one? staging, production" in done.err) == (2, True)
    done = place.runner("release", "tiny/1", "--reason", "x", "--yes", "--to", "nowhere")
    assert (done.code, "There is no target 'nowhere'" in done.err) == (2, True)
    place.registry.decide("tiny", 1, "rejected", who="ben@desk", why="wrong month")
    done = place.runner("release", "tiny/1", "--reason", "x", "--yes", "--to", "staging")
    assert (done.code, "was rejected by ben@desk: wrong month" in done.err) == (8, True)


# Deployments that die, and several at once


@pytest.mark.parametrize("at", [FAILPOINTS[0], *(pytest.param(at, marks=pytest.mark.soak) for at in FAILPOINTS[1:])])
def test_a_deployment_killed_anywhere_leaves_a_version_serving_and_the_next_one_goes_on(place: Place, at: str) -> None:
    assert place.deploy(1).code == 0
    assert place.deploy(2, env={VARIABLE: at}).code == -signal.SIGKILL
    switched = FAILPOINTS.index(at) >= FAILPOINTS.index("target switched")
    assert place.scored() == ("tiny/2" if switched else "tiny/1")
    told = [(1, "deployed"), *([(2, "deployed")] if switched else [])]
    (found,) = place.deployments("staging")  # writes the event that is missing
    assert (found["model"], place.told) == ("tiny/2" if switched else "tiny/1", told)
    assert place.deploy(2).code == 0
    assert place.told == [*told, (2, "deployed")]
    assert place.scored() == "tiny/2"
    wait_for(lambda: len(list(children_of(place.supervisor()))) == 2)  # nothing of the dead one is left


@pytest.mark.soak
def test_a_first_deployment_killed_before_it_serves_leaves_nothing(place: Place) -> None:
    assert place.deploy(1, env={VARIABLE: "target ready"}).code == -signal.SIGKILL
    assert place.deployments("staging")[0]["model"] is None
    assert place.deploy(2).code == 0
    assert place.told == [(2, "deployed")]


@pytest.mark.soak
def test_of_two_deployments_at_once_one_is_refused(place: Place) -> None:
    remade(place, 4, coded("import time\ntime.sleep(4)\n"))
    assert place.deploy(1).code == 0
    first = place.start("deploy", "tiny/4", "--to", "staging")
    wait_for(lambda: "tiny/4 is started" in place.log())
    for refused in (["deploy", "tiny/2", "--to", "staging"], ["rollback", "staging"], ["undeploy", "staging"]):
        done = place.runner(*refused)
        assert done.code == 8
        assert "is being changed just now" in done.err
    assert place.scored() == "tiny/1"
    assert place.deploy(2, "production").code == 0  # another target is nobody's business
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert place.scored() == "tiny/4"
    assert sorted(place.told) == [(1, "deployed"), (2, "deployed"), (4, "deployed")]


@pytest.mark.soak
def test_what_a_killed_deployment_was_bringing_up_ends(place: Place) -> None:
    remade(place, 4, coded("import time\ntime.sleep(60)\n"))
    assert place.deploy(1).code == 0
    process = place.start("deploy", "tiny/4", "--to", "staging")
    wait_for(lambda: "tiny/4 is started" in place.log())
    process.kill()
    process.communicate()
    wait_for(lambda: "whoever brought it has left" in place.log())
    assert place.deploy(2).code == 0
    assert place.scored() == "tiny/2"


# Processes that die


@pytest.mark.soak
def test_a_worker_that_dies_is_replaced(place: Place) -> None:
    assert place.deploy(1).code == 0
    (found,) = place.deployments("staging")
    (worker,) = children_of(found["process"])
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: list(children_of(found["process"])) not in ([], [worker]))
    assert place.scored() == "tiny/1"
    os.kill(found["process"], signal.SIGKILL)
    wait_for(lambda: "started again" in place.log() and place.runner("deployments", "staging").code == 0)
    assert place.scored() == "tiny/1"
    assert place.told == [(1, "deployed")]


@pytest.mark.soak
def test_a_target_whose_process_was_killed_is_down_until_it_is_restarted(place: Place) -> None:
    assert place.deploy(1).code == 0
    before = place.deployments("staging")[0]
    os.kill(place.supervisor(), signal.SIGKILL)
    done = place.runner("deployments", "staging", "--json")
    assert done.code == 4
    assert (done.json[0]["health"], "runner deployments --restart" in done.json[0]["message"]) == ("down", True)
    after = place.deployments("staging", "--restart")[0]
    assert {key: after[key] for key in ("model", "since", "by", "health")} == {
        key: before[key] for key in ("model", "since", "by", "health")
    }
    assert place.scored() == "tiny/1"
    assert place.told == [(1, "deployed")]

    os.kill(place.supervisor(), signal.SIGKILL)
    place.registry.decide("tiny", 1, "rejected", who="ben@desk", why="wrong month")
    done = place.runner("deployments", "staging", "--restart")
    assert (done.code, "tiny/1 is rejected" in done.err) == (8, True)
    assert place.deploy(2).code == 0
    assert place.scored() == "tiny/2"


@pytest.mark.soak
def test_a_target_told_to_end_answers_first_and_can_be_restarted(place: Place) -> None:
    assert place.deploy(1).code == 0
    os.kill(place.supervisor(), signal.SIGTERM)  # as when the machine is shut down
    wait_for(lambda: '"ended"' in place.log())
    assert place.deployments("staging", "--restart")[0]["health"] == "serving"


# Back, away, and on record


def test_a_rollback_goes_back_to_what_is_approved_still(place: Place) -> None:
    done = place.runner("rollback", "staging")
    assert (done.code, "Nothing is served at staging" in done.err) == (8, True)
    place.registry.decide("tiny", 3, "approved", who="ben@desk", why="reviewed")
    assert place.deploy(1).code == 0
    assert place.runner("rollback", "staging").code == 8  # there is nothing before
    for version in (2, 3):
        assert place.deploy(version).code == 0
    for version, serving in ((2, {}), (3, {"staging": "runner rollback staging"})):
        done = place.runner("reject", f"tiny/{version}", "--reason", "wrong month", "--json")
        assert (done.code, done.json["served_at"]) == (0, serving)
    done = place.runner("rollback", "staging", "--dry-run")
    assert (done.code, done.out.splitlines()[0]) == (0, "staging would go back to tiny/1; nothing was done:")
    done = place.runner("rollback", "staging", "--reason", "too slow", "--json")
    assert (done.json["version"], done.json["kind"], done.json["replaced"]) == (1, "rolled back", "tiny/3")
    assert place.scored() == "tiny/1"
    assert place.runner("rollback", "staging").code == 8


@pytest.mark.soak
def test_an_undeployed_target_is_free(place: Place) -> None:
    assert place.runner("undeploy", "staging").code == 8
    assert place.deploy(1).code == 0
    pid = place.supervisor()
    assert place.runner("undeploy", "staging", "--dry-run").code == 0
    assert place.scored() == "tiny/1"
    done = place.runner("undeploy", "staging", "--reason", "done with it")
    assert (done.code, done.out) == (0, "tiny/1 is not served at staging any more\n")
    wait_for(lambda: not running(pid))
    with socket.create_server(("127.0.0.1", place.ports["staging"])):
        pass
    assert place.told == [(1, "deployed"), (1, "removed")]
    assert place.deployments("staging")[0]["model"] is None
    assert place.runner("undeploy", "staging").code == 8
    assert place.deploy(2).code == 0
    done = place.runner("rollback", "staging")
    assert (done.code, "Since staging last served nothing, none" in done.err) == (8, True), done.err
    os.kill(place.supervisor(), signal.SIGKILL)
    assert place.runner("undeploy", "staging").code == 0  # also where the process is gone
    assert place.told[-1] == (2, "removed")


def test_a_dry_run_starts_and_writes_nothing(place: Place) -> None:
    done = place.deploy(1, "staging", "--dry-run")
    assert done.code == 0
    assert f"start a process at http://127.0.0.1:{place.ports['staging']}" in done.out
    assert place.told == []
    assert not (place.folder / "runs" / "targets").exists()


@pytest.mark.soak
def test_the_auditor_is_told_what_was_served_when(place: Place) -> None:
    assert place.deploy(1, "production", "--reason", "ticket 41").code == 0
    assert place.deploy(2, "production").code == 0
    assert place.runner("undeploy", "production").code == 0
    assert place.deploy(1, "staging").code == 0
    at = [event.data["since"] for event in place.events if "target" in event.data]
    told = []
    for moment in ("2020-01-01T00:00:00.000Z", *at[:3]):
        done = place.runner("history", "tiny", "--at", moment, "--target", "production", "--json").json
        told.append(done["served"] and done["served"]["version"])
        found = served_at(place.events, "production", moment)
        assert (found.version if found else None) == told[-1]
    assert told == [None, 1, 2, None]
    lines = place.runner("history", "tiny", "--at", at[0], "--target", "production").out
    assert "production served tiny/1" in lines
    for word in ("ticket 41", "ben@desk", RUN.format(1), place.registry.get("tiny", 1).sha256):
        assert word in lines
    rows = place.runner("history", "tiny", "--target", "production").out.splitlines()
    assert [row.split("  ")[2].strip() for row in rows[1:]] == ["deployed (production)"] * 2 + ["removed (production)"]


@pytest.mark.soak
def test_a_target_that_changes_its_model_ends_the_other_models_story(place: Place) -> None:
    other = msgspec.structs.replace(place.registry.get("tiny", 1), name="other")
    place.registry.register(NewVersion(**{name: getattr(other, name) for name in NewVersion.__struct_fields__}))
    place.registry.decide("other", 1, "approved", who="ben@desk", why="reviewed")
    assert place.deploy(1).code == 0
    assert place.runner("deploy", "other/1", "--to", "staging").code == 0
    assert place.told == [(1, "deployed"), (1, "removed")]
    assert served_at(place.events, "staging", "9999") is None
    assert place.runner("rollback", "staging").code == 0
    assert place.scored() == "tiny/1"
    assert [event.kind for event in place.registry.events("other")][2:] == ["deployed", "removed"]


# Where it is served


def test_an_address_that_is_taken_is_refused(place: Place) -> None:
    with socket.create_server(("127.0.0.1", place.ports["staging"])):
        done = place.deploy(1)
    assert done.code == 8
    assert "Address already in use. Free it, or write another `port` for this target in pipeline.toml." in done.err
    assert "--port" not in done.err
    assert place.deploy(1).code == 0


@pytest.mark.soak
def test_a_target_that_moves_has_to_be_undeployed_first(place: Place) -> None:
    assert place.deploy(1).code == 0
    file, (port,) = place.folder / "pipeline.toml", free_ports(1)
    file.write_text(file.read_text().replace(str(place.ports["staging"]), str(port)))
    served_still(place, place.deploy(2), "runner undeploy staging")
    assert place.runner("undeploy", "staging").code == 0
    place.ports["staging"] = port
    assert place.deploy(2).code == 0
    assert place.scored() == "tiny/2"


def test_a_target_that_others_can_reach_needs_a_token(place: Place) -> None:
    file = place.folder / "pipeline.toml"
    file.write_text(file.read_text().replace("workers = 1", 'workers = 1\nhost = "0.0.0.0"'))
    done = place.deploy(1)
    assert (done.code, "a token is needed" in done.err) == (2, True)
    assert place.deploy(1, env={"RUNNER_TOKEN": "secret"}).code == 0
    assert place.deployments("staging")[0]["health"] == "serving"
    caller = Caller(place.ports["staging"], place.sample(1)[0])
    with pytest.raises(AssertionError, match="401"):
        caller.once()
    caller.close()
    assert "secret" not in json.dumps(place.state())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[targets.a]\nkind = "lokal"', 'targets.a.kind is needed: "local" or "sagemaker".'),
        ('[targets.a]\nkind = "local"\nport = 70000', "targets.a.port is 70000"),
        ('[targets.a]\nkind = "local"\ninstance = "ml.m5.large"', "targets.a.instance is not a key where kind is 'local'"),
        ('[targets.a]\nkind = "sagemaker"\nport = 80', "targets.a.port is not a key where kind is 'sagemaker'"),
        ('[targets.a]\nkind = "local"\nrequires = "prodution"', "there is no target `prodution`; did you mean `production`?"),
        ('[targets.a]\nkind = "local"\nrequires = "a"', "a → a goes round in a circle"),
        ('[targets.a]\nkind = "local"\nhots = "x"', "targets.a.hots is not a key where kind is 'local'; did you mean `host`?"),
        ('[targets.a]\nkind = "sagemaker"\nserverless = {}\ninstance = "x"', "serverless has no instances"),
    ],
)  # fmt: skip
def test_a_target_that_makes_no_sense_is_named(place: Place, lines: str, said: str) -> None:
    with open(place.folder / "pipeline.toml", "a") as file:
        file.write(lines)
    done = place.runner("deployments")
    assert done.code == 2
    assert said in done.err


def test_a_target_that_is_not_there_is_named_with_those_that_are(place: Place) -> None:
    done = place.deploy(1, "prodution")
    assert (done.code, "did you mean `production`?" in done.err) == (2, True)
