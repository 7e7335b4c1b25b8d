"""What has to hold in AWS before a job is started, checked without starting one: a line for each, with the fix.

Only the probe costs money, and runs only when it is asked for. What the caller may not ask is unknown, with the reason,
and is not a failure: least privilege does not include every question.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.evidence import events, executions, training
from runner.aws.own_image import PUSH, image_details, lacking, named, own_image
from runner.aws.probe import INSTANCE, LIMIT_S, ceiling, probe
from runner.aws.processing import wheels
from runner.aws.processing.estimate import most_usd
from runner.aws.processing.executor import kind_for
from runner.aws.processing.jobs import PROCESSING
from runner.aws.processing.prices import Prices
from runner.aws.rights import GRANT, NAME_A_ROLE, Caller, identity, job_rights, logs, pass_role, registry, role
from runner.aws.session import DENIED, AwsError, Session
from runner.aws.settings import NEEDED, OWN, Settings, lock_file, settings
from runner.errors import PipelineError, RemoteError, RunnerError, counted
from runner.records import Pipeline, SageMakerTargetSpec
from runner.run.doctor import Check, failed, ok, unknown
from runner.run.store import Store

PATIENCE_S = 4.0  # a question that is not answered by then is reported as such
T = TypeVar("T")
P = ParamSpec("P")
UNSET = "unset"  # stands for a key that is missing, so that the others can be checked
IMAGE = re.compile(
    r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+)(?::([^@:]+))?(?:@(sha256:\w+))?"
)
NO_IMAGE = ("RepositoryNotFoundException", "ImageNotFoundException", "RegistryNotFoundException")
INDEXES = ("manifest.list", "image.index")  # in the media type of an image for several machines
NAME_AN_IMAGE = (
    'write [sagemaker] image = "ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG", which jobs start; docs/sagemaker.md, '
    "step 4, has AWS's own, and infra/Dockerfile makes one"
)
WRITE_A_REGION = 'write [sagemaker] region = "eu-west-1", or the region that is yours'
NEEDED_BY_JOBS = ("region", "bucket", "role", "passrole", "jobs", "image", "quota")
FIXES = {  # of keys that are not set
    "bucket": 'write [sagemaker] bucket = "…", an S3 bucket in the region; `aws s3 mb s3://NAME` makes one',
    "role": NAME_A_ROLE,
    "image": NAME_AN_IMAGE,
}


def account(
    spec: Pipeline, root: Path, *, run_probe: bool = False, say: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """The checks of a pipeline's [sagemaker], each made when it is asked for.

    `say` gets a sentence before what takes long or costs something.
    """
    missing = [key for key in NEEDED if getattr(spec.sagemaker, key) is None]
    unset = msgspec.structs.replace(spec.sagemaker, **dict.fromkeys(missing, UNSET))
    whole = msgspec.structs.replace(spec, sagemaker=unset)
    try:
        common = settings(whole)
        steps = {name: settings(whole, name) for name in whole.steps} or {"": common}
    except PipelineError as error:
        yield from (failed("settings", finding, "correct it in pipeline.toml") for finding in error.findings)
        return
    yield from (failed(key, f"[sagemaker] {key} is not set", FIXES[key]) for key in missing)
    try:
        session = _session(common)
        where = region(session, common)
        yield where
        if where.status == "failed":
            yield unknown("the rest", "cannot be asked for without a region")
            return
        caller = identity(session)
    except AwsError as error:
        name, fix = _access_fix(error)
        yield failed(name, _line(error), fix, code=error.exit_code)
        yield unknown("the rest", "cannot be asked for without credentials and a region")
        return
    yield ok("credentials", f"{caller.arn} of account {caller.account}")
    broken = bool(missing)
    for check in _set_up(session, caller, spec, steps, root, with_probe=run_probe):
        broken = broken or (check.status == "failed" and check.name in NEEDED_BY_JOBS)
        yield check
    packages = _asked("packages", environment, session, common, root, say)
    yield packages
    if not run_probe:
        offer = f"`runner doctor --on sagemaker --probe` starts one {INSTANCE} for {LIMIT_S // 60} minutes at most"
        yield unknown(
            "versions", f"only a job can compare the image with {common.lock}: {offer}{ceiling(common, root)}"
        )
    elif broken or packages.status == "failed":
        yield unknown("versions", "the probe was not started, as what it needs has failed above")
    else:
        say(f"starting one {INSTANCE} for {LIMIT_S // 60} minutes at most{ceiling(common, root)}")
        patient = Session(common.region, kms_key=common.kms_key)
        job_settings = named(spec.name, common, session.region, root)
        yield _asked("versions", probe, patient, spec.name, job_settings, root=root)


def _set_up(
    session: Session, caller: Caller, spec: Pipeline, steps: dict[str, Settings], root: Path, *, with_probe: bool
) -> Iterator[Check]:
    """What somebody has to have set up, each different part once."""
    for name, prefix in _distinct((aws.bucket, aws.prefix) for aws in steps.values()):
        if name != UNSET:
            yield _asked("bucket", bucket, Bucket(session, name, prefix))
    for arn in _distinct(aws.role for aws in steps.values()):
        if arn != UNSET:
            yield _asked("role", role, session, caller, arn)
            yield _asked("passrole", pass_role, session, caller, arn)
    kinds = _distinct([*([PROCESSING] if with_probe else []), *map(kind_for, steps.values())])
    for kind in kinds:
        yield _asked("jobs", job_rights, session, caller, spec.name, kind)
    for address in _distinct(aws.image for aws in steps.values()):
        if address not in (UNSET, OWN):
            yield _asked("image", image, session, caller, address)
    for own_image_of in own_images(spec, steps):
        yield _asked("image", own, session, spec.name, root, *own_image_of)
    instances = [(aws.instance, use) for aws in steps.values() for use in uses(aws)]
    yield from quotas(session, _distinct([*instances, *([(INSTANCE, "processing job")] if with_probe else [])]))
    yield _asked("registry", registry, session, caller, spec)
    common = next(iter(steps.values()))
    if common.bucket != UNSET:
        yield _asked("events", events, session, spec, common)
    yield _asked("executions", executions, session, spec)
    if any(aws.trains for aws in steps.values()):
        yield _asked("training", training, session, Store(root / "runs"))
    for kind in kinds:
        yield _asked("logs", logs, session, kind)
    yield _asked("price", price, spec, steps, root)


def region(session: Session, aws: Settings) -> Check:
    if not session.region:  # a variable that is set to nothing, as in CI
        return failed("region", "AWS_REGION is set to nothing", WRITE_A_REGION)
    source = f"{session.region} ({'[sagemaker] region' if aws.region else 'from the environment'})"
    if session.region not in session.regions("sagemaker"):
        return failed(
            "region", f"{source} has no SageMaker that botocore knows", "spell it as AWS does, or update boto3"
        )
    return ok("region", source)


def bucket(place: Bucket) -> Check:
    """Whether it is in the region and does what a run needs: write once, read back, tell what is not there."""
    name, jobs_region = place.name, place.session.region
    try:
        location = place.session.find("s3", "get_bucket_location", about=f"bucket {name}", Bucket=name)
        if location is None:
            return failed("bucket", f"there is no s3://{name}", f"`aws s3 mb s3://{name} --region {jobs_region}`")
        region = location.get("LocationConstraint") or "us-east-1"
        region = "eu-west-1" if region == "EU" else region
    except AwsError as error:
        if error.code not in DENIED:
            raise
        region = ""
    if region not in (jobs_region, ""):
        fix = f'name a bucket in {jobs_region}, or write [sagemaker] region = "{region}"'
        return failed("bucket", f"s3://{name} is in {region}, jobs would run in {jobs_region}", fix)
    key, content = f"doctor/{secrets.token_hex(8)}", b"written by runner doctor\n"
    try:
        place.size(key)
    except AwsError as error:
        if error.code in DENIED:
            problem = f"what is in s3://{name}/{place.prefix} may not be listed, so what is not there cannot be told"
            return failed("bucket", problem, f"grant s3:ListBucket below it: {GRANT}", code=error.exit_code)
        raise
    place.put(key, content, once=True)
    try:
        twice = place.put(key, content, once=True)
        back = place.get(key)
    finally:
        left = ""
        try:
            place.delete(key)
        except AwsError as error:
            left = f"; {place.address(key)} stays ({error.code})"
    if twice or back != content:
        problem = "takes If-None-Match and overwrites all the same" if twice else "gives other bytes back"
        return failed("bucket", f"s3://{name} {problem}{left}", "name a bucket of S3 itself")
    note = "" if region else ", in a region that the caller may not ask for (s3:GetBucketLocation)"
    return ok("bucket", f"s3://{name}/{place.prefix} takes objects, once where asked, and gives them back{note}{left}")


def image(session: Session, caller: Caller, address: str) -> Check:
    match = IMAGE.fullmatch(address)
    if match is None:
        problem = f"{address} is in no private registry of ECR, which jobs take images from"
        return failed("image", problem, NAME_AN_IMAGE)
    owner, region, repository, tag, digest = match.groups()
    if region != session.region:
        fix = f"name one in {session.region}; infra/Dockerfile says how to push one there"
        return failed("image", f"{address} is in {region}, jobs would run in {session.region}", fix)
    image_id = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    repository_of = {"registryId": owner, "repositoryName": repository}
    try:
        reply = session.call("ecr", "describe_images", about=f"image {address}", **repository_of, imageIds=[image_id])
    except AwsError as error:
        if error.code in NO_IMAGE:
            fix = "push it, as infra/Dockerfile says, or name one that is there"
            return failed("image", f"there is no {address}", fix)
        if error.code in DENIED and owner != caller.account:
            return unknown("image", f"{address}: account {owner} tells nobody what it has; a job fails at its start")
        if error.code in DENIED:
            return unknown("image", f"{address}: the caller may not ask (ecr:DescribeImages)")
        raise
    details = reply["imageDetails"][0]
    if any(kind in details.get("imageManifestMediaType", "") for kind in INDEXES):
        return unknown("image", f"{address} is a list of images, and whether jobs take one is not documented")
    return ok("image", f"{address}{_size(details)}")


def own_images(spec: Pipeline, steps: dict[str, Settings]) -> list[tuple[Settings, str, bool]]:
    """(settings, the key of pipeline.toml, whether it is to serve) of each image of one's own, once."""
    targets = [
        f"[targets.{name}] serving_image"
        for name, target in spec.targets.items()
        if isinstance(target, SageMakerTargetSpec) and target.serving_image == OWN
    ]
    images: dict[tuple[str, str, bool], tuple[Settings, str, bool]] = {}
    for aws in steps.values():
        keys = ["[sagemaker] serving_image"] if aws.serving_image == OWN else targets
        if aws.image == OWN:
            images.setdefault((aws.lock, aws.python, False), (aws, "[sagemaker] image", False))
        if keys and aws.role != UNSET:
            images.setdefault((aws.lock, aws.python, True), (aws, keys[0], True))
    return list(images.values())


