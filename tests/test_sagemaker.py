"""A step that runs as a SageMaker processing job comes to what it comes to here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from account import identities
from cloud import BUCKET, RemoteProject, jobs, running
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from small_sagemaker.faults import LOST_REPLY
from support.commands import Done
from support.job_cases import (
    FIELDS,
    GATE,
    NEEDS,
    SLOW,
    Case,
    executed,
    made_project,
    notebook_begun,
    plain,
    wait_for,
)
from support.projects import Project, parameters, recorded
from support.web import serving

from runner.failpoint import SAGEMAKER_NAMES, VARIABLE


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """No fault of one test reaches the next."""
    yield
    if "cloud" in request.fixturenames:
        request.getfixturevalue("cloud").faults.clear()


@pytest.fixture
def far(cloud: SmallSageMaker, tmp_path: Path) -> RemoteProject:
    """A project of its own name, so that no two tests' jobs have one name."""
    return RemoteProject(tmp_path, cloud, sources=("arn:aws:s3:::elsewhere", "arn:aws:s3:::elsewhere/*"))


CASES = {
    "success": Case(),
    "failing cell": Case(make=("print('before')", "{}['region']", "print('after')"), code=3),
    "stopped early": Case(make=("import sys; sys.exit(0)",), code=3),
    "dead kernel": Case(make=("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",), code=6),
    "time-out of a cell": Case(make=(SLOW,), toml=GATE.replace("[[gate]]", "[steps.make.x]\n[[gate]]"), code=6),
    "missing output": Case(make=("print(number)",), code=3),
    "gate fail": Case(judge=("open(folder + '/a', 'w').write('a')", recorded("score", "0.25")), code=4),
    "gate in error": Case(judge=("open(folder + '/a', 'w').write('a')",), code=5),
    "gate inconclusive": Case(
        judge=(
            "open(folder + '/a', 'w').write('a')",
            "from runner.scraps import metric\nmetric('score', 0.6, low=0.4, high=0.8)",
        ),
        toml=GATE + "confident = true\n" + NEEDS,
        code=5,
    ),
}
CASES["time-out of a cell"] = Case(make=(SLOW,), toml="", code=6)


def made(project: Project, case: Case, name: str) -> Done:
    made_project(project, case, name)
    return project.runner("run", "--json", *(["--on", "sagemaker"] if isinstance(project, RemoteProject) else []))


LONG = ("dead kernel", "missing output", "stopped early", "time-out of a cell", "gate in error", "gate inconclusive")


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name in LONG)) for name in CASES])
def test_a_step_comes_to_the_same_here_and_there(name: str, far: RemoteProject, tmp_path_factory: Any) -> None:
    case = CASES[name]
    near = Project(tmp_path_factory.mktemp("near"))
    here, there = made(near, case, "same"), made(far, case, "same" + name.replace(" ", ""))
    assert (here.code, there.code) == (case.code, case.code), there.err
    mine, theirs = here.json, there.json
    assert (theirs["status"], theirs["verdict"], theirs["metrics"]) == (
        mine["status"],
        mine["verdict"],
        mine["metrics"],
    )
    for one, other in zip(near.manifest["steps"], far.manifest["steps"], strict=True):
        assert (one["name"], one["status"]) == (other["name"], other["status"])
        if one["result"] is None:
            assert other["result"] is None
            continue
        results = [plain({key: step["result"].get(key) for key in FIELDS}, project.folder)
                   for step, project in ((one, near), (other, far))]  # fmt: skip
        assert results[0] == results[1]
        notebooks = [executed(project, one["name"]) for project in (near, far)]
        if name == "dead kernel":  # whether the cell's number was heard of before the end is a matter of chance
            for found in notebooks:
                found["cells"][-1]["execution_count"] = None
        assert notebooks[0] == notebooks[1]
        job = other["result"]["remote"]
        assert job["billed_s"] > 0
        assert job["price_usd"] == pytest.approx(job["billed_s"] * 0.23 / 3600, abs=1e-5)
        assert job["packages"]["papermill"] == "2.7.0"
    if case.code in (0, 4):
        assert far.runner("verify", "latest").code == 0


@pytest.mark.soak
def test_a_source_on_the_web_comes_here_and_goes_to_the_job_without_what_signs_it(far: RemoteProject) -> None:
    made_project(far, Case(toml=""), "web")
    secret = "X-Amz-Signature=" + "5ca1ab1e" * 8
    with serving({f"/in.txt?{secret}": b"from the web\n"}) as shelf:
        done = far.runner("run", "make", "--on", "sagemaker", "-p", f"make.source={shelf.address}/in.txt?{secret}")
    assert done.code == 0, done.err
    assert (far.runs[-1] / "steps/make/out/x.txt").read_text() == "from the web\n" * 3
    assert far.step("make")["job"]["inputs"]["source"]["source"].endswith("/in.txt?X-Amz-Signature=***")
    s3 = far.cloud.client("s3")
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="team/").get("Contents", [])]
    assert any(key.endswith("/in.txt") for key in keys)
    assert not any(b"5ca1ab1e" in s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys)


