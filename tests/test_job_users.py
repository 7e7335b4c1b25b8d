"""A job does its work as whichever user its image has; /opt/ml belongs to root, as it does in SageMaker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from cloud import BUCKET, SAGEMAKER, RemoteProject
from small_sagemaker import NotPermittedError, SmallSageMaker, own_image
from small_sagemaker.images import User
from support.projects import parameters

KEY = "arn:aws:kms:eu-west-1:123456789012:key/0"
WORK = {"root": "/opt/ml/processing/work", "1000": "/tmp/runner-work", "sagemaker-user": "/opt/ml/processing/work"}
TOML = """
name = "users"
[steps.make]
notebook = "nb/make.ipynb"
inputs = { source = "./in.txt" }
outputs = { out = "x.txt", folder = "folder/" }
[steps.take]
notebook = "nb/take.ipynb"
inputs = { table = "make.out", all = "make.folder" }
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    try:
        made = SmallSageMaker({_image(user): own_image(user) for user in get_args(User)})
    except NotPermittedError as error:
        pytest.skip(f"{error}; .ci/run, as root, has all of it")
    with made as cloud:
        place = {"LocationConstraint": cloud.region}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield cloud


def _image(user: User) -> str:
    return f"123456789012.dkr.ecr.eu-west-1.amazonaws.com/{user}:1"


def _project(folder: Path, cloud: SmallSageMaker, user: User) -> RemoteProject:
    project = RemoteProject(folder, cloud, SAGEMAKER.replace("own:1", f"{user}:1") + f'kms_key = "{KEY}"\n')
    (folder / "in.txt").write_text("one line\n")
    project.write(
        "nb/make.ipynb",
        parameters("source: str = ''\nout: str = ''\nfolder: str = ''"),
        "import os, pathlib\n"
        "pathlib.Path('beside.txt').write_text('where the notebook lies')\n"
        "pathlib.Path.home().joinpath('.settings').write_text('a library')\n"
        "pathlib.Path(folder, 'a').mkdir()\n"
        "pathlib.Path(folder, 'a', 'b.txt').write_text('b')\n"
        "pathlib.Path(out).write_text(open(source).read())\n"
        "print(os.getuid(), os.getcwd())",
    )
    project.write(
        "nb/take.ipynb",
        parameters("table: str = ''\nall: str = ''"),
        "print(open(table).read() + open(f'{all}/a/b.txt').read())\nraise ValueError('of the cell')",
    )
    project.toml(TOML.replace("users", f"users-{user}"))
    return project


def _printed(project: RemoteProject, step: str) -> str:
    cell = project.executed(step)["cells"][-1]
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def _described(cloud: SmallSageMaker, project: RemoteProject, step: str) -> dict[str, Any]:
    name = f"{project.manifest['pipeline']['name']}-{project.manifest['run']}-{step}-1"
    found: dict[str, Any] = cloud.client("sagemaker").describe_processing_job(ProcessingJobName=name)
    return found


@pytest.mark.soak
@pytest.mark.parametrize("user", get_args(User))
def test_outputs_notebook_result_and_message_arrive_whoever_the_image_s_user_is(
    user: User, cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = _project(tmp_path, cloud, user)
    done = project.runner("run", "--on", "sagemaker")
    assert done.code == 3, done.err
    assert project.step("make")["status"] == "succeeded"
    assert _printed(project, "make") == f"{0 if user == 'root' else 1000} {WORK[user]}/project/nb\n"
    assert (project.runs[-1] / "steps/make/out/x.txt").read_text() == "one line\n"
    assert (project.runs[-1] / "steps/make/out/folder/a/b.txt").read_text() == "b"
    assert _printed(project, "take") == "one line\nb\n"
    failed = project.step("take")["result"]["error"]
    assert (failed["kind"], failed["ename"], failed["evalue"]) == ("exception", "ValueError", "of the cell")
    # where its folder may not be written, not even with sudo, the words lie below the job's output
    s3, job = cloud.client("s3"), _described(cloud, project, "take")
    said = job.get("ExitMessage")
    at = project.step("take")["result"]["remote"]["at"].removeprefix(f"s3://{BUCKET}/")
    if said is None:
        said = s3.get_object(Bucket=BUCKET, Key=f"{at}out/message")["Body"].read().decode()
    assert said.startswith("ValueError: of the cell in cell")
    assert ("ExitMessage" in job) == (user != "1000")
    # what a job puts there has the key that the service would have used
    made = project.step("make")["result"]["remote"]["at"].removeprefix(f"s3://{BUCKET}/")
    for key in (f"{made}out/x.txt", f"{made}out/folder/a/b.txt", f"{made}executed.ipynb", f"{at}result.json"):
        assert s3.head_object(Bucket=BUCKET, Key=key)["SSEKMSKeyId"] == KEY
