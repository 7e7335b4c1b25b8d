"""What a target keeps of its requests, wherever that lies: a folder here, or a bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runner.errors import UsageError
from runner.model.captured import Captured, local_files, windows
from runner.records import SageMakerTargetSpec
from runner.serve.capture_settings import FOLDER, CaptureSettings

if TYPE_CHECKING:
    from runner.project import Project


@contextmanager
def capturing(project: Project, target: str) -> Iterator[CaptureSettings]:
    """How rows that are scored here are kept for the target; for an endpoint they are sent to S3 at the end.

    Raises UsageError where it keeps none, RemoteError where they cannot be sent.
    """
    settings = project.capture_settings(target)
    if settings is None:
        raise UsageError(f"[targets.{target}] keeps no requests. Write `capture = {{}}` there first.")
    if not isinstance(project.target(target), SageMakerTargetSpec):
        yield settings
        return
    from runner.aws.captured import send_captured

    with tempfile.TemporaryDirectory() as folder:
        yield msgspec.structs.replace(settings, folder=folder)
        send_captured(project.session(), project.spec, target, Path(folder))


def captured(project: Project, target: str, *, since: str = "", until: str = "") -> Iterator[Captured]:
    """The requests from `since` on and before `until`; see `runner.model.captured.windows`."""
    if isinstance(project.target(target), SageMakerTargetSpec):
        from runner.aws.captured import captured_files
        from runner.model.captured_envelopes import Envelopes

        envelopes = Envelopes(project.registry, target, project.version_folder)
        files = captured_files(project.session(), project.spec, target, since=since, until=until)
        return windows(files, since=since, until=until, envelopes=envelopes)
    settings = project.capture_settings(target)
    # what was kept before the target kept nothing any more
    folder = Path(settings.folder) if settings is not None else project.root / "runs" / FOLDER / target
    return windows(local_files(folder), since=since, until=until)