# What stays in S3, and what comes back


BIG = Case(
    make=("open(out, 'wb').write(b'x' * 6_000_000)",),
    judge=("open(folder + '/a', 'w').write(str(len(open(table).read())))", recorded("score", "0.75")),
)


@pytest.mark.soak
def test_outputs_stay_in_s3_and_come_when_they_are_asked_for(far: RemoteProject) -> None:
    assert made(far, BIG, "big").code == 0
    run = far.runs[-1]
    assert not (run / "steps/make/out/x.txt").exists()  # over small_mb, and the next step read it in S3
    assert (run / "steps/judge/out/folder/a").read_text() == "6000000"
    assert (run / "steps/make/executed.ipynb").exists()
    assert far.runner("verify", "latest").code == 0
    assert not (run / "steps/make/out/x.txt").exists()  # verify reads it where it lies
    done = far.runner("fetch", "latest", "make")
    assert "6.0 MB" in done.out
    assert (run / "steps/make/out/x.txt").stat().st_size == 6_000_000


@pytest.mark.soak
def test_code_altered_in_s3_does_not_run(far: RemoteProject) -> None:
    made_project(far, Case(toml=""), "code")
    died = far.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job about to be created:make"})
    assert died.code == -signal.SIGKILL
    request = json.loads((far.runs[-1] / "steps/make/request.json").read_text())
    (at,) = [item["S3Input"]["S3Uri"] for item in request["ProcessingInputs"] if item["InputName"] == "step"]
    s3, key = far.cloud.client("s3"), f"{at.removeprefix(f's3://{BUCKET}/')}notebook.ipynb"
    before = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=before.replace(b"write(open", b"write(exec"))  # of the same length
    done = far.runner("resume", "latest")
    assert done.code == 8
    assert "in the bucket was altered" in done.err
    s3.delete_object(Bucket=BUCKET, Key=key)
    assert far.runner("resume", "latest").code == 0


@pytest.mark.soak
def test_a_file_altered_in_s3_is_found_and_not_taken(far: RemoteProject) -> None:
    assert made(far, BIG, "altered").code == 0
    at = far.step("make")["result"]["remote"]["at"].removeprefix(f"s3://{BUCKET}/")
    far.cloud.client("s3").put_object(Bucket=BUCKET, Key=f"{at}out/x.txt", Body=b"y" * 6_000_000)
    verified = far.runner("verify", "latest")
    assert verified.code == 4
    assert "out/x.txt was altered" in verified.out + verified.err
    fetched = far.runner("fetch", "latest")
    assert fetched.code in (7, 8)
    assert "altered" in fetched.err
    assert not (far.runs[-1] / "steps/make/out/x.txt").exists()


@pytest.mark.soak
def test_a_second_run_takes_everything_from_the_first_and_a_local_step_reads_what_lies_in_s3(
    far: RemoteProject,
) -> None:
    assert made(far, BIG, "again").code == 0
    before = jobs(far.cloud)
    second = far.runner("run", "--on", "sagemaker", "--json")
    assert [step["status"] for step in second.json["steps"]] == ["cached"] * 3
    assert jobs(far.cloud) == before
    assert far.runner("verify", "latest").code == 0
    # debug puts the inputs of a step of a remote run on this machine
    assert far.runner("debug", "latest", "judge", "--no-open").code == 0
    opened = next((far.folder / "runs/debug").iterdir())
    assert (opened / "in/table").stat().st_size == 6_000_000
    reproduced = far.runner("reproduce", "latest")
    assert reproduced.code == 0, reproduced.err


@pytest.mark.soak
def test_sources_in_s3_go_to_the_job_and_never_come_here(far: RemoteProject) -> None:
    s3 = far.cloud.client("s3")
    s3.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": far.cloud.region})
    s3.put_object(Bucket="elsewhere", Key="raw/table.csv", Body=b"one line\n")
    case = Case(toml='[steps.judge.sagemaker]\ninstance = "ml.m5.large"\n')
    made(far, case, "sources")
    mark = len(far.cloud.calls)
    done = far.runner("run", "--on", "sagemaker", "--json", "-p", "make.source=s3://elsewhere/raw/table.csv")
    assert done.code == 0, done.err
    read = [
        call
        for call in far.cloud.calls[mark:]
        if call.action == "GetObject" and "raw/" in str(call.parameters) and call.access_key == CLIENT_KEY
    ]
    assert not read
    source = far.step("make")["result"]["inputs"]["source"]
    assert (source["listed"], source["artifact"]["size_bytes"]) == (False, 9)  # as the job found it
    assert far.runner("verify", "latest").code == 0
    s3.put_object(Bucket="elsewhere", Key="raw/table.csv", Body=b"two lines\n")
    again = far.runner("run", "--on", "sagemaker", "--dry-run", "-p", "make.source=s3://elsewhere/raw/table.csv")
    assert re.search(r"make +run +input source: 1 of 1 object changed", again.out), again.out


