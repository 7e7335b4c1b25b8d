"""Steps that share a job come to what they come to in jobs of their own."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from account import identities, key
from cloud import BUCKET, SAGEMAKER, RemoteProject, jobs, running
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from support.flow import SETTINGS, Story, write
from support.job_cases import FIELDS, GATE, NEEDS, TOML, Case, executed, made_project, notebook_begun, plain, wait_for
from support.projects import parameters, recorded

from runner.aws.bucket import Bucket
from runner.aws.processing.queue_job import next_order
from runner.aws.processing.step_queue import StepOrder, put_order
from runner.aws.session import Session

TOGETHER = SAGEMAKER + "together = true\n"


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


def mine(cloud: SmallSageMaker, name: str) -> list[str]:
    return [job for job in jobs(cloud) if job.startswith(f"{name}-")]


def described(cloud: SmallSageMaker, job: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.client("sagemaker").describe_processing_job(ProcessingJobName=job)
    return found


def results(project: RemoteProject) -> list[Any]:
    return [
        (step["name"], step["status"], plain({key: step["result"].get(key) for key in FIELDS}, project.folder))
        for step in project.manifest["steps"]
    ]


@pytest.mark.soak
def test_a_run_is_one_job_with_the_results_notebooks_and_cache_of_several(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    apart = RemoteProject(tmp_path / "apart", cloud)
    shared = RemoteProject(tmp_path / "shared", cloud, TOGETHER)
    for project, name in ((apart, "apart"), (shared, "shared")):
        project.folder.mkdir()
        made_project(project, Case(), name)
        mark = len(cloud.calls)
        done = project.runner("run", "--on", "sagemaker", "--json")
        assert (done.code, done.json["verdict"]) == (0, "pass"), done.err
    calls = [call for call in cloud.calls[mark:] if call.access_key == CLIENT_KEY]
    # what is not there is answered 403 to who may list below the prefix only, and a listing tells: one question
    calls = [call for call in calls if "/bundles/" not in str(call.parameters) and call.status != 403]
    polls = sum(call.action in ("DescribeProcessingJob", "GetLogEvents", "DescribeLogStreams") for call in calls)
    assert len(calls) - polls <= 3 * 12, sorted(call.action for call in calls)
    assert (len(mine(cloud, "apart")), mine(cloud, "shared")) == (3, [f"shared-{shared.runs[-1].name}-make-1"])
    assert results(apart) == results(shared)
    assert [executed(apart, step) for step in ("make", "judge")] == [
        executed(shared, step) for step in ("make", "judge")
    ]
    assert (shared.runs[-1] / "steps/make/out/x.txt").read_text() == "one line\n" * 3
    # each step pays for its part of the job, and has its part of the log
    wait_for(lambda: described(cloud, mine(cloud, "shared")[0])["ProcessingJobStatus"] == "Completed")
    job = described(cloud, mine(cloud, "shared")[0])
    whole_s = (job["ProcessingEndTime"] - job["ProcessingStartTime"]).total_seconds()
    parts_s = [step["result"]["remote"]["billed_s"] for step in shared.manifest["steps"]]
    assert 0 < min(parts_s) < sum(parts_s) <= whole_s
    assert re.search(r"\b1 job, ", shared.runner("show", "latest").out)
    assert "runner:" not in (shared.runs[-1] / "steps/judge/job.log").read_text()
    assert shared.runner("verify", "latest").code == 0
    again = shared.runner("run", "--on", "sagemaker", "--json")
    assert [step["status"] for step in again.json["steps"]] == ["cached"] * 3
    assert len(mine(cloud, "shared")) == 1


@pytest.mark.soak
def test_a_step_that_fails_is_the_last_of_its_job_and_resume_goes_on_in_another(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = RemoteProject(tmp_path, cloud, TOGETHER)
    made_project(project, Case(judge=("{}['region']",), toml=""), "fails")
    done = project.runner("run", "--on", "sagemaker")
    assert (done.code, "KeyError" in done.err) == (3, True), done.err
    assert [step["status"] for step in project.manifest["steps"]] == ["succeeded", "failed"]
    (job,) = mine(cloud, "fails")
    wait_for(lambda: described(cloud, job)["ProcessingJobStatus"] == "Failed")
    assert (project.runs[-1] / "steps/make/out/x.txt").exists()
    assert project.executed("judge")["cells"][-1]["outputs"][0]["ename"] == "KeyError"
    assert project.runner("resume", "latest").code == 3
    assert mine(cloud, "fails") == [f"fails-{project.runs[-1].name}-judge-2", job]
    assert project.runner("verify", "latest").code == 0


@pytest.mark.parametrize("point", ["job about to be created", "job created"])
@pytest.mark.soak
def test_a_killed_client_finds_the_job_that_waits_and_orders_each_step_once(
    cloud: SmallSageMaker, tmp_path: Path, point: str
) -> None:
    project = RemoteProject(tmp_path, cloud, TOGETHER)
    name = "killed" if point == "job created" else "unordered"
    made_project(project, Case(), name)
    died = project.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": f"{point}:judge"})
    assert died.code == -signal.SIGKILL
    done = project.runner("resume", "latest", "--json")
    assert (done.code, done.json["status"]) == (0, "succeeded"), done.err
    assert mine(cloud, name) == [f"{name}-{project.runs[-1].name}-make-1"]
    assert {step["attempt"] for step in project.manifest["steps"]} == {1}
    assert project.runner("verify", "latest").code == 0


@pytest.mark.soak
def test_a_step_that_was_to_be_ordered_from_a_job_that_is_over_has_its_own(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = RemoteProject(tmp_path, cloud, TOGETHER)
    made_project(project, Case(toml=""), "over")
    died = project.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job about to be created:judge"})
    assert died.code == -signal.SIGKILL
    (job,) = mine(cloud, "over")
    cloud.client("sagemaker").stop_processing_job(ProcessingJobName=job)
    wait_for(lambda: described(cloud, job)["ProcessingJobStatus"] == "Stopped")
    done = project.runner("resume", "latest", "--json")
    assert (done.code, done.json["status"]) == (0, "succeeded"), done.err
    assert mine(cloud, "over") == [f"over-{project.runs[-1].name}-judge-1", job]
    assert project.runner("verify", "latest").code == 0


SLOWER = ("import pathlib, time\ntime.sleep(3)", "pathlib.Path(folder, 'a').write_text('a')")


@pytest.mark.soak
def test_a_client_that_leaves_ends_the_job_with_the_step_and_resume_follows_that(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = RemoteProject(tmp_path, cloud, TOGETHER)
    made_project(project, Case(judge=(*SLOWER, recorded("score", "0.75"))), "leaves")
    process = project.start("run", "--on", "sagemaker", env=cloud.environment)
    wait_for(lambda: project.runs != [] and project.step("judge")["status"] == "running")
    wait_for(lambda: len(notebook_lines(cloud, mine(cloud, "leaves")[0])) == 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "keep running: judge" in said) == (130, True), said
    (job,) = mine(cloud, "leaves")
    done = project.runner("resume", "latest", "--json")
    assert (done.code, done.json["status"]) == (0, "succeeded"), done.err
    assert described(cloud, job)["ProcessingJobStatus"] == "Completed"
    assert mine(cloud, "leaves") == [f"leaves-{project.runs[-1].name}-after-1", job]
    assert project.step("judge")["result"]["remote"]["name"] == job
    assert project.step("judge")["attempt"] == 1


def notebook_lines(cloud: SmallSageMaker, job: str) -> list[str]:
    """The lines that say that a step begins, once the first cell of a notebook has run."""
    from small_sagemaker.trying import read_log

    if not notebook_begun(cloud, job):
        return []
    return [line for line in read_log(cloud.client("logs"), job) if line.startswith("runner:step ")]


@pytest.mark.soak
def test_stop_ends_the_job_that_the_step_was_ordered_from(cloud: SmallSageMaker, tmp_path: Path) -> None:
    project = RemoteProject(tmp_path, cloud, TOGETHER)
    made_project(project, Case(judge=("import time\ntime.sleep(600)",), toml=""), "halts")
    process = project.start("run", "--on", "sagemaker", env=cloud.environment)
    wait_for(lambda: project.runs != [] and project.step("judge")["status"] == "running")
    (job,) = mine(cloud, "halts")
    wait_for(lambda: len(notebook_lines(cloud, job)) == 2)
    stopped = project.runner("stop", "latest")
    assert stopped.out.splitlines()[0] == f"stopped job {job}"
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait_for(lambda: described(cloud, job)["ProcessingJobStatus"] == "Stopped")
    assert project.step("make")["status"] == "succeeded"


@pytest.mark.soak
def test_a_step_on_another_machine_has_its_own_job_and_the_one_before_does_not_wait(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = RemoteProject(tmp_path, cloud, TOGETHER)
    own = '[steps.judge.sagemaker]\ninstance = "ml.m5.large"\n'
    made_project(project, Case(toml=own + GATE + NEEDS), "other")
    done = project.runner("run", "--on", "sagemaker")
    assert done.code == 0, done.err
    found = {job.removeprefix(f"other-{project.runs[-1].name}-"): described(cloud, job) for job in mine(cloud, "other")}
    assert sorted(found) == ["after-1", "judge-1", "make-1"]
    wait_for(lambda: described(cloud, mine(cloud, "other")[0])["ProcessingJobStatus"] == "Completed")
    make, judge = found["make-1"], found["judge-1"]
    assert make["ProcessingEndTime"] < judge["ProcessingEndTime"]


def test_a_number_is_an_order_or_the_end_for_whoever_puts_it_first(
    cloud: SmallSageMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in cloud.environment.items():
        monkeypatch.setenv(variable, value)
    cloud.attach(identities(Project="orders", Bucket=BUCKET, Prefix="orders", Model="orders"))
    bucket, order = Bucket(Session(), BUCKET, "orders/runs/"), StepOrder(step="judge", attempt="a/")
    assert put_order(bucket, "q/", 1, order)
    assert put_order(bucket, "q/", 1, order)  # a lost reply
    assert not put_order(bucket, "q/", 1, StepOrder())
    assert next_order(bucket, "q/", 1, threading.Event(), 0.0) == order
    assert next_order(bucket, "q/", 2, threading.Event(), 0.0) == StepOrder()
    assert "no step was ordered for 0 s" in capsys.readouterr().out
    assert not put_order(bucket, "q/", 2, order)


# In a SageMaker Pipeline


@pytest.mark.soak
def test_four_notebooks_of_a_pipeline_are_one_job_that_pins_judges_and_registers(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    told = Story(RemoteProject(tmp_path, cloud, SETTINGS.replace("[sagemaker]", "[sagemaker]\ntogether = true")), cloud)
    write(told.project)
    assert told.project.here("pipeline", "push").code == 0
    told.start("first")
    told.follow("first")
    assert told.steps("first") == {"data": "ran", "gate-passed": "ran"}
    (job,) = [step["job"] for step in told.seen["first"]["steps"] if step["job"]]
    told.start_elsewhere("again")
    told.follow("again")
    assert told.steps("again") == {"data": "cached", "gate-passed": "ran"}
    first, again = told.manifest("first"), told.manifest("again")
    assert [step["status"] for step in first["steps"]] == ["succeeded"] * 4
    assert {step["result"]["remote"]["name"].lower() for step in first["steps"]} == {job.lower()}
    assert (first["verdict"]["outcome"], first["model_version"]["version"]) == ("pass", 1)
    assert [(step["status"], step["from_run"]) for step in again["steps"]] == [("cached", told.runs["first"])] * 4
    assert again["model_version"] == first["model_version"]
    # a gate that says no ends the job well, before the step that needs it, and a failing step keeps those before it
    told.start("worse", "-p", "evaluate.score=0.1")
    told.start("broken", "-p", "evaluate.sound=false")
    told.follow("worse", "broken")
    assert told.steps("worse") == {"data": "ran", "gate-passed": "ran", "gate-failed": "Failed"}
    assert "evaluate.score is 0.1" in told.seen["worse"]["steps"][-1]["reason"]
    assert [step["status"] for step in told.manifest("worse")["steps"]] == ["cached", "cached", "succeeded", "skipped"]
    assert told.steps("broken") == {"data": "Failed"}
    assert [step["status"] for step in told.manifest("broken")["steps"]] == ["cached", "cached", "failed", None]
    assert told.state("broken", "evaluate")["result"]["error"]["ename"] == "AssertionError"
    for name in told.started:
        verified = told.project.here("verify", told.runs[name])
        assert verified.code == 0, verified.out + verified.err
    fetched = told.project.here("fetch", told.runs["again"])
    assert fetched.code == 0, fetched.err
    # a result that was removed is made again, and what comes of it is known by its content
    gone = f"team/out/runs/{told.seen['first']['execution']}/data/result.json"
    cloud.client("s3").delete_object(Bucket=BUCKET, Key=gone)
    told.start("removed")
    told.follow("removed")
    assert [step["status"] for step in told.manifest("removed")["steps"]] == ["succeeded", *["cached"] * 3]


def test_a_dry_run_says_what_each_way_takes_and_costs(cloud: SmallSageMaker, tmp_path: Path) -> None:
    said = {}
    for settings in (SAGEMAKER, TOGETHER):
        project = RemoteProject(tmp_path, cloud, settings)
        made_project(project, Case(toml=""), "ways")
        project.toml(TOML.replace("tiny", "ways").replace("outputs = ", "timeout_s = 900\noutputs = "))
        done = project.runner("run", "--on", "sagemaker", "--dry-run")
        assert done.code == 0, done.err
        said[settings] = done.out
        ways = json.loads(project.runner("run", "--on", "sagemaker", "--dry-run", "--json").out)["ways"]
        assert [(way["name"], way["jobs"], way["chosen"]) for way in ways] == [
            ("apart", {"ml.m5.xlarge": 2}, settings is SAGEMAKER),
            ("together", {"ml.m5.xlarge": 1}, settings is TOGETHER),
        ]
        # 3 attempts of 900 s for each step, and 900 s around each job: 6 of them, or 5
        hour = 0.23
        assert [way["ceiling_usd"] for way in ways] == [
            pytest.approx(hour * (6 * 900 + 6 * 900) / 3600, abs=0.01),
            pytest.approx(hour * (6 * 900 + 5 * 900) / 3600, abs=0.01),
        ]
    assert re.search(r"apart +2 jobs \(ml\.m5\.xlarge\), at most 0\.69 USD +together = false$", said[TOGETHER], re.M), (
        said[TOGETHER]
    )
    assert re.search(r"together +1 job \(ml\.m5\.xlarge\), at most 0\.63 USD +\[sagemaker\] together = true$",
                     said[SAGEMAKER], re.M), said[SAGEMAKER]  # fmt: skip
    assert not mine(cloud, "ways")


def test_parameters_that_nobody_could_give_are_not_taken_for_a_machine(tmp_path: Path) -> None:
    from runner.aws.settings import one_machine
    from runner.pipeline.plan import plan

    project = RemoteProject(tmp_path, None, TOGETHER)  # type: ignore[arg-type]
    project.write("nb/x.ipynb", parameters("x: int = 1"), "print(x)")
    steps = "".join(f'[steps.{name}]\nnotebook = "nb/x.ipynb"\n' for name in "abcd")
    own = "[steps.b.sagemaker]\ntimeout_s = 7\n[steps.c.sagemaker]\ntogether = false\n[steps.d.sagemaker]\nvolume_gb = 31\n"
    made = plan(project.toml(f'name = "fit"\n{steps}{own}')).pipeline
    assert [one_machine(made, "a", other) for other in "abcd"] == [True, True, False, False]


@pytest.mark.soak
def test_an_order_put_between_the_two_questions_for_it_is_read(
    cloud: SmallSageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may list below the prefix only is refused what is not there, and asks for a list, in which it may be by then."""
    RemoteProject(tmp_path, cloud).toml('name = "between"\n')
    for name, value in {**cloud.environment, **key("between-jobs")}.items():
        monkeypatch.setenv(name, value)
    seen, order = Bucket(Session(), BUCKET, "team/runs/between/"), "queue/1.json"
    assert (seen.get(order), seen.size(order)) == (None, None)
    for read, expected in ((seen.get, b"{}"), (seen.size, 2)):
        cloud.client("s3").delete_object(Bucket=BUCKET, Key=seen.prefix + order)
        fault = cloud.faults.add("ListObjectsV2", delay_s=1.5)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(read, order)
            wait_for(lambda fault=fault: cloud.faults.hits(fault) == 1)  # type: ignore[misc]
            cloud.client("s3").put_object(Bucket=BUCKET, Key=seen.prefix + order, Body=b"{}")
            assert found.result() == expected
