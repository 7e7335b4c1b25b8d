"""A step that runs as a SageMaker training job: on spot, begun again where its instance was taken away, shown on its page."""

from __future__ import annotations

import json
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from botocore.validate import ParamValidator
from cloud import BUCKET, SAGEMAKER, RemoteProject, in_sagemaker, jobs
from conftest import Project, parameters
from nbformat.v4 import new_code_cell, new_notebook
from small_sagemaker import JOB_KEY, SmallSageMaker, limits, own_image
from small_sagemaker.calls import load_model
from small_sagemaker.jobs import Settings
from small_sagemaker.training import check_training
from small_sagemaker.trying import wait_for

from runner.aws.processing.request import JobAddresses
from runner.aws.processing.training import definition, metric_line, metrics, request
from runner.aws.settings import settings
from runner.errors import UsageError
from runner.pipeline.file import examine
from runner.records import Pipeline, StepJob

KEY = "arn:aws:kms:eu-west-1:123456789012:key/0"
VPC = '{ subnets = ["subnet-1"], security_groups = ["sg-1"] }'
SUDO = SAGEMAKER.replace("own:1", "sagemaker-user:1")  # whose user becomes root with sudo, as SageMaker Distribution's
TRAINING = 'job = "training"\n'
TOML = """
name = "NAME"
[steps.make]
notebook = "nb/make.ipynb"
inputs = { source = "./in.txt" }
outputs = { out = "x.txt", folder = "folder/" }
[steps.make.sagemaker]
MAKE
[steps.judge]
notebook = "nb/judge.ipynb"
inputs = { table = "make.out", all = "make.folder" }
[[gate]]
metric = "judge.files"
max = 1
"""
MAKE = parameters("source: str = ''\nout: str = ''\nfolder: str = ''")
# each execution leaves a line in its checkpoints and a file of its own name in the output folder
BEGIN = """
import os, pathlib
kept = pathlib.Path(os.environ["RUNNER_CHECKPOINTS"], "deep", "begun.txt")
kept.parent.mkdir(exist_ok=True)
before = kept.read_text() if kept.exists() else ""
kept.write_text(before + "begun\\n")
number = len(kept.read_text().splitlines())
pathlib.Path(folder, f"of-{number}.txt").write_text(before)
"""
END = """
import time
if number == 1:
    time.sleep(600)
pathlib.Path(out).write_text(f'{open(source).read()}{number}')
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    images = {"123456789012.dkr.ecr.eu-west-1.amazonaws.com/sagemaker-user:1": own_image("sagemaker-user")}
    made = SmallSageMaker({**images, "*": own_image()})
    with made as cloud:
        place = {"LocationConstraint": cloud.region}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield cloud


def written(folder: Path, cloud: Any, name: str, *cells: str, make: str = "", table: str = SUDO) -> RemoteProject:
    # in a folder of its own: what a project with a key has put into the bucket, one without may not read
    project = RemoteProject(folder, cloud, table.replace('"team"', f'"{name}"'))
    folder.mkdir(exist_ok=True)
    (folder / "in.txt").write_text("one line\n")
    project.write(
        "nb/make.ipynb", MAKE, *(cells or (BEGIN, END)), "from runner.scraps import metric\nmetric('score', 0.75)"
    )
    project.write(
        "nb/judge.ipynb",
        parameters("table: str = ''\nall: str = ''"),
        "import os\nnames = sorted(os.listdir(all))\nprint(open(table).read(), names)",
        "from runner.scraps import metric\nmetric('files', len(names))",
    )
    project.toml(TOML.replace("NAME", name).replace("MAKE", TRAINING + make))
    return project


def described(cloud: SmallSageMaker, project: RemoteProject, step: str = "make") -> dict[str, Any]:
    name = f"{project.manifest['pipeline']['name']}-{project.manifest['run']}-{step}-1"
    found: dict[str, Any] = cloud.client("sagemaker").describe_training_job(TrainingJobName=name)
    return found


@dataclass(frozen=True)
class Interrupted:
    """A run of one spot job with four starts, whose client was killed as it had made the job."""

    project: RemoteProject
    job: dict[str, Any]
    left: list[str]  # keys below the attempt


@pytest.fixture(scope="module")
def interrupted(cloud: SmallSageMaker, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    project = written(
        tmp_path_factory.mktemp("spot"),
        cloud,
        "spot",
        make="spot = true\n",
        table=f'{SUDO}kms_key = "{KEY}"\nvpc = {VPC}\n',
    )
    cloud.faults.interrupt("spot-", "runner:progress [2,", warned=True)  # in the middle, with time to leave a result
    cloud.faults.add("PutObject", times=1, match={"Key": "/out/x.txt"}, caller=JOB_KEY, delay_s=9)
    cloud.faults.interrupt("spot-", "runner:metric score", after_s=3)  # as it puts its outputs away
    cloud.faults.interrupt("spot-")  # as all is put away
    died = project.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job created:make"})
    assert died.code == -signal.SIGKILL
    done = project.runner("resume", "latest", "--json")
    cloud.faults.clear()
    assert (done.code, done.json["status"]) == (0, "succeeded"), done.err
    prefix = f"spot/runs/{project.manifest['run']}/make/attempts/1/"
    listed = cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    return Interrupted(project, described(cloud, project), [one["Key"].removeprefix(prefix) for one in listed])


@pytest.mark.soak
def test_what_is_put_away_is_not_executed_again(interrupted: Interrupted, cloud: SmallSageMaker) -> None:
    """Four starts and three executions: of a step's middle, of its end before its outputs were there, and a whole one."""
    entered = [one["Status"] for one in interrupted.job["SecondaryStatusTransitions"]]
    assert (entered.count("Training"), entered.count("Interrupted")) == (4, 3)
    assert begun(interrupted, cloud) == "begun\nbegun\nbegun\n"
    log = (interrupted.project.runs[-1] / "steps/make/job.log").read_text()
    assert log.count("nothing is executed") == 1
    assert (interrupted.job["TrainingJobStatus"], entered[-1]) == ("Completed", "Completed")
    assert [job for job in jobs(cloud) if "-make-" in job] == []  # no processing job