def own(session: Session, project: str, root: Path, aws: Settings, key: str, serves: bool) -> Check:
    image = own_image(project, aws, session.region, root)
    tag = image.server if serves else image.environment
    try:
        if reason := lacking(session, image, tag):
            return failed("image", f'{key} = "own", and {reason}', f"{PUSH} builds it.")
        size = _size(image_details(session, image, tag))
    except AwsError as error:
        if error.code in DENIED:
            return unknown("image", f'{key} = "own": the caller may not ask (ecr:DescribeImages)')
        raise
    return ok("image", f"{image.address(tag)} is of this {image.lock}{size}")


def _size(details: dict[str, Any] | None) -> str:
    size_bytes = (details or {}).get("imageSizeInBytes")
    return f", {size_bytes / 1e6:,.0f} MB" if size_bytes is not None else ""


def uses(aws: Settings) -> list[str]:
    """What a step's instance is used for, as quotas are named."""
    return [aws.kind, *(["training warm pool"] if aws.keep_warm_s else [])]


def quotas(session: Session, instances: list[tuple[str, str]]) -> Iterator[Check]:
    """How many of each (instance, use) there may be at once. A quota's code is known only from the list of all."""
    wanted = {f"{kind} for {use} usage": (kind, use) for kind, use in instances}
    known: dict[str, dict[str, Any]] = {}
    try:
        for action in ("list_service_quotas", "list_aws_default_service_quotas"):
            if missing := wanted.keys() - known.keys():
                known |= _listed(session, action, missing)
    except AwsError as error:
        why = f"Service Quotas did not answer ({error.code})"
        if error.code in DENIED:
            why = "the caller may not ask (servicequotas:ListServiceQuotas)"
        kinds = ", ".join(_distinct(kind for kind, _ in instances))
        yield unknown("quota", f"{kinds}: {why}. A job beyond it fails when it is created")
        return
    for name, (kind, use) in wanted.items():
        if (quota := known.get(name)) is None:
            yield unknown("quota", f"Service Quotas lists no {name!r}; is there a {use} on {kind}?")
        elif quota["Value"] < 1:
            request = "aws service-quotas request-service-quota-increase --service-code sagemaker --quota-code"
            arguments = f"{quota['QuotaCode']} --desired-value 1 --region {session.region}"
            fix = f"`{request} {arguments}`, or another [sagemaker] instance"
            yield failed("quota", f"0 {kind} for {use}s", fix, code=RemoteError.exit_code)
        else:
            yield ok("quota", f"{quota['Value']:g} {kind} at once for {use}s")