# A client that leaves, comes back, or dies


WAIT = Case(make=("import time\ntime.sleep(4)", "open(out, 'w').write('x')"), toml="")


def begun(far: RemoteProject, name: str) -> subprocess.Popen[str]:
    """The run of a slow pipeline, with its first job running."""
    made_project(far, WAIT, name)
    process = far.start("run", "--on", "sagemaker")
    wait_for(lambda: any(job.startswith(f"{name}-") for job in jobs(far.cloud)))
    return process


@pytest.mark.soak
def test_ctrl_c_leaves_the_job_running_and_resume_follows_it_again(far: RemoteProject) -> None:
    process = begun(far, "leave")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "runner resume" in said
    assert "runner stop" in said
    done = far.runner("resume", "latest", "--json")
    assert (done.code, done.json["status"]) == (0, "succeeded"), done.err
    mine = [job for job in jobs(far.cloud) if job.startswith("leave-")]
    assert len(mine) == 2
    assert {step["attempt"] for step in far.manifest["steps"]} == {1}


@pytest.mark.soak
def test_stop_ends_the_job_and_resume_starts_another(far: RemoteProject) -> None:
    process = begun(far, "stop")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    stopped = far.runner("stop", "latest")
    assert stopped.out.startswith("stopped job stop-")
    assert far.runner("show", "latest", "--json").json["status"] == "interrupted"
    name = next(job for job in jobs(far.cloud) if job.startswith("stop-"))
    status = far.cloud.client("sagemaker").describe_processing_job
    wait_for(lambda: status(ProcessingJobName=name)["ProcessingJobStatus"] == "Stopped")
    assert far.runner("stop", "latest").out == "stopped nothing: nobody works on it\n"
    assert far.runner("resume", "latest").code == 0
    assert sorted(job[-1] for job in jobs(far.cloud) if job.startswith("stop-")) == ["1", "1", "2"]


@pytest.mark.soak
def test_a_run_that_is_stopped_while_its_client_looks_on_needs_one_resume(far: RemoteProject) -> None:
    process = begun(far, "halt")
    (job,) = [job for job in jobs(far.cloud) if job.startswith("halt-")]
    stopped = far.runner("stop", "latest")
    assert stopped.out == f"stopped job {job}\nstopped process {process.pid}\n"
    process.communicate(timeout=60)
    assert process.returncode == 130
    done = far.runner("resume", "latest")
    assert done.code == 0, done.err
    assert sorted(job[-1] for job in jobs(far.cloud) if job.startswith("halt-")) == ["1", "1", "2"]


@pytest.mark.soak
def test_a_job_that_ran_into_its_limit_is_a_time_out_and_no_stop(far: RemoteProject) -> None:
    """A job may run for at least 900 s, so the request is shortened before it is sent."""
    made_project(far, Case(make=(SLOW,), toml=""), "limit")
    toml = far.folder / "pipeline.toml"
    toml.write_text(toml.read_text().replace("cell_timeout_s = 1.5\n", ""))
    died = far.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job about to be created:make"})
    assert died.code == -signal.SIGKILL
    kept = far.runs[-1] / "steps/make/request.json"
    kept.write_text(re.sub(r'("MaxRuntimeInSeconds":)\d+', r"\g<1>6", kept.read_text()))
    done = far.runner("resume", "latest")
    assert done.code == 6, done.err
    assert "ran into its time limit of 6 s" in done.err
    assert far.step("make")["status"] == "failed"


@pytest.mark.soak
def test_a_job_stopped_in_the_console_interrupts_the_run(far: RemoteProject) -> None:
    process = begun(far, "console")
    name = next(job for job in jobs(far.cloud) if job.startswith("console-"))
    wait_for(lambda: notebook_begun(far.cloud, name))
    far.cloud.client("sagemaker").stop_processing_job(ProcessingJobName=name)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert far.step("make")["result"]["error"]["kind"] == "interrupted"
    # the job heard SIGTERM and left what it had, before it was killed
    s3, attempt = far.cloud.client("s3"), f"team/runs/{far.runs[-1].name}/make/attempts/1/"
    left = json.loads(s3.get_object(Bucket=BUCKET, Key=f"{attempt}result.json")["Body"].read())
    assert (left["status"], left["error"]["kind"]) == ("interrupted", "interrupted")
    done = [cell["execution_count"] for cell in far.executed("make")["cells"] if cell["cell_type"] == "code"]
    assert done[0] == 1, done
    assert s3.get_object(Bucket=BUCKET, Key=f"{attempt}executed.ipynb")["ContentLength"] > 0
    assert far.runner("resume", "latest").code == 0