def begun(interrupted: Interrupted, cloud: SmallSageMaker) -> str:
    at = interrupted.job["CheckpointConfig"]["S3Uri"].removeprefix(f"s3://{BUCKET}/")
    found: bytes = cloud.client("s3").get_object(Bucket=BUCKET, Key=f"{at}deep/begun.txt")["Body"].read()
    return found.decode()


@pytest.mark.soak
def test_a_start_finds_the_checkpoints_of_those_before_and_gives_only_its_own_files(interrupted: Interrupted) -> None:
    project = interrupted.project
    folder = project.runs[-1] / "steps/make/out/folder"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"of-3.txt": "begun\nbegun\n"}
    assert (project.runs[-1] / "steps/make/out/x.txt").read_text() == "one line\n3"
    # what the second start had put away by the time it was interrupted lies elsewhere, and no step is given it
    left = [key for key in interrupted.left if key.endswith("/folder/of-2.txt")]
    kept = project.step("make")["result"]["remote"]["at"].rpartition("starts/")[2]
    assert [key.startswith("starts/") and not key.startswith(f"starts/{kept}") for key in left] == [True]
    assert "['of-3.txt']" in json.dumps(project.executed("judge"))
    assert project.manifest["verdict"]["outcome"] == "pass"
    assert project.here("verify", "latest").code == 0


@pytest.mark.soak
def test_the_doctor_tells_what_the_latest_training_job_has_shown(interrupted: Interrupted) -> None:
    checks = interrupted.project.here("doctor", "--on", "sagemaker", "--json").json["checks"]
    (message,) = [check["message"] for check in checks if check["name"] == "training"]
    assert f"is Completed after 4 starts; its page has 1 metric, its checkpoints are in s3://{BUCKET}/spot/" in message


@pytest.mark.soak
def test_the_job_s_page_shows_what_the_notebook_recorded(interrupted: Interrupted, cloud: SmallSageMaker) -> None:
    found = interrupted.project.step("make")["result"]["metrics"]
    assert found["score"]["value"] == 0.75
    log = (interrupted.project.runs[-1] / "steps/make/job.log").read_text()
    assert log.count("runner:metric score=0.75\n") == 2
    assert {one["MetricName"]: one["Value"] for one in interrupted.job["FinalMetricDataList"]} == {"score": 0.75}


@pytest.mark.soak
def test_a_job_on_spot_costs_what_is_billed_of_it_and_runs_in_its_network_with_its_key(
    interrupted: Interrupted,
) -> None:
    job, remote = interrupted.job, interrupted.project.step("make")["result"]["remote"]
    assert 0 < job["BillableTimeInSeconds"] < job["TrainingTimeInSeconds"]
    assert remote["billed_s"] == job["BillableTimeInSeconds"]
    assert remote["price_usd"] == pytest.approx(remote["billed_s"] * 0.23 / 3600, abs=1e-5)
    assert job["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert (job["ResourceConfig"]["VolumeKmsKeyId"], job["OutputDataConfig"]["KmsKeyId"]) == (KEY, KEY)
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400 + 900, "MaxWaitTimeInSeconds": 2 * (86400 + 900)}