def price(spec: Pipeline, steps: dict[str, Settings], root: Path) -> Check:
    """What a run costs at most: each step's whole time on its instance, each attempt of it."""
    total, hourly, source = 0.0, {}, ""
    for name, aws in steps.items():
        prices = Prices.read(root / aws.prices if aws.prices else None)
        if aws.instance not in prices.hourly:
            fix = 'copy runner/aws/processing/prices.toml, add it, and write [sagemaker] prices = "prices.toml"'
            return unknown("price", f"{aws.instance} is in no table ({prices.source}); {fix}")
        hourly[aws.instance], source = prices.hourly[aws.instance], prices.source
        total += most_usd(spec.steps.get(name), aws, prices) or 0.0
    each = ", ".join(f"{kind} {value:g} USD an hour" for kind, value in hourly.items())
    most = f"{counted(len(steps), 'step')} up to the time limit, each attempt, {total:.2f} USD ({source})"
    return ok("price", f"{each}; {most}")


def environment(session: Session, aws: Settings, root: Path, say: Callable[[str], None]) -> Check:
    """Whether a job can have the lock's packages, and what that uploads."""
    lock, kind = lock_file(aws, root), f"{aws.lock} for Python {aws.python} on {aws.platform}"
    if aws.packages == "image":
        pins = wheels.pins(lock, python=aws.python, platform=aws.platform)
        return ok("packages", f"{len(pins)} pinned by {kind}, which the image is to have itself")
    say(f"looking for a wheel of each package of {kind}; the first time they are downloaded")
    locked = wheels.wheels(lock, python=aws.python, platform=aws.platform, cache=wheels.kept_folder())
    total_mb = sum(wheel.size_bytes for wheel in locked) / 1e6
    summary = f"a wheel for each of the {len(locked)} of {kind}, {total_mb:,.0f} MB"
    if aws.bucket == UNSET:
        return ok("packages", summary)
    moved_mb = wheels.missing_bytes(Bucket(session, aws.bucket, aws.prefix), locked) / 1e6
    return ok("packages", f"{summary}; {moved_mb:,.0f} MB of them go up with the first run")


