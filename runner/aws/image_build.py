"""The build of an image of one's own, in the CodeBuild project of infra/image.yaml: started once, followed to its end.

<bucket>/<prefix>images/<server tag>/source.zip    Dockerfile, lock and this package: nothing of the project's data
                                     build.json    the build that was last started of it, to be followed again
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.aws.bucket import Bucket
from runner.aws.own_image import NO_REPOSITORY, OwnImage, details, own_image, wanted
from runner.aws.processing.bundle import zipped
from runner.aws.session import ABSENT, AwsError, Session
from runner.aws.settings import OWN, settings
from runner.errors import Detached, RemoteError, UsageError
from runner.records import Pipeline

RUNNING, GOOD = "IN_PROGRESS", "SUCCEEDED"
OTHER_BUILD_S = 120.0  # for its next tag, of an image whose layers are there already
LAST_LINES = 30  # of the log, in the error of a build that failed
DEPLOY = "Deploy infra/image.yaml, as docs/sagemaker.md, section 8, has it."


@dataclass(frozen=True)
class Push:
    """What a push came to; `build` is CodeBuild's id."""

    addresses: list[str]
    what: Literal["there", "would build", "building", "built"]
    build: str = ""
    size_bytes: int | None = None  # of the image as it is kept


def push_all(
    session: Session, spec: Pipeline, root: Path, *, wait: bool, dry_run: bool, say: Callable[[str], None]
) -> list[Push]:
    """Each image that pipeline.toml asks for. Raises UsageError where it asks for none."""
    common = settings(spec)
    serving = any(target.serving_image == OWN for target in spec.targets.values())
    needed: dict[str, tuple[OwnImage, list[str]]] = {}
    for chosen in (common, *(settings(spec, step) for step in spec.steps)):
        if OWN in (chosen.image, chosen.serving_image) or (serving and chosen is common):
            made = own_image(spec.name, chosen, session.region, root)
            tags = needed.setdefault(made.server, (made, []))[1]
            tags += [tag for tag in wanted(made, chosen, serving=serving and chosen is common) if tag not in tags]
    if not needed:
        raise UsageError(
            'Nothing in pipeline.toml asks for an image of your own. Write [sagemaker] image = "own" for jobs, '
            '[targets.NAME] serving_image = "own" for an endpoint.'
        )
    bucket = Bucket(session, common.bucket, common.prefix)
    return [
        push(session, bucket, made, tags, wait=wait, dry_run=dry_run, poll_s=common.poll_s, say=say)
        for made, tags in needed.values()
    ]


def push(
    session: Session,
    bucket: Bucket,
    made: OwnImage,
    tags: Sequence[str],
    *,
    wait: bool,
    dry_run: bool,
    poll_s: float,
    say: Callable[[str], None],
) -> Push:
    """See to it that the repository has the tags; what is there is not built again.

    `say` is told how far it is. Raises UsageError where infra/image.yaml is not deployed, RemoteError with the end of the
    log where the build failed, Detached where somebody did not wait.
    """
    addresses = [made.address(tag) for tag in tags]
    there = {tag: _found(session, made, tag) for tag in tags}
    missing = [tag for tag, found in there.items() if found is None]
    if not missing:
        return Push(addresses, "there", size_bytes=_size(there[tags[-1]]))
    if dry_run:
        return Push(addresses, "would build")
    build = _running(session, bucket, made) or _start(session, bucket, made, missing)
    if not wait:
        return Push(addresses, "building", build)
    ended = _follow(session, build, poll_s, say)
    if not _arrived(session, made, missing, poll_s):
        raise RemoteError(_failure(session, made, ended))
    return Push(addresses, "built", build, _size(_found(session, made, missing[-1])))


def _found(session: Session, made: OwnImage, tag: str) -> dict[str, Any] | None:
    try:
        return details(session, made, tag)
    except AwsError as error:
        if error.code == NO_REPOSITORY:
            raise UsageError(f"There is no repository {made.name} in {made.region}. {DEPLOY}") from error
        raise