@pytest.mark.soak
def test_an_error_of_one_step_does_not_keep_the_client_waiting_for_another(far: RemoteProject) -> None:
    far.write("nb/slow.ipynb", parameters("x: int = 1"), "import time\ntime.sleep(600)")
    far.write("nb/late.ipynb", parameters("x: int = 1"), "print(x)")
    far.toml('name = "apace"\n[steps.slow]\nnotebook = "nb/slow.ipynb"\n[steps.late]\nnotebook = "nb/late.ipynb"\n')
    # refused once the other one's job is there
    far.cloud.faults.add("CreateProcessingJob", "AccessDeniedException", times=None, match="-late-1", delay_s=3)
    done = far.runner("run", "--on", "sagemaker", "-j", "2")
    assert done.code == 7
    assert "Grant the caller CreateProcessingJob" in done.err
    assert "keep running: slow." in done.err  # and what becomes of it
    assert "runner stop" in done.err
    (job,) = [job for job in jobs(far.cloud) if job.startswith("apace-")]
    found = far.cloud.client("sagemaker").describe_processing_job(ProcessingJobName=job)
    assert found["ProcessingJobStatus"] == "InProgress"
    assert far.runner("stop", "latest").out == f"stopped job {job}\n"


@pytest.mark.soak
@pytest.mark.parametrize(
    "point", ["job created", "job about to be created", "job ended", "step sealed", "step recorded"]
)
def test_a_killed_client_finds_its_job_again(far: RemoteProject, point: str) -> None:
    name = "killed-" + point.replace(" ", "")
    made_project(far, Case(toml=""), name)
    assert far.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": f"{point}:make"}).code == -signal.SIGKILL
    done = far.runner("resume", "latest", "--json")
    assert (done.code, done.json["status"]) == (0, "succeeded"), done.err
    assert len([job for job in jobs(far.cloud) if job.startswith(name)]) == 2  # one for each step
    assert far.runner("verify", "latest").code == 0


REGISTERED = """
name = "{0}"
[steps.fit]
notebook = "fit.ipynb"
outputs = {{ model = "model/" }}
[[gate]]
metric = "fit.score"
min = 0.5
[model]
name = "{0}"
from = "fit.model"
registry = "sagemaker"
[steps.last]
notebook = "last.ipynb"
inputs = {{ model = "fit.model", verdict = "gate.verdict" }}
"""
REGISTERING = ("before registering", *SAGEMAKER_NAMES[:5], "registered", "version recorded", "before the end")


def registered(far: RemoteProject, name: str, *points: str) -> None:
    """A run with its jobs and its registry in SageMaker, killed at each point, is finished as if nothing had been."""
    far.write(
        "fit.ipynb",
        parameters('model: str = ""'),
        "import pathlib\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)\n"
        "(place / 'model.json').write_text('{}'); (place / 'signature.json').write_text('{}')",
        recorded("score", "0.75"),
    )
    call = "from runner.model.request import register\nregister(model, card='# Thing')"
    far.write("last.ipynb", parameters('model: str = ""\nverdict: str = ""'), call)
    far.toml(REGISTERED.format(name))
    for number, point in enumerate(points):
        again = ("resume", "latest") if number else ("run", "--on", "sagemaker")
        done = far.runner(*again, env={VARIABLE: point})
        assert done.code == -signal.SIGKILL, f"{point} was never reached: {done.code}\n{done.err}"
    done = far.runner("resume", "latest", "--json")
    assert done.code == 0, done.err
    assert done.json["model_version"] == {"name": name, "version": 1, "status": "pending"}
    assert len([job for job in jobs(far.cloud) if job.startswith(f"{name}-")]) == 2  # one for each step
    packages = far.cloud.client("sagemaker").list_model_packages(ModelPackageGroupName=name)
    assert len(packages["ModelPackageSummaryList"]) == 1
    assert [event["kind"] for event in far.runner("history", name, "--json").json] == ["registered"]
    assert far.runner("verify", f"{name}/1").code == 0


@pytest.mark.soak
def test_a_run_with_jobs_killed_at_every_boundary_of_its_registration_registers_once(far: RemoteProject) -> None:
    # after "package created" whoever looks records the registration, and a resume finds it done
    registered(far, "chain", *(point for point in REGISTERING if point != "registration recorded"))


@pytest.mark.soak
@pytest.mark.parametrize("point", REGISTERING)
def test_a_run_with_jobs_killed_at_any_boundary_of_its_registration_registers_once(
    far: RemoteProject, point: str
) -> None:
    registered(far, f"alone-{REGISTERING.index(point)}", point)


@pytest.mark.soak
def test_a_run_with_jobs_registers_itself_where_no_step_does(far: RemoteProject) -> None:
    far.write(
        "fit.ipynb",
        parameters('model: str = ""'),
        "import pathlib\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)\n"
        "(place / 'model.json').write_text('{}'); (place / 'signature.json').write_text('{}')",
        recorded("score", "0.75"),
    )
    far.toml(REGISTERED.format("itself").partition("[steps.last]")[0])
    # of a project beside it, whose group this one's rights do not reach
    beside = {"Bucket": BUCKET, "Key": "team/registry/others/events/000001.json"}
    far.cloud.client("s3").put_object(**beside, Body=b"{}")
    for _ in range(2):
        done = far.runner("run", "--on", "sagemaker", "--json")
        assert (done.code, done.json["model_version"]["version"]) == (0, 1), done.err
    half = {"Bucket": BUCKET, "Key": f"team/registry/half/facts/{'0' * 64}.json"}  # a registration that was killed
    far.cloud.client("s3").put_object(**half, Body=b"{}")
    registered = far.runner("history", "none").err.partition("no registered model 'none'. Registered: ")[2]
    far.cloud.client("s3").delete_object(**beside)
    far.cloud.client("s3").delete_object(**half)
    names = set(registered.strip().rstrip(".").split(", "))
    assert {"itself", "others"} <= names
    assert "half" not in names
    assert done.json["steps"][0]["status"] == "cached"
    assert [event["kind"] for event in far.runner("history", "itself", "--json").json] == ["registered"]


