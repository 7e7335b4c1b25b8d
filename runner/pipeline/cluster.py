"""Steps with a cluster: what is wrong with the table, and with the machines that it is spread over."""

from __future__ import annotations

from collections.abc import Iterator

from runner.records import Pipeline, StepSpec

MOST_WORKERS = 1000
MOST_MACHINES = 100  # of a processing job (botocore: ProcessingInstanceCount)


def findings(name: str, step: StepSpec, pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with a step's `cluster`, and with the machines that it is spread over."""
    where, cluster = f"steps.{name}.cluster", step.cluster
    if cluster is not None:
        if not 1 <= cluster.workers <= MOST_WORKERS:
            yield f"{where}.workers is {cluster.workers}; it is 1 to {MOST_WORKERS:,}."
        if cluster.worker_memory_gb is not None and not cluster.worker_memory_gb > 0:
            yield f"{where}.worker_memory_gb is {cluster.worker_memory_gb:g}; it is above 0."
    keys = {**pipeline.sagemaker.written(), **step.sagemaker.written()}
    machines, said = keys.get("instance_count", 1), f"steps.{name}.sagemaker: instance_count is"
    if not 1 <= machines <= MOST_MACHINES:
        yield f"{said} {machines}; it is 1 to {MOST_MACHINES}."
    elif machines > 1 and cluster is None:
        yield (
            f"{said} {machines}, and the step has no `cluster` that would use more machines than one. Write the key "
            f"in the table of a step that has one."
        )
    elif machines > 1 and step.map:
        yield f"{said} {machines}, and the keys of a mapped step share one machine: write instance_count = 1."
    elif machines > 1 and keys.get("job") == "training":
        yield f'{said} {machines}, and a training job here has one machine: write job = "processing".'
    elif cluster is not None and machines > cluster.workers:
        yield f"{said} {machines}, and its cluster has {cluster.workers} workers: each machine needs one."
