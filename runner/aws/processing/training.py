"""A step as a CreateTrainingJob request, and all that only training jobs have; equal steps give equal requests.

With `spot` its instance may be taken away and the job started again on another. So each start has a folder of its own
in S3, and the start that ends writes into result.json which one that is (`inside.py`):

    <bucket>/<prefix>runs/<run>/<step>/attempts/<n>/
        checkpoints/…            files of the notebook in RUNNER_CHECKPOINTS, copied by the service
        starts/<hex>/out/…, starts/<hex>/executed.ipynb
        result.json              written last: a start that finds a successful one executes nothing
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runner.aws.processing.request import (
    MODULE,
    JobAddresses,
    cluster,
    limit_s,
    network,
    refuse_inputs,
    tags,
    with_hash,
)
from runner.aws.settings import Settings
from runner.notebook.source import parsed, python_source, read_notebook
from runner.records import Pipeline, StepJob

CHANNELS, CHECKPOINTS = "/opt/ml/input/data", "/opt/ml/checkpoints"
SCRATCH = "/tmp"  # on the job's volume, and writable for every user
VARIABLE = "RUNNER_CHECKPOINTS"  # set in training jobs only
# the service's limits (botocore: InputDataConfig, MetricDefinitions)
MOST_CHANNELS, MOST_METRICS = 20, 40
OWN_CHANNELS = ("bundle", "step", "job")
METRIC = "runner:metric "
SHOWN = re.compile(r"[\w. -]{1,100}")  # names of metrics that can be part of an expression
RECORDING = ("metric", "glue")
WAITS = 2  # limit of a spot job with waiting for instances, as a multiple of its own


def request(
    name: str, job: StepJob, settings: Settings, at: JobAddresses, *, project: str, metrics: Iterable[str]
) -> dict[str, Any]:
    """The arguments of create_training_job. `metrics` are names for the job's page, which shows the first 40.

    Raises UsageError where the step exceeds the service's limits.
    """
    refuse_inputs(job.step, len(at.inputs), MOST_CHANNELS - len(OWN_CHANNELS), "training")
    own = dict(zip(OWN_CHANNELS, (at.bundle, at.step, f"{at.attempt}job/"), strict=True))
    limit = limit_s([job.timeout_s], settings)
    arguments: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": settings.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "-u", f"{CHANNELS}/bundle/_run.py"],
            "ContainerArguments": [MODULE],
            "MetricDefinitions": [definition(metric) for metric in list(metrics)[:MOST_METRICS]],
        },
        "InputDataConfig": [_channel(key, address) for key, address in (own | at.numbered).items()],
        "OutputDataConfig": {"S3OutputPath": f"{at.attempt}out/"},
        "CheckpointConfig": {"S3Uri": f"{at.attempt}checkpoints/", "LocalPath": CHECKPOINTS},
        "ResourceConfig": cluster(settings),
        "StoppingCondition": {"MaxRuntimeInSeconds": limit},
        "Environment": {
            "RUNNER_JOB": name,
            "RUNNER_INPUT": CHANNELS,
            "RUNNER_VOLUME": SCRATCH,
            "RUNNER_MESSAGE": "failure",
            VARIABLE: CHECKPOINTS,
        },
        "Tags": tags(settings, project=project, run=job.run, step=job.step),
    }
    if settings.spot:
        arguments["EnableManagedSpotTraining"] = True
        arguments["StoppingCondition"]["MaxWaitTimeInSeconds"] = WAITS * limit
    if settings.keep_warm_s:
        arguments["ResourceConfig"]["KeepAlivePeriodInSeconds"] = settings.keep_warm_s
    if settings.kms_key:
        arguments["OutputDataConfig"]["KmsKeyId"] = settings.kms_key
    if settings.vpc is not None or settings.encrypt_traffic:
        arguments |= network(settings)
    return with_hash(arguments)


def metrics(pipeline: Pipeline, step: str, notebook: Path) -> list[str]:
    """The metrics of a step that are known before it runs: those of the gate, then the names in its notebook's calls of
    `metric` or `glue`."""
    judged = [rule.metric.partition(".")[2] for rule in pipeline.gate if rule.metric.partition(".")[0] == step]
    return [name for name in dict.fromkeys([*judged, *_recorded(notebook)]) if SHOWN.fullmatch(name)]


def _recorded(notebook: Path) -> Iterator[str]:
    for cell in read_notebook(notebook).code:
        tree = parsed(python_source(cell))
        for node in ast.walk(tree) if tree is not None else ():
            match node:
                case ast.Call(
                    func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
                ) if called in RECORDING:
                    yield name


def metric_line(name: str, value: float) -> str:
    """The line in a job's log that reports a metric, as `definition` reads it."""
    return f"{METRIC}{name}={value!r}"


def definition(metric: str) -> dict[str, str]:
    """The definition by which the service shows a metric on the job's page."""
    return {"Name": metric, "Regex": f"{METRIC}{re.escape(metric)}=([-+.0-9e]+)"}


def _channel(name: str, address: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}
