"""The addresses of a step's inputs for its job: in S3 already, or put there now, once for all jobs."""

from __future__ import annotations

from pathlib import PurePosixPath

from runner.aws.bucket import Bucket
from runner.manifest import RunManifest
from runner.pipeline.file import is_address
from runner.records import InputFact, StepJob
from runner.run.inputs import origin
from runner.run.store import Store, facts_of


def put_inputs(job: StepJob, store: Store, bucket: Bucket) -> tuple[dict[str, str], dict[str, str]]:
    """The address of each input that is copied to the job, and the name of its file there."""
    manifest = store.manifest_as_written(job.run)
    addresses, files = {}, {}
    for name, fact in job.inputs.items():
        if not fact.present or fact.as_ == "uri":
            continue
        addresses[name] = _address(fact, manifest, store, bucket, f"Input {name} of step {job.step}")
        files[name] = "" if addresses[name].endswith("/") else PurePosixPath(addresses[name]).name
    return addresses, files


def _address(fact: InputFact, manifest: RunManifest, store: Store, bucket: Bucket, where: str) -> str:
    assert fact.artifact is not None
    if fact.listed:
        return fact.source
    upstream, _, output = fact.source.partition(".")
    state = next((state for state in manifest.steps if state.name == upstream), None)
    result = state.result if state is not None else None
    if result is not None and result.remote is not None and output in result.outputs:
        return result.remote.at + result.outputs[output].path
    outside = origin(fact, where, store)
    key = f"inputs/{fact.artifact.sha256}/"
    path = fact.artifact.path.partition("?")[0] if is_address(fact.source) else fact.artifact.path
    name = PurePosixPath(path.rstrip("/")).name or "source"
    for relative, part in facts_of(fact.artifact).items():
        file = store.object(part) if outside is None else outside / relative if relative else outside
        bucket.upload(key + (relative or name), file)
    return bucket.address(key if fact.artifact.files is not None else key + name)
