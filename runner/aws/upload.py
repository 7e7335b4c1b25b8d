"""A table uploaded for jobs: named by its content, so that the same bytes are moved once."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.rights import identity
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.errors import Refused, UsageError
from runner.records import Pipeline

DATA = "data/"
# below these the stacks of infra/ and CodePipeline keep their files, beside the project's prefix
RESERVED = ("delivery-", "deploy-", "rest/", "studio/")
NAMED_BY = 16  # digits of the hash in the key


@dataclass(frozen=True)
class Uploaded:
    """`moved_bytes` is what was sent, or would be without the dry run; 0 where the same bytes are there already.
    `default_bucket` is the account's, where [sagemaker] bucket is not set."""

    address: str
    sha256: str
    size_bytes: int
    moved_bytes: int
    default_bucket: str | None = None


def upload(
    spec: Pipeline, file: Path, *, to: str | None = None, as_: str | None = None, replace: bool, dry_run: bool
) -> Uploaded:
    """Copy the file to `<prefix>data/<sha256>/<name>` in [sagemaker] bucket, to `<prefix>data/<to>`, or to the key
    `as_` of the bucket; without a bucket there, in the one that SageMaker has made for the account and region.

    Raises UsageError for what is not a regular file, where there is neither bucket, and for a key that is the runner's;
    Refused where `to` or `as_` has other content and `replace` does not say that it may go.
    """
    before = _regular(file)
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    by_content = to is None and as_ is None
    option, argument = ("--to", to) if as_ is None else ("--as", as_)
    key = f"{sha256[:NAMED_BY]}/{file.name}" if argument is None else _key(option, argument, file.name)
    place = in_bucket(spec)
    if as_ is not None:
        if key.startswith((place.prefix, *RESERVED)):
            raise UsageError(
                f"--as {as_!r} is the runner's own: {place.prefix} and {', '.join(RESERVED)} in the bucket are. "
                "Choose another folder, or put the table among the project's with --to."
            )
        place = Bucket(place.session, place.name)
    else:
        key = DATA + key
    present_bytes = place.size(key)
    # a key that has the hash in it has those bytes, or another program wrote there
    same = present_bytes == before.st_size and (by_content or place.digest(key).sha256 == sha256)
    if not same and present_bytes is not None and not replace:
        raise Refused(
            f"{place.address(key)} has other content, {present_bytes:,} bytes of it. Runs that read it could not be "
            "repeated; leave the key away to have a name by content, or write --replace."
        )
    if not same and not dry_run:
        place.upload(key, file, missing_only=False)
        after = _regular(file)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise Refused(
                f"{file} was changed while it was read, so {place.address(key)} is of no use. "
                f"Remove it with `aws s3 rm {place.address(key)}`, and upload again."
            )
    default = place.name if spec.sagemaker.bucket is None else None
    return Uploaded(place.address(key), sha256, before.st_size, 0 if same else before.st_size, default)


def lines(spec: Pipeline, root: Path, file: Path, uploaded: Uploaded) -> list[str]:
    """What to write in pipeline.toml to read it there: where this file is read now, or where any table is."""
    bucket = [] if uploaded.default_bucket is None else [f'[sagemaker] bucket = "{uploaded.default_bucket}"']
    inputs = _inputs(spec, root, file)
    return [*bucket, *(f'[steps.{step}] inputs: {name} = "{uploaded.address}"' for step, name in inputs)]


def commands(spec: Pipeline, root: Path, file: Path, uploaded: Uploaded) -> list[str]:
    """The commands that read it once, in a run and in an execution of the Pipeline, with pipeline.toml as it is."""
    assignments = (f"{step}.{name}={uploaded.address}" for step, name in _inputs(spec, root, file))
    options = " ".join(f"-p {shlex.quote(assignment)}" for assignment in assignments)
    return [f"runner run --on sagemaker {options}", f"runner pipeline start {options}"] if options else []


def _inputs(spec: Pipeline, root: Path, file: Path) -> list[tuple[str, str]]:
    """(step, input) of those that read this file, or of all that read something from outside the pipeline."""
    sources = {
        (step, name): source.from_
        for step, step_spec in spec.steps.items()
        for name, source in step_spec.inputs.items()
        if source.from_.startswith(("./", "../", "/")) or "://" in source.from_
    }
    local = {place: root / source for place, source in sources.items() if "://" not in source}
    return [place for place, path in local.items() if path.resolve() == file.resolve()] or list(sources)


def _regular(file: Path) -> os.stat_result:
    try:
        status = file.stat()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{file} is a folder; a table is one file. `aws s3 sync {file} s3://…/` copies a folder.")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(
            f"{file} is not a regular file, so it has no size and could not be read twice. Save it as one."
        )
    return status


def in_bucket(spec: Pipeline) -> Bucket:
    """[sagemaker] bucket or the default one, at its prefix; what else jobs need may be unset."""
    session = Session(spec.sagemaker.region, kms_key=spec.sagemaker.kms_key)
    bucket = spec.sagemaker.bucket or _default_bucket(session)
    role, image = spec.sagemaker.role or "-", spec.sagemaker.image or "-"
    filled = msgspec.structs.replace(spec.sagemaker, bucket=bucket, role=role, image=image)
    aws = settings(msgspec.structs.replace(spec, sagemaker=filled))
    return Bucket(session, aws.bucket, aws.prefix)


def _default_bucket(session: Session) -> str:
    """The bucket that Studio and the SDK make in each account and region. Raises UsageError where they have not."""
    account = identity(session).account
    name = f"sagemaker-{session.region}-{account}"
    # the caller's policy allows this question; HeadBucket needs the right to list the whole bucket
    request = {"Bucket": name, "ExpectedBucketOwner": account}
    if session.find("s3", "get_bucket_location", about=f"bucket {name}", **request) is None:
        raise UsageError(
            "pipeline.toml does not say where to, and the account has no default bucket: "
            f'write [sagemaker] bucket = "…", or make {name} with `aws s3 mb s3://{name}`.'
        )
    return name


def _key(option: str, key: str, name: str) -> str:
    if key.startswith(("/", "s3://")) or {"", ".", ".."} & set(key.removesuffix("/").split("/")) or not key.strip():
        below = "the project's data/" if option == "--to" else "the bucket"
        raise UsageError(f"{option} {key!r} is not a key below {below}; write one such as june/table.csv, or june/.")
    return key + name if key.endswith("/") else key
