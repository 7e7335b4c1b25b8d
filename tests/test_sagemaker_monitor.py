"""Watching an endpoint in the small SageMaker: here, and as a Pipeline that a schedule can start."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cloud import BUCKET, SAGEMAKER, RemoteProject, in_sagemaker, running
from iam import INFRA, Request, Stack, unneeded
from small_sagemaker import SmallSageMaker
from support import sdk
from support.machines import Machines
from support.monitored import TOML, customers, write
from support.projects import Project

from runner.aws.settings import settings
from runner.pipeline.file import load

MONITOR = ("--pipeline", "monitor.toml")
ENDPOINT = (
    TOML.partition("[targets")[0] + 'registry = "sagemaker"\n[targets.production]\nkind = "sagemaker"\ncapture = {}\n'
)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallSageMaker]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    with contextlib.closing(machines), running(on_endpoint=machines) as made:
        machines.cloud = made
        sdk.check_once()
        yield made


@pytest.fixture(scope="module")
def watched(cloud: SmallSageMaker, tmp_path_factory: pytest.TempPathFactory) -> RemoteProject:
    """tiny/1 is registered in SageMaker, approved, and serves at an endpoint that keeps what it is asked."""
    project = RemoteProject(tmp_path_factory.mktemp("watched"), cloud, SAGEMAKER)
    write(project, ENDPOINT)
    assert do(project, "run", "--on", "sagemaker")["model_version"] == {
        "name": "tiny",
        "version": 1,
        "status": "pending",
    }
    release(project, "tiny/1")
    return project


def do(project: RemoteProject, *arguments: str, code: int = 0) -> Any:
    run = project.runner if arguments[0] in ("run", "monitor", "reproduce") else project.here
    done = run(*arguments, "--json")
    assert done.code == code, done.out + done.err
    return done.json


def release(project: RemoteProject, version: str) -> None:
    do(project, "approve", version, "--reason", "its numbers are good")
    do(project, "deploy", version, "--to", "production")


def ask(cloud: SmallSageMaker, rows: pd.DataFrame) -> None:
    client = cloud.client("sagemaker-runtime")
    records = rows.drop(columns="left").to_dict("records")
    for at in range(0, len(records), 50):
        body = json.dumps(records[at : at + 50])
        client.invoke_endpoint(
            EndpointName="tiny-production", Body=body, ContentType="application/json", Accept="application/json"
        )


def drifted(seed: int) -> pd.DataFrame:
    return customers(1000, seed).assign(minutes=lambda rows: rows["minutes"] * 1.3)


def executed(project: RemoteProject, *arguments: str) -> tuple[dict[str, Any], str]:
    """An execution of the monitor, as `pipeline status` has it once it has ended; the run that it is here."""
    arn = do(project, "pipeline", "start", *MONITOR, *arguments)["arn"]
    client = project.cloud.client("sagemaker")
    while client.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] == "Executing":
        time.sleep(0.3)
    status: dict[str, Any] = do(project, "pipeline", "status", *MONITOR)  # the latest
    run: str = do(project, "import", arn, "--no-report", *MONITOR)["run"]
    return status, run


def manifest(project: RemoteProject, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.folder / "runs" / run / "run.json").read_text())
    return found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "sagemaker"', 'kind = "local"', "production is on this machine, and an execution cannot look there"),
        ('registry = "sagemaker"', 'registry = "local"', "looked up in SageMaker's registry when an execution starts"),
        ("[targets.production]", "[targets.staging]", "there is no target 'production'; there is `staging`."),
    ],
)
def test_a_push_refuses_to_watch_what_an_execution_cannot_see(tmp_path: Path, old: str, new: str, said: str) -> None:
    project = Project(tmp_path)
    write(project, in_sagemaker(ENDPOINT.replace(old, new)))
    shown = project.runner("pipeline", "show", *MONITOR)
    assert (shown.code, shown.err.count(said)) == (2, 4), shown.err  # of each input


def test_what_watches_runs_where_what_it_watches_does_unless_it_says_otherwise(tmp_path: Path) -> None:
    project = Project(tmp_path)
    write(project, in_sagemaker(ENDPOINT).replace('prefix = "team"\n', ""))
    file = tmp_path / "monitor.toml"
    assert (settings(load(file)).bucket, settings(load(file)).prefix) == (BUCKET, "tiny/")
    file.write_text(file.read_text() + '[sagemaker]\ninstance = "ml.m5.large"\nprefix = "other"\n')
    found = settings(load(file))
    assert (found.bucket, found.prefix, found.instance) == (BUCKET, "other/", "ml.m5.large")
    refused = project.runner("pipeline", "show", *MONITOR)
    assert "[sagemaker] names work/other/, and what is watched lies in work/tiny/." in refused.err
    (tmp_path / "pipeline.toml").unlink()
    assert load(file).sagemaker.bucket is None


@pytest.mark.soak
def test_the_circle_with_an_endpoint_and_the_monitor_as_a_pipeline(
    cloud: SmallSageMaker, watched: RemoteProject
) -> None:
    """The rest of it is `watched`: a run that is registered, its approval, its deployment."""
    pushed = [do(watched, "pipeline", "push", *MONITOR)["outcome"] for _ in range(2)]
    assert pushed == ["created", "unchanged"]
    assert "next: runner pipeline start --pipeline monitor.toml" in watched.here("pipeline", "push", *MONITOR).err
    status, _ = executed(watched)  # nobody has asked anything but the deployment, whose sample does not count
    assert "production captured no request since" in status["steps"][0]["reason"]
    ask(cloud, drifted(3))

    status, run = executed(watched)
    (said,) = (step["reason"] for step in status["steps"] if step["name"] == "gate-failed")
    assert said.startswith("The gate's verdict is fail – moved: minutes: mean 1")
    assert "monitor.columns_moved is 1" in said
    looked = manifest(watched, run)
    assert (looked["verdict"]["outcome"], looked["metrics"]["monitor.rows"]["value"]) == ("fail", 1000)
    sources = looked["sources"]
    assert {key: (fact["source"], fact.get("present", True)) for key, fact in sources.items()} == {
        "monitor.captured": ("captured:production", True),
        "monitor.model": ("deployed:production", True),
        "monitor.reference": ("reference:production", True),
        "monitor.promised": ("promised:production", True),
        "monitor.labels": ("", False),
    }
    assert sources["monitor.model"]["version"] == "tiny/1"
    assert looked["metrics"]["monitor.drift_auc"]["low"] > 0.65
    (row,) = do(watched, "deployments")
    assert (row["model"], row["monitor"]["run"], row["monitor"]["verdict"]) == ("tiny/1", run, "fail")
    assert row["monitor"]["reasons"][0]["why"].startswith("minutes: mean 1")

    job = do(watched, "monitor", "production", "--on", "sagemaker", "--no-retrain", code=4)
    same = [found["metrics"]["monitor.drift_auc"]["value"] for found in (job, looked)]
    assert (same[0], "retrained" in job) == (same[1], False)

    (watched.folder / "day.txt").write_text("21 1.3")  # the newer data
    no = do(watched, "monitor", "production", code=4)
    assert (no["verdict"], no["metrics"]["monitor.rows"]["value"]) == ("fail", 1000)
    assert no["retrained"]["model_version"] == {"name": "tiny", "version": 2, "status": "pending"}
    assert "moved: minutes: mean 1" in watched.here("show", "tiny/2").out
    release(watched, "tiny/2")
    ask(cloud, drifted(4))

    (watched.folder / "monitor.toml").write_text(
        (watched.folder / "monitor.toml").read_text().replace("max = 0.05", "max = 0.06")
    )
    assert do(watched, "pipeline", "push", *MONITOR)["outcome"] == "updated"
    status, run = executed(watched, "-p", "since=2d")
    assert status["status"] == "Succeeded", status
    looked = manifest(watched, run)
    assert (looked["verdict"]["outcome"], looked["metrics"]["monitor.rows"]["value"]) == ("pass", 2000)
    assert looked["overrides"] == {"since": "2d"}
    assert not looked["sources"]["monitor.reference"]["present"]  # this version's run was here, and so are its rows
    (row,) = do(watched, "deployments")
    assert (row["model"], row["monitor"]["run"], row["monitor"]["verdict"]) == ("tiny/2", run, "pass")
    # what was looked at stays: in the bucket, from where the run is repeated here
    captured = cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="team/captured/")["Contents"]
    for item in captured:
        cloud.client("s3").delete_object(Bucket=BUCKET, Key=item["Key"])
    assert do(watched, "reproduce", run)["same"] == ["monitor"]
    assert do(watched, "verify", run)["sound"]

    (watched.folder / "more.jsonl").write_text(
        customers(5, 6).drop(columns="left").to_json(orient="records", lines=True)
    )
    scored = watched.runner("predict", "tiny/2", "more.jsonl", "--capture", "production")
    assert scored.code == 0, scored.err
    granted = Stack(INFRA / "policies.yaml", Project="tiny", Bucket=BUCKET, Prefix="team", Model="tiny")
    large = Request("s3:AbortMultipartUpload", f"arn:aws:s3:::{BUCKET}/team/captured/production/x/batch/1")
    assert unneeded(granted.policy("MonitorPolicy"), [*cloud.asked("watcher"), large]) == []
