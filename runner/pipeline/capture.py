"""What can be said of a target's `capture` without serving anything."""

from __future__ import annotations

from collections.abc import Iterator

from runner.records import SageMakerTargetSpec, Target

OF_PROCESSES = ("days", "max_mb", "hash", "leave_out", "keep")  # what SageMaker's own data capture cannot do


def capture_findings(where: str, target: Target) -> Iterator[str]:
    """A sentence for each thing that is wrong; `where` is the target's table."""
    capture = target.capture
    if capture is None:
        return
    where = f"{where}.capture"
    if not 0 <= capture.percent <= 100:
        yield f"{where}.percent is {capture.percent}; it is 0 to 100."
    remote = capture.to is not None and "://" in capture.to
    if isinstance(target, SageMakerTargetSpec):
        if target.serverless is not None:
            yield (
                f"{where}: SageMaker captures nothing at a serverless endpoint, and its container may stand still from "
                "one request to the next, before it has sent what it was asked. Name an instance, or take capture out."
            )
        if capture.to is not None and not capture.to.startswith("s3://"):
            yield f"{where}.to is {capture.to!r}; an endpoint writes to S3: s3://BUCKET/PREFIX."
        for key in OF_PROCESSES:
            if getattr(capture, key):
                yield (
                    f"{where}.{key}: an endpoint's requests are captured by SageMaker, whole and as they came. "
                    "Take the key out; only a local target has it."
                )
        return
    if remote or capture.to == "":
        yield f"{where}.to is {capture.to!r}; a local target writes to a folder."
    for key in ("days", "max_mb"):
        value = getattr(capture, key)
        if value is not None and value < 1:
            yield f"{where}.{key} is {value}; it is 1 or more."
    for name in sorted({*capture.leave_out} & {*capture.hash, *capture.keep}):
        other = "hash" if name in capture.hash else "keep"
        yield f"{where}: {name!r} stands in leave_out and in {other}; take it out of one of them."