def _arrived(session: Session, made: OwnImage, tags: Sequence[str], poll_s: float) -> bool:
    """Whether all tags are there. Where some are, another build was first with them and is pushing the others."""
    until = time.monotonic() + OTHER_BUILD_S
    while True:
        there = [_found(session, made, tag) is not None for tag in tags]
        if all(there) or not any(there) or time.monotonic() > until:
            return all(there)
        time.sleep(poll_s)


def _size(found: dict[str, Any] | None) -> int | None:
    return found.get("imageSizeInBytes") if found is not None else None


def _key(made: OwnImage, name: str) -> str:
    return f"images/{made.server}/{name}"


def _running(session: Session, bucket: Bucket, made: OwnImage) -> str:
    """The build of the same content that somebody has started and that goes on; "" where there is none."""
    content = bucket.get(_key(made, "build.json"))
    if content is None:
        return ""
    try:
        build = str(json.loads(content)["id"])
    except (KeyError, TypeError, ValueError):  # damaged: as if nobody had started one
        return ""
    found = _builds(session, build)
    return build if found and found[0]["buildStatus"] == RUNNING else ""


def _start(session: Session, bucket: Bucket, made: OwnImage, tags: Sequence[str]) -> str:
    key = _key(made, "source.zip")
    bucket.put(key, zipped(made.files))
    variables = {"PYTHON": made.python, "TAGS": " ".join(tags)}
    try:
        reply = session.call(
            "codebuild",
            "start_build",
            about=f"CodeBuild project {made.name}",
            projectName=made.name,
            sourceTypeOverride="S3",
            sourceLocationOverride=bucket.address(key).removeprefix("s3://"),
            environmentVariablesOverride=[{"name": name, "value": value} for name, value in variables.items()],
            idempotencyToken=uuid.uuid4().hex,  # a lost reply starts nothing twice
        )
    except AwsError as error:
        if error.code in ABSENT:
            raise UsageError(f"There is no CodeBuild project {made.name} in {made.region}. {DEPLOY}") from error
        raise
    build = str(reply["build"]["id"])
    bucket.put(_key(made, "build.json"), json.dumps({"id": build}).encode())
    return build


def _follow(session: Session, build: str, poll_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The build as it ended. Raises Detached for Ctrl-C, which does not stop it."""
    began, phase = time.monotonic(), ""
    try:
        while True:
            found = _builds(session, build)
            if not found:
                raise RemoteError(
                    f"CodeBuild does not know the build {build} any more. Start another: runner image push"
                )
            if found[0]["buildStatus"] != RUNNING:
                return found[0]
            if found[0].get("currentPhase", "") != phase:
                phase = str(found[0]["currentPhase"])
                say(f"{phase.lower().replace('_', ' ')} after {time.monotonic() - began:.0f} s")
            time.sleep(poll_s)
    except KeyboardInterrupt:
        raise Detached(f"The build {build} goes on; `runner image push` follows it again.", run="") from None


def _builds(session: Session, build: str) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = session.call(
        "codebuild", "batch_get_builds", about=f"build {build}", ids=[build]
    )["builds"]
    return found


def _failure(session: Session, made: OwnImage, ended: dict[str, Any]) -> str:
    """What CodeBuild says of the phase that failed, and the end of the log."""
    failed = [phase for phase in ended.get("phases", []) if phase.get("phaseStatus") not in (None, GOOD)]
    reasons = [context.get("message", "") for phase in failed for context in phase.get("contexts", [])]
    if ended["buildStatus"] == GOOD:
        reasons = [f"it has pushed no {made.name}; is the project as infra/image.yaml has it?"]
    logs = ended.get("logs", {})
    lines: list[str] = []
    try:
        page = session.call(
            "logs",
            "get_log_events",
            about=f"the log of {ended['id']}",
            logGroupName=logs["groupName"],
            logStreamName=logs["streamName"],
            limit=LAST_LINES,
            startFromHead=False,
        )
        lines = [event["message"].rstrip("\n") for event in page["events"]]
    except KeyError:
        lines = ["It has no log: it ended before its first line."]
    except AwsError as error:
        lines = [f"Its log cannot be read: {error}"]
    said = " ".join(filter(None, reasons))
    return "\n".join([f"The build {ended['id']} ended {ended['buildStatus']}. {said}".rstrip(), *lines])