def _session(aws: Settings) -> Session:
    from botocore.exceptions import BotoCoreError

    try:
        return Session(aws.region, patience_s=PATIENCE_S, kms_key=aws.kms_key)
    except BotoCoreError as error:  # a profile that is not there, a configuration that cannot be read
        raise AwsError(str(error), code=type(error).__name__) from error


def _access_fix(error: AwsError) -> tuple[str, str]:
    """(name, fix) of the check that fails where AWS cannot be asked at all."""
    match error.code:
        case "NoRegion":
            return "region", WRITE_A_REGION
        case "EndpointConnectionError" | "InvalidRegionError":
            return "region", "check the region's name and the network"
        case _:
            log_in = "log in (`aws sso login`, `aws configure`), or set AWS_PROFILE to a profile of"
            return "credentials", f"{log_in} `aws configure list-profiles`"


def _listed(session: Session, action: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The quotas with these names; no more pages are read than have them."""
    quotas: dict[str, dict[str, Any]] = {}
    about = "the quotas of sagemaker"
    for page in session.pages("service-quotas", action, about=about, ServiceCode="sagemaker", MaxResults=100):
        quotas |= {quota["QuotaName"]: quota for quota in page["Quotas"] if quota["QuotaName"] in wanted}
        if wanted <= quotas.keys():
            break
    return quotas


def _asked(name: str, ask: Callable[P, Check], *arguments: P.args, **options: P.kwargs) -> Check:
    """The check's result, or that it could not be made."""
    try:
        return ask(*arguments, **options)
    except RunnerError as error:
        denied = isinstance(error, AwsError) and error.code in DENIED
        return failed(name, _line(error), GRANT if denied else "do what it says, then ask again", code=error.exit_code)


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
