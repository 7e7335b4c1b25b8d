"""The status of a run's model version now: its manifest has the one at its end, and somebody may have decided since."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from runner.errors import RunnerError, UsageError
from runner.manifest import ModelVersionRef, RunManifest
from runner.model.versions import ModelVersion, Registry
from runner.run.registration import model_artifact


def as_of_now(manifests: Sequence[RunManifest], registry: Registry) -> list[RunManifest]:
    """The runs with their versions' status now, to show and not to store; "unknown" where the registry cannot be read."""
    known: dict[str, Sequence[ModelVersion] | RunnerError] = {}
    for name in {manifest.model_version.name for manifest in manifests if manifest.model_version}:
        try:
            known[name] = registry.list(name)
        except UsageError:  # it has no such model
            known[name] = []
        except RunnerError as error:
            known[name] = error
    return [
        msgspec.structs.replace(manifest, model_version=_now(manifest, manifest.model_version, known))
        if manifest.model_version
        else manifest
        for manifest in manifests
    ]


def _now(
    manifest: RunManifest, then: ModelVersionRef, known: dict[str, Sequence[ModelVersion] | RunnerError]
) -> ModelVersionRef:
    versions, model = known[then.name], model_artifact(manifest)
    why = "the registry here does not have it"
    if isinstance(versions, RunnerError):
        versions, why = [], f"what it is now cannot be read: {versions}"
    for version in versions:
        if version.version == then.version and model is not None and version.sha256 == model.sha256:
            return msgspec.structs.replace(
                then,
                status=version.status,
                status_at_end=then.status,
                decided_by=version.decided_by,
                decided=version.decided,
            )
    return msgspec.structs.replace(then, status="unknown", status_at_end=then.status, unknown=why)