@pytest.mark.soak
def test_a_second_run_takes_the_step_from_the_first(interrupted: Interrupted, cloud: SmallSageMaker) -> None:
    project = interrupted.project
    done = project.here("run", "--on", "sagemaker", "--dry-run")
    assert re.search(r"make +cached", done.out), done.out
    done = project.here("run", "--on", "sagemaker", "--force", "--dry-run", "--json")
    (way,) = done.json["ways"]
    assert way["jobs"] == {"ml.m5.xlarge as a spot training job": 1, "ml.m5.xlarge": 1}
    assert way["ceiling_usd"] == pytest.approx(2 * 3 * 0.23 * (86400 + 900) / 3600)


@pytest.mark.soak
def test_a_failing_cell_is_told_on_the_page_or_where_its_user_may_not_write_in_the_bucket(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    for name, table in (("told", SUDO), ("left", SAGEMAKER)):
        project = written(
            tmp_path / name, cloud, name, "import os\nprint(os.environ['RUNNER_CHECKPOINTS'])\n{}['region']",
            make="keep_warm_s = 600\n", table=table,
        )  # fmt: skip
        done = project.here("run", "--on", "sagemaker")
        assert done.code == 3, done.err
        job, error = described(cloud, project), project.step("make")["result"]["error"]
        assert (job["TrainingJobStatus"], error["ename"]) == ("Failed", "KeyError")
        assert job["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
        said, log = "KeyError: 'region' in cell", (project.runs[-1] / "steps/make/job.log").read_text()
        if name == "told":
            assert job["FailureReason"].startswith(f"AlgorithmError: {said}")
            assert "/opt/ml/checkpoints" in json.dumps(project.executed("make"))
        else:
            key = f"{name}/runs/{project.manifest['run']}/make/attempts/1/out/message"
            found = cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()
            assert found.startswith(said)
            assert "user 1000 may not write /opt/ml/checkpoints" in log
            kept = json.dumps(project.executed("make"))
            assert ("work/checkpoints" in kept, "/opt/ml/checkpoints" in kept) == (True, False)


SLOW = "import time\ntime.sleep(600)"


@pytest.mark.soak
def test_stop_ends_the_job(cloud: SmallSageMaker, tmp_path: Path) -> None:
    project = written(tmp_path, cloud, "halt", SLOW)
    process = project.start("run", "--on", "sagemaker")
    wait_for(lambda: project.runs and (project.runs[-1] / "steps/make/job.log").exists())
    wait_for(lambda: described(cloud, project)["SecondaryStatus"] == "Training")
    stopped = project.here("stop", "latest")
    name = described(cloud, project)["TrainingJobName"]
    assert stopped.out.splitlines()[0] == f"stopped job {name}"
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert wait_for(lambda: described(cloud, project)["TrainingJobStatus"] == "Stopped")


@pytest.mark.soak
def test_a_job_that_ran_into_its_limit_is_a_time_out_and_no_stop(cloud: SmallSageMaker, tmp_path: Path) -> None:
    """A job may run for at least 900 s, so the request is shortened before it is sent. On spot it is billed less."""
    project = written(tmp_path, cloud, "limit", SLOW, make="spot = true\n")
    died = project.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job about to be created:make"})
    assert died.code == -signal.SIGKILL
    kept = project.runs[-1] / "steps/make/request.json"
    kept.write_text(re.sub(r'("MaxRuntimeInSeconds":)\d+', r"\g<1>5", kept.read_text()))
    done = project.here("resume", "latest")
    assert done.code == 6, done.err
    assert "ran into its time limit of 5 s" in done.err
    assert described(cloud, project)["SecondaryStatus"] == "MaxRuntimeExceeded"


# What is asked for


def asked(make: str, inputs: int = 1, **more: Any) -> dict[str, Any]:
    """The request of a step with these keys."""
    content = in_sagemaker(TOML.replace("NAME", "asked").replace("MAKE", TRAINING + make))
    pipeline, findings = _examined(content)
    assert findings == []
    addresses = {f"n{number}": f"s3://b/in/{number}" for number in range(inputs)}
    at = JobAddresses(bundle="s3://b/bundles/0/", step="s3://b/steps/0/", attempt="s3://b/runs/1/", inputs=addresses)
    job = StepJob(run="r", step="make", notebook="n.ipynb", **more)
    return request("asked-1", job, settings(pipeline, "make"), at, project="asked", metrics=["score"])


def _examined(content: str) -> tuple[Pipeline, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pipeline.toml")
        file.write_text(content)
        return examine(file)


@pytest.mark.parametrize(
    "make",
    [
        "",
        "spot = true\n",
        "keep_warm_s = 3600\n",
        f'kms_key = "{KEY}"\nvpc = {VPC}\nencrypt_traffic = true\ntags = {{ team = "a" }}\n',
    ],
)
def test_a_request_is_one_that_the_service_takes(make: str) -> None:
    for inputs in (0, 17):
        found = asked(make, inputs, timeout_s=1000.0)
        limits.check("sagemaker", "CreateTrainingJob", found)
        check_training(found, Settings({}))
        shape = load_model("sagemaker").operation_model("CreateTrainingJob").input_shape  # type: ignore[union-attr]
        assert ParamValidator().validate(found, shape).generate_report() == ""
        assert len(found["InputDataConfig"]) == inputs + 3
        wait = {"MaxWaitTimeInSeconds": 3800} if "spot" in make else {}
        assert found["StoppingCondition"] == {"MaxRuntimeInSeconds": 1900, **wait}
        assert len(found["Tags"]) == (5 if "tags" in make else 4)
        assert found.get("EnableInterContainerTrafficEncryption", False) == ("encrypt" in make)


def test_more_inputs_than_a_job_has_channels_are_named() -> None:
    with pytest.raises(UsageError, match="has 18 inputs to copy; a training job takes 17"):
        asked("", 18)


def test_the_page_is_asked_for_the_metrics_that_are_known_before() -> None:
    content = TOML.replace("NAME", "asked").replace("MAKE", TRAINING).replace("judge.files", "make.gated")
    pipeline, _ = _examined(in_sagemaker(content))
    with tempfile.TemporaryDirectory() as folder:
        cells = [
            "from runner.scraps import metric\nmetric('first', 1)\nmetric(name, 2)\nmetric('first', 3)",
            "import scrapbook as sb\nsb.glue('a b.c', 1.5)\nsb.glue('no\\nline', 2)\nprint('other', 3)",
            "%matplotlib inline\nmetric('drawn', 4)",
        ]
        nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), f"{folder}/n.ipynb")
        found = metrics(pipeline, "make", Path(folder, "n.ipynb"))
    assert found == ["gated", "first", "a b.c", "drawn"]
    for name, value in (("a b.c", -1.5e-7), ("gated", 3.0), ("first", 1e300)):
        read = re.search(definition(name)["Regex"], metric_line(name, value))
        assert read is not None
        assert float(read[1]) == value
    assert re.search(definition("c")["Regex"], metric_line("a b.c", 1.0)) is None
    made = asked("")
    assert made["AlgorithmSpecification"]["MetricDefinitions"] == [definition("score")]


REFUSED = {
    "spot = true": "spot is set, and only a training job takes spot",
    "keep_warm_s = 60": "keep_warm_s is set, and only a training job takes a warm pool",
    'job = "training"\nspot = true\nkeep_warm_s = 60': "a spot instance is not kept warm",
    'job = "training"\ntogether = true': "a training job has one step: write together = false",
    'job = "batch"': "Invalid enum value 'batch'",
}


@pytest.mark.parametrize("keys", REFUSED)
def test_keys_that_contradict_each_other_are_refused_before_anything_is_asked(keys: str, tmp_path: Path) -> None:
    project = written(tmp_path, None, "refused")
    file = project.folder / "pipeline.toml"
    file.write_text(file.read_text().replace(TRAINING, f"{keys}\n"))
    for command in (("check",), ("run", "--on", "sagemaker"), ("pipeline", "push")):
        done = Project(project.folder).runner(*command, env={"AWS_REGION": "eu-west-1"})
        assert done.code == 2, command
        assert done.err.count(REFUSED[keys]) == 1, done.err
        assert "steps.make.sagemaker" in done.err


def test_what_a_step_takes_back_of_the_table_s_keys_contradicts_nothing() -> None:
    whole = 'job = "training"\nspot = true\n'
    content = TOML.replace("NAME", "asked").replace("MAKE", 'job = "processing"\nspot = false')
    _, findings = _examined(in_sagemaker(content, SAGEMAKER + whole))
    assert findings == []
    _, findings = _examined(in_sagemaker(content.replace("spot = false", ""), SAGEMAKER + whole))
    assert [finding.count("only a training job takes spot") for finding in findings] == [1]


def test_a_pipeline_of_sagemaker_has_no_training_jobs_and_says_so(cloud: SmallSageMaker, tmp_path: Path) -> None:
    done = written(tmp_path, cloud, "pushed").here("pipeline", "push", "--dry-run")
    assert done.code == 2
    assert "steps.make: it is a training job, and in the Pipeline steps are processing jobs" in done.err
