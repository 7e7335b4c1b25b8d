"""What a run's model version is now: the run says what it was when it ended, and somebody may have decided since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from runner.errors import RunnerError, UsageError
from runner.manifest import ModelVersionRef, RunManifest
from runner.model.versions import ModelVersion
from runner.run.registration import model_artifact


class Registered(Protocol):
    def list(self, name: str | None = None) -> Sequence[ModelVersion]: ...


def as_of_now(manifests: Sequence[RunManifest], registry: Registered) -> list[RunManifest]:
    """The runs with the state that their versions have now, for people and programs to look at; not to be stored.

    A registry that cannot be read makes it "unknown", with the reason.
    """
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
    found, made = known[then.name], model_artifact(manifest)
    if isinstance(found, RunnerError):
        why = f"what it is now cannot be read: {found}"
        return msgspec.structs.replace(then, status="unknown", status_at_end=then.status, unknown=why)
    for version in found:
        if version.version == then.version and made is not None and version.sha256 == made.sha256:
            return msgspec.structs.replace(
                then,
                status=version.status,
                status_at_end=then.status,
                decided_by=version.decided_by,
                decided=version.decided,
            )
    why = "the registry here does not have it"
    return msgspec.structs.replace(then, status="unknown", status_at_end=then.status, unknown=why)
