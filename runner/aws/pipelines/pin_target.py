"""What an execution takes of a target, looked up when it starts, by its first job: what was captured until then.

The bytes are copied below runs/inputs/ of the bucket, where they stay: steps read them there, and the run that the
execution becomes here is reproduced from them. It is the jobs' role that reads captures, versions and their history.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from runner.aws.bucket import Bucket
from runner.aws.captured import captured_files
from runner.aws.pipelines.parameters import parameter_key
from runner.aws.pipelines.pushed import ABSENT, ABSENT_KEY, LEFT, JobReport, Pin, Pushed, put_source
from runner.aws.registry import SageMakerRegistry
from runner.aws.s3 import S3, split
from runner.errors import UsageError
from runner.model.captured import Captured, windows
from runner.model.captured_envelopes import Envelopes
from runner.model.versions import ModelVersion
from runner.pipeline.file import nearest
from runner.records import Artifact, Capture, InputFact, Pipeline, StepResult, StepSpec, decode
from runner.run.ports import WatchedTarget
from runner.run.store import Store, facts_of, files_of
from runner.run.target_inputs import ENDS, of_target
from runner.step.execute import RESULT

COPIES = "runs/inputs/"  # where the jobs' role may write


def target_pin(of: str, pushed: Pushed, values: Mapping[str, str], bucket: Bucket, registry: SageMakerRegistry) -> Pin:
    """The input "step.name" as it is now. Raises as `runner.run.target_inputs.of_target`."""
    step, _, name = of.partition(".")
    spec = pushed.pipeline.steps[step]
    assert pushed.watched is not None
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "runs", S3(bucket.session))
        store.prepare()
        targets = BucketTargets(pushed.watched, bucket, store, registry, Path(scratch))
        fact = of_target(spec.inputs[name], step, _window(step, spec, pushed, values), targets)
        if fact.artifact is None:
            return Pin(of=of, fact=fact, address=bucket.address(ABSENT_KEY), digest=ABSENT)
        address = put_source(_placed(fact, store, Path(scratch)), bucket, below=COPIES)
    return Pin(of=of, fact=fact, address=address, digest=fact.artifact.sha256)


def _window(step: str, spec: StepSpec, pushed: Pushed, values: Mapping[str, str]) -> tuple[str, str]:
    since, until = (
        values.get(parameter_key(step, spec, end), written)
        for end, written in zip(ENDS, pushed.windows[step], strict=True)
    )
    return since, until


def _placed(fact: InputFact, store: Store, scratch: Path) -> Path:
    """The input's bytes as a file or folder of its own."""
    assert fact.artifact is not None
    place = scratch / "pinned" / PurePosixPath(fact.artifact.path).name
    store.link(fact.artifact, place)
    return place


class BucketTargets:
    """Implements `runner.run.target_inputs.Watching` where there is nothing but the bucket and the registry."""

    def __init__(
        self, watched: Pipeline, bucket: Bucket, store: Store, registry: SageMakerRegistry, scratch: Path
    ) -> None:
        self.store, self.registry = store, registry
        self._watched, self._bucket, self._scratch = watched, bucket, scratch

    def target(self, name: str) -> WatchedTarget:
        spec = self._watched.targets.get(name)
        if spec is None:
            raise UsageError(f"There is no target {name!r} where this was pushed{nearest(name, self._watched.targets)}")
        return WatchedTarget(
            spec.capture or Capture(percent=0), lambda since, until: self._captured(name, since, until)
        )

    def outputs_of(self, version: ModelVersion) -> Iterator[tuple[str, Artifact]]:
        """What the version's run has left in S3: where its steps were jobs, or it was an execution itself."""
        arn = self.registry.deployable(version.name, version.version).package
        properties = self.registry.groups.describe(arn).get("MetadataProperties", {})
        for address in self._result_folders(str(properties["GeneratedBy"])) if "GeneratedBy" in properties else ():
            content = self._content(f"{address}{RESULT}")
            result = decode(StepResult, content, where=address) if content is not None else None
            if result is not None and result.error is None and result.remote is not None:
                for name, output in result.outputs.items():
                    for path, fact in files_of(output):
                        self.store.note_address(fact, result.remote.at + path)
                    yield name, output

    def _result_folders(self, run: str) -> list[str]:
        """The addresses of the folders with results: below the run's, and those that its jobs took from others."""
        bucket, key = split(run)
        below = [f"s3://{bucket}/{key}{path}" for path, _ in Bucket(self._bucket.session, bucket, key).keys("")]
        folders = {path.removesuffix(RESULT) for path in below if path.endswith(f"/{RESULT}")}
        for path in (path for path in below if path.endswith(f"/{LEFT}")):
            report = decode(JobReport, self._content(path) or b"", where=path)
            folders |= {f"{address}/" for address in (*report.before.values(), *report.at.values())}
        return sorted(folders)

    def _content(self, address: str) -> bytes | None:
        bucket, key = split(address)
        return Bucket(self._bucket.session, bucket).get(key)

    def _captured(self, name: str, since: str, until: str) -> Iterator[Captured]:
        files = captured_files(self._bucket.session, self._watched, name, since=since, until=until)
        envelopes = Envelopes(self.registry, name, self._model_folder)
        return windows(files, since=since, until=until, envelopes=envelopes)

    def _model_folder(self, version: ModelVersion) -> Path:
        for path, fact in facts_of(version.artifact).items():
            self.store.note_address(fact, version.location + path)
        folder = self._scratch / "models" / version.sha256
        self.store.link(version.artifact, folder)
        return folder