# A service that fails


@pytest.mark.soak
def test_a_lost_reply_is_the_same_job_and_a_taken_name_is_refused(far: RemoteProject) -> None:
    far.cloud.faults.add("CreateProcessingJob", "LostReply", times=1)
    assert made(far, Case(toml=""), "lost").code == 0
    assert len([job for job in jobs(far.cloud) if job.startswith("lost-")]) == 2
    # a name that is not to be had: somebody else's job has it
    made_project(far, Case(make=(*Case().make, "print('taken')"), toml=""), "lost")
    far.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job about to be created:make"})
    kept = far.runs[-1] / "steps/make/request.json"
    wanted = json.loads(kept.read_text())
    other = {**wanted, "Tags": [{"Key": "runner:request", "Value": "another"}]}
    far.cloud.client("sagemaker").create_processing_job(**other)
    refused = far.runner("resume", "latest")
    assert refused.code == 8
    assert "made by another request" in refused.err


@pytest.mark.soak
def test_what_passes_is_waited_out_and_a_job_the_service_lost_is_tried_again(far: RemoteProject) -> None:
    for action, error in (
        ("CreateProcessingJob", "Throttling"),
        ("DescribeProcessingJob", "InternalServerError"),
        ("GetLogEvents", "Throttling"),
        ("GetObject", "Truncated"),
    ):
        far.cloud.faults.add(action, error, times=2, caller=CLIENT_KEY)
    slow = far.cloud.faults.add("PutObject", "SlowDown", times=2, caller=CLIENT_KEY, match="/inputs/")
    far.cloud.faults.job("patient", fail="InternalServerError: We encountered an internal error.", times=1)
    made_project(far, Case(toml=""), "patient")
    (far.folder / "in.txt").write_text("not there yet\n")
    done = far.runner("run", "--on", "sagemaker")
    assert done.code == 0, done.err
    assert far.step("make")["attempt"] == 2
    assert far.cloud.faults.hits(slow) == 2
    assert far.runner("verify", "latest").code == 0


