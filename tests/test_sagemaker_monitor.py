"""Watching an endpoint in the small SageMaker: here, and as a Pipeline that a schedule can start."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from cloud import SAGEMAKER, RemoteProject, running
from small_sagemaker import SmallSageMaker
from support import sdk
from support.flow import Story
from support.machines import Machines
from support.monitored import TOML, customers, write

ENDPOINT = TOML.partition("[targets")[0] + 'registry = "sagemaker"\n[targets.production]\nkind = "sagemaker"\ncapture = {}\n'


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
    assert do(project, "run")["model_version"] == {"name": "tiny", "version": 1, "status": "pending"}
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


def executed(project: RemoteProject, name: str, story: Story) -> dict[str, Any]:
    """An execution of the monitor as a Pipeline, which has ended; its run here."""
    told = ("--pipeline", "monitor.toml")
    story.started[name] = do(project, "pipeline", "start", *told)["arn"]
    client, arn = project.cloud.client("sagemaker"), story.started[name]
    while client.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] == "Executing":
        time.sleep(0.3)
    story.seen[name] = do(project, "pipeline", "status", arn, *told)
    run: dict[str, Any] = do(project, "import", arn, "--no-report", *told)
    return run


def test_the_circle_with_an_endpoint_and_the_monitor_as_a_pipeline(
    cloud: SmallSageMaker, watched: RemoteProject
) -> None:
    story = Story(watched, cloud)
    ask(cloud, drifted(3))
    assert do(watched, "pipeline", "push", "--pipeline", "monitor.toml")["outcome"] == "created"
    no = executed(watched, "no", story)
    print(no)
    print(story.seen)
    assert 0
