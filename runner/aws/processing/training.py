"""A step as a CreateTrainingJob request: what such a job has that a processing job has not is here; pure, as `request`.

Its instance may be taken away and the job begun anew on another one (`spot`). So what a start puts into S3 has a place of
its own, and the start that comes to an end says in result.json which it was (`inside.py`):

    <bucket>/<prefix>runs/<run>/<step>/attempts/<n>/
        checkpoints/…            what the notebook leaves in RUNNER_CHECKPOINTS, kept in step by the service
        starts/<hex>/out/…, starts/<hex>/executed.ipynb
        result.json              written last: a job that finds a good one has nothing left to do
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
    input_name,
    limit_s,
    network,
    refuse_inputs,
    sealed,
    tags,
)
from runner.aws.settings import Settings
from runner.notebook.source import parsed, python_source, read_notebook
from runner.records import Pipeline, StepJob

CHANNELS, CHECKPOINTS = "/opt/ml/input/data", "/opt/ml/checkpoints"
SCRATCH = "/tmp"  # on the job's volume, and whoever the image's user is may write there
VARIABLE = "RUNNER_CHECKPOINTS"  # of a training job alone
# the service's limits (botocore: InputDataConfig, MetricDefinitions)
MOST_CHANNELS, MOST_METRICS = 20, 40
OWN_CHANNELS = ("bundle", "step", "job")
METRIC = "runner:metric "
SHOWN = re.compile(r"[\w. -]{1,100}")  # names of metrics that an expression can be made of
RECORDING = ("metric", "glue")
WAITS = 2  # times its own limit that a job on spot may take, with waiting for instances


def request(
    name: str, job: StepJob, settings: Settings, at: JobAddresses, *, project: str, metrics: Iterable[str]
) -> dict[str, Any]:
    """The arguments of create_training_job. `metrics` are names that its page is to show; the first 40 are.

    Raises UsageError where the step is beyond the service's limits.
    """
    refuse_inputs(job.step, len(at.inputs), MOST_CHANNELS - len(OWN_CHANNELS), "training")
    inputs = {input_name(number): address for number, (_, address) in enumerate(sorted(at.inputs.items()))}
    own = dict(zip(OWN_CHANNELS, (at.bundle, at.step, f"{at.attempt}job/"), strict=True))
    limit = limit_s([job.timeout_s], settings)
    made: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": settings.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "-u", f"{CHANNELS}/bundle/_run.py"],
            "ContainerArguments": [MODULE],
            "MetricDefinitions": [definition(metric) for metric in list(metrics)[:MOST_METRICS]],
        },
        "InputDataConfig": [_channel(key, address) for key, address in (own | inputs).items()],
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
        made |= {"EnableManagedSpotTraining": True}
        made["StoppingCondition"]["MaxWaitTimeInSeconds"] = WAITS * limit
    if settings.keep_warm_s:
        made["ResourceConfig"]["KeepAlivePeriodInSeconds"] = settings.keep_warm_s
    if settings.kms_key:
        made["OutputDataConfig"]["KmsKeyId"] = settings.kms_key
    if settings.vpc is not None or settings.encrypt_traffic:
        made |= network(settings)
    return sealed(made)


def metrics(pipeline: Pipeline, step: str, notebook: Path) -> list[str]:
    """The metrics of a step that are known before it runs: those that the gate judges, then those whose names stand in
    its notebook's calls of `metric` or `glue`."""
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
    """What a job says of a metric in its log, as `definition` reads it."""
    return f"{METRIC}{name}={value!r}"


def definition(metric: str) -> dict[str, str]:
    """What has the service show a metric on the job's page."""
    return {"Name": metric, "Regex": f"{METRIC}{re.escape(metric)}=([-+.0-9e]+)"}


def _channel(name: str, address: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}