@pytest.mark.soak
def test_a_large_file_goes_up_in_parts_with_the_same_patience(
    cloud: SmallSageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.aws.bucket import PART_BYTES, Bucket
    from runner.aws.session import AwsError, Session

    for variable, value in cloud.environment.items():
        monkeypatch.setenv(variable, value)
    file = tmp_path / "large.bin"
    file.write_bytes(b"a" * PART_BYTES + b"b" * PART_BYTES + b"c")
    cloud.attach(identities(Project="large", Bucket=BUCKET, Prefix="large", Model="large"))
    bucket = Bucket(Session(), BUCKET, "large/runs/")
    for action, error in (
        ("UploadPart", "SlowDown"),
        ("UploadPart", "ConnectionClosed"),
        ("CompleteMultipartUpload", LOST_REPLY),
    ):
        cloud.faults.add(action, error, times=1)
    assert bucket.upload("x", file) == file.stat().st_size
    assert bucket.upload("x", file) == 0
    assert bucket.get("x") == file.read_bytes()
    cloud.faults.add("UploadPart", "AccessDenied", times=None)
    with pytest.raises(AwsError, match="Grant the caller UploadPart"):
        bucket.upload("y", file)
    assert "Uploads" not in cloud.client("s3").list_multipart_uploads(Bucket=BUCKET)  # nothing is left half


def test_who_may_list_below_the_prefix_only_is_told_what_is_not_there(
    cloud: SmallSageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 then answers 403 for it, as for what may not be read."""
    from runner.aws.bucket import Bucket
    from runner.aws.session import AwsError, Session

    for variable, value in cloud.environment.items():
        monkeypatch.setenv(variable, value)
    cloud.attach(identities(Project="listed", Bucket=BUCKET, Prefix="listed", Model="listed"))
    bucket = Bucket(Session(), BUCKET, "listed/runs/")
    bucket.put("there and more", b"x")
    for call in (bucket.get, bucket.size):
        assert call("there") is None
    for action in ("GetObject", "HeadObject"):
        cloud.faults.add(action, "AccessDenied", times=None, status=403, match={"Key": "listed/"})
    assert (bucket.get("there"), bucket.size("there")) == (None, None)
    bucket.put("there", b"x")
    for read in (bucket.get, bucket.size):
        with pytest.raises(AwsError, match=r"Grant the caller (Get|Head)Object"):
            read("there")
    cloud.faults.add("ListObjectsV2", "AccessDenied", times=None)
    with pytest.raises(AwsError, match="Grant the caller GetObject"):
        bucket.get("absent")


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("AccessDeniedException", "Grant the caller CreateProcessingJob"),
        ("ExpiredTokenException", "log in again"),
        ("ResourceLimitExceeded", "higher quota"),
    ],
)
def test_what_does_not_pass_fails_at_once_naming_action_and_remedy(far: RemoteProject, error: str, said: str) -> None:
    number = far.cloud.faults.add("CreateProcessingJob", error, times=None)
    done = made(far, Case(toml=""), "at-once")
    assert done.code == 7
    assert said in done.err
    assert "create_processing_job" in done.err
    assert far.cloud.faults.hits(number) == 1


def test_an_image_that_is_not_there_fails_with_the_service_s_reason(far: RemoteProject) -> None:
    far.cloud.faults.job("no-image", fail="ClientError: Cannot pull the image", times=1)
    done = made(far, Case(toml=""), "no-image")
    assert done.code == 7
    assert "ClientError: Cannot pull the image" in done.err
    assert "runner resume" in done.err


@pytest.mark.soak
@pytest.mark.parametrize(
    ("action", "error"),
    [("GetLogEvents", "InvalidParameterException"), ("DescribeLogStreams", "AccessDeniedException")],
)
def test_logs_that_cannot_be_read_do_not_matter(far: RemoteProject, action: str, error: str) -> None:
    number = far.cloud.faults.add(action, error, times=None)
    made_project(far, Case(toml=""), f"no-{action}")
    done = far.runner("run", "--on", "sagemaker", "make")
    assert done.code == 0, done.err
    assert far.cloud.faults.hits(number) == 1
    assert f"was answered {error}" in (far.runs[-1] / "steps/make/job.log").read_text()


@pytest.mark.soak
def test_a_log_longer_than_what_is_read_of_it_says_so(cloud: SmallSageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.aws.processing.jobs import DRAINS, LOG_GROUP, LogReader
    from runner.aws.session import Session

    for variable, value in cloud.environment.items():
        monkeypatch.setenv(variable, value)
    logs, place = cloud.client("logs"), {"logGroupName": LOG_GROUP, "logStreamName": "wordy/algo-1"}
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=LOG_GROUP)
    logs.create_log_stream(**place)
    page = 10_000  # events of a call, either way
    for number in range(DRAINS + 1):
        events = [{"timestamp": int(time.time() * 1000), "message": f"{number}"}] * page
        logs.put_log_events(**place, logEvents=events)
    cloud.attach(identities(Project="wordy", Bucket=BUCKET, Prefix="wordy", Model="wordy"))
    lines: list[str] = []
    LogReader(Session(), "wordy", lines.append).drain()
    assert (len(lines), lines[-2:]) == (DRAINS * page + 1, [f"{DRAINS - 1}", "(log cut)"])


@pytest.mark.soak
def test_late_logs_arrive_and_those_of_the_step_lie_beside_it(far: RemoteProject) -> None:
    far.cloud.faults.delay_logs(1.0)
    assert (
        made(far, Case(make=("import sys; print('seen', file=sys.__stderr__)", *Case().make), toml=""), "late").code
        == 0
    )
    assert (far.runs[-1] / "steps/make/job.log").exists()


# What users of processing jobs run into


def test_a_value_longer_than_the_service_s_limits_arrives_whole(far: RemoteProject) -> None:
    far.write("nb/x.ipynb", parameters("words: str = ''"), "print(len(words), words[-5:])")
    far.toml('name = "long"\n[steps.x]\nnotebook = "nb/x.ipynb"\n')
    done = far.runner("run", "--on", "sagemaker", "-p", f"words={'ä' * 5000}tail.")
    assert done.code == 0, done.err
    assert "5005 tail." in json.dumps(far.executed("x"))


@pytest.mark.soak
def test_files_that_the_notebook_reads_beside_its_inputs_go_along(far: RemoteProject) -> None:
    case = Case(make=("import helper, json\nopen(out, 'w').write(helper.say() + open('words.json').read())",), toml="")
    made_project(far, case, "beside")
    (far.folder / "nb/helper.py").write_text("def say():\n    return 'hello '\n")
    (far.folder / "nb/words.json").write_text('"world"')
    missing = far.runner("run", "--on", "sagemaker", "make")  # never run here, so nobody knows of words.json
    assert missing.code == 3
    assert "words.json" in missing.err
    assert far.runner("run", "make").code == 0
    assert far.runner("run", "--on", "sagemaker", "make").code == 0  # what it read here is sent with it
    (far.folder / "nb/words.json").write_text('"again"')
    told = far.runner("run", "--on", "sagemaker", "--dry-run", "make").out
    assert "words.json, read by cell [2], changed" in told


def test_a_job_that_fails_before_the_notebook_says_why_and_keeps_its_log(far: RemoteProject) -> None:
    made_project(far, Case(toml=""), "early")
    pipeline = far.folder / "pipeline.toml"
    pipeline.write_text(pipeline.read_text().replace('python = "3.11"', 'python = "3.12"'))
    done = far.runner("run", "--on", "sagemaker")
    assert done.code == 7
    assert "The image has Python 3.11, the job was made for 3.12" in done.err
    assert "The image has Python 3.11" in (far.runs[-1] / "steps/make/job.log").read_text()
    assert far.step("make")["result"]["error"]["kind"] == "remote"


@pytest.mark.soak
def test_two_runs_at_once_keep_apart(far: RemoteProject) -> None:
    made_project(far, Case(toml=""), "apart")
    both = [far.start("run", "--on", "sagemaker", "-p", f"make.number={n}") for n in (1, 2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    lengths = {len((run / "steps/make/out/x.txt").read_text()) for run in far.runs}
    assert lengths == {len("one line\n"), 2 * len("one line\n")}


@pytest.mark.soak
def test_credentials_that_expire_leave_the_job_and_its_run_to_be_taken_up(far: RemoteProject) -> None:
    far.cloud.faults.add("DescribeProcessingJob", "ExpiredTokenException", times=None, skip=1, caller=CLIENT_KEY)
    made_project(far, WAIT, "expired")
    done = far.runner("run", "--on", "sagemaker")
    assert done.code == 7
    assert "log in again" in done.err
    far.cloud.faults.clear()
    assert far.runner("resume", "latest").code == 0
    assert len([job for job in jobs(far.cloud) if job.startswith("expired-")]) == 2


def test_more_inputs_than_a_job_takes_are_named_before_it_is_made(far: RemoteProject) -> None:
    names = [f"in{n}" for n in range(8)]
    for name in names:
        (far.folder / f"{name}.txt").write_text(name)
    far.write("nb/x.ipynb", parameters("\n".join(f"{name}: str = ''" for name in names)), "print(1)")
    inputs = ", ".join(f'{name} = "./{name}.txt"' for name in names)
    far.toml(f'name = "inputs"\n[steps.x]\nnotebook = "nb/x.ipynb"\ninputs = {{ {inputs} }}\n')
    done = far.runner("run", "--on", "sagemaker")
    assert done.code == 2
    assert "has 8 inputs to copy; a processing job takes 7" in done.err


# What it costs


@pytest.mark.soak
def test_a_step_takes_few_calls(far: RemoteProject) -> None:
    mark = len(far.cloud.calls)
    assert made(far, Case(toml=""), "calls").code == 0
    calls = [
        call
        for call in far.cloud.calls[mark:]
        if call.access_key == CLIENT_KEY and "/bundles/" not in str(call.parameters)
    ]
    polls = sum(call.action in ("DescribeProcessingJob", "GetLogEvents", "DescribeLogStreams") for call in calls)
    assert len(calls) - polls <= 2 * 10, sorted(call.action for call in calls)  # two steps; with waiting, 12 each


def test_a_dry_run_says_what_moves_and_what_it_costs_at_most(far: RemoteProject) -> None:
    made_project(far, Case(toml="[steps.make.sagemaker]\ntimeout_s = 2700\n"), "dry")
    before = jobs(far.cloud)
    done = far.runner("run", "--on", "sagemaker", "--dry-run")
    assert done.code == 0, done.err
    assert re.search(r"^make|  make +run +never run", done.out)
    assert "MB to S3" in done.out
    assert re.search(r"costs at most \d+\.\d\d USD", done.out)
    assert jobs(far.cloud) == before


@pytest.mark.soak
@pytest.mark.parametrize("count", [4, 50])
def test_many_steps_at_once_under_a_throttled_service_all_finish(far: RemoteProject, count: int) -> None:
    far.write("nb/x.ipynb", parameters("n: int = 0"), "print(n)")
    steps = "".join(f'[steps.s{n}]\nnotebook = "nb/x.ipynb"\nparameters = {{ n = {n} }}\n' for n in range(count))
    far.toml(f'name = "many{count}"\n{steps}')
    far.cloud.faults.rate(["CreateProcessingJob", "DescribeProcessingJob", "GetLogEvents", "DescribeLogStreams"], 5)
    done = far.runner("run", "--on", "sagemaker", "--json", "-j", str(count))
    far.cloud.faults.rate([], 0)
    assert done.code == 0, done.err


@pytest.mark.soak
def test_a_secret_comes_from_secrets_manager_and_is_written_nowhere(far: RemoteProject) -> None:
    value = "s3cr3t-canary-91"
    far.cloud.client("secretsmanager").create_secret(Name="team/TOKEN", SecretString=value)
    far.write("nb/x.ipynb", parameters("token: str = ''  # secret"), "print('got', len(token), token)")
    far.toml('name = "hidden"\n[steps.x]\nnotebook = "nb/x.ipynb"\n')
    done = far.runner("run", "--on", "sagemaker", "-p", "x.token=env:TOKEN")
    assert done.code == 0, done.err
    assert f"got {len(value)} [redacted]" in json.dumps(far.executed("x"))
    s3 = far.cloud.client("s3")
    for found in s3.list_objects_v2(Bucket=BUCKET, Prefix="team/runs/")["Contents"]:
        assert value.encode() not in s3.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read()
    description = [
        far.cloud.client("sagemaker").describe_processing_job(ProcessingJobName=job) for job in jobs(far.cloud)
    ]
    assert value not in str(description)


def test_two_steps_never_have_one_job_name() -> None:
    from runner.aws.processing.request import job_name

    steps = ["a_b", "a-b", "a__b", "a_b-", "s" * 31, "s" * 30 + "_", "s" * 30 + "-"]
    for project in ("churn", "p" * 63):
        names = [job_name(project, "20261122-101630-7f3a", step, n) for step in steps for n in (1, 11)]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name) for name in names)  # botocore's pattern
    assert job_name("churn", "20261122-101630-7f3a", "train", 1) == "churn-20261122-101630-7f3a-train-1"


# One listing


@pytest.mark.soak
def test_of_a_hundred_thousand_objects_one_that_changed_is_told(tmp_path: Path) -> None:
    from runner.records import InputSpec
    from runner.run import sources
    from runner.run.sources import RemoteFile
    from runner.run.store import Store

    class Listed:
        """A bucket's listing, as S3 gives it."""

        def __init__(self, files: list[RemoteFile]) -> None:
            self.files = files

        def listing(self, address: str) -> list[RemoteFile]:
            return self.files

        def download(self, address: str, file: RemoteFile, target: Any) -> None:
            raise AssertionError("nothing is downloaded")

    store = Store(tmp_path)
    files = [RemoteFile(path=f"part-{n:06}.parquet", size_bytes=n, version=f"{n:032x}") for n in range(100_000)]
    spec = InputSpec(from_="s3://b/raw/", as_="uri")
    before = sources.remote(spec, store, lambda _: Listed(files))
    changed = [*files[:500], RemoteFile(path=files[500].path, size_bytes=1, version="f" * 32), *files[501:]]
    now = sources.remote(spec, store, lambda _: Listed(changed))
    assert before.artifact is not None
    assert now.artifact is not None
    assert sources.changed_objects(before.artifact.sha256, now.artifact.sha256, store) == "1 of 100,000 objects changed"


@pytest.mark.soak  # ten seconds to put them there
def test_a_prefix_of_many_objects_is_listed_by_pages_and_none_is_read(far: RemoteProject) -> None:
    s3, count = far.cloud.client("s3"), 2500
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda n: s3.put_object(Bucket=BUCKET, Key=f"team/data/many/part-{n:06}", Body=b"x"), range(count))
        )
    far.write("nb/x.ipynb", parameters("source: str = ''"), "print(source)")
    spec = f'{{ from = "s3://{BUCKET}/team/data/many/", as = "uri" }}'
    far.toml(f'name = "many"\n[steps.x]\nnotebook = "nb/x.ipynb"\ninputs = {{ source = {spec} }}\n')
    assert far.here("run", "--on", "sagemaker").code == 0
    s3.put_object(Bucket=BUCKET, Key="team/data/many/part-000500", Body=b"another")
    far.cloud.forget_calls()
    done = far.here("run", "--on", "sagemaker", "--dry-run")
    assert done.code == 0, done.err
    assert f"1 of {count:,} objects changed" in done.out
    calls = [
        call
        for call in far.cloud.calls
        if call.parameters.get("Prefix", call.parameters.get("Key", "")) == "team/data/many/"
    ]
    assert [call.action for call in calls] == ["ListObjectsV2"] * 3  # a thousand to a page
    assert not [call for call in far.cloud.calls if call.action == "GetObject" and "many/" in call.parameters["Key"]]


# What a local run has to do with all this: nothing


FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("boto3", "botocore", "sagemaker"):
            open({log!r}, "a").write(name + "\\n")
sys.meta_path.insert(0, Forbid())
"""


@pytest.mark.soak
def test_a_local_run_imports_neither_boto3_nor_sagemaker(project: Project, tmp_path_factory: Any) -> None:
    site = tmp_path_factory.mktemp("site")
    log = site / "asked.txt"
    (site / "sitecustomize.py").write_text(FORBID.format(log=str(log)))
    made_project(project, Case(), "local")
    env = {"PYTHONPATH": str(site), "RUNNER_NO_REPORT": "0"}
    commands = ("run", "run", "run -p make.number=2", "show latest", "verify --all", "check", "runs", "models",
                "diff latest latest", "report latest", "resume latest", "compare latest latest", "pack latest -o p.run", "gc")  # fmt: skip
    for command in commands:
        done = project.runner(*command.split(), env=env)
        assert done.code == 0, (command, done.err)
    assert not log.exists(), log.read_text()
    subprocess.run([sys.executable, "-c", "import boto3"], env={**os.environ, **env}, check=True)
    assert log.exists()  # the check would have seen it
