"""What has to hold in AWS before a job is started, asked for without starting one: a line for each, with the fix.

Nothing here costs money but the probe, which is asked for by name. What the caller may not ask is said to be unknown,
with the reason, and is not a failure: least privilege does not include every question.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.evidence import events, executions, training
from runner.aws.own_image import PUSH, details, lacking, named, own_image
from runner.aws.probe import INSTANCE, LIMIT_S, ceiling, probe
from runner.aws.processing import wheels
from runner.aws.processing.estimate import most_usd
from runner.aws.processing.executor import kind_for
from runner.aws.processing.jobs import PROCESSING
from runner.aws.processing.prices import Prices
from runner.aws.rights import GRANT, NAME_A_ROLE, Caller, identity, job_rights, logs, pass_role, registry, role
from runner.aws.session import ABSENT, DENIED, AwsError, Session
from runner.aws.settings import NEEDED, OWN, Settings, lock_file, settings
from runner.errors import PipelineError, RemoteError, RunnerError, counted
from runner.records import Pipeline, SageMakerTargetSpec
from runner.run.doctor import Check, failed, ok, unknown
from runner.run.store import Store

PATIENCE_S = 4.0  # a question that is not answered by then is reported as such
T = TypeVar("T")
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
WHAT_FOR = {
    "bucket": 'write [sagemaker] bucket = "…", an S3 bucket in the region; `aws s3 mb s3://NAME` makes one',
    "role": NAME_A_ROLE,
    "image": NAME_AN_IMAGE,
}


def account(
    spec: Pipeline, root: Path, *, run_probe: bool = False, say: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """The checks of a pipeline's [sagemaker], each made when it is asked for.

    `say` is told of what takes long or costs something.
    """
    missing = [key for key in NEEDED if getattr(spec.sagemaker, key) is None]
    try:
        common, steps = _chosen(spec, missing)
    except PipelineError as error:
        yield from (failed("settings", finding, "correct it in pipeline.toml") for finding in error.findings)
        return
    yield from (failed(key, f"[sagemaker] {key} is not set", WHAT_FOR[key]) for key in missing)
    try:
        session = _session(common)
        where = region(session, common)
        yield where
        if where.status == "failed":
            yield unknown("the rest", "cannot be asked for without a region")
            return
        caller = identity(session)
    except AwsError as error:
        name = (
            "region" if error.code in ("NoRegion", "EndpointConnectionError", "InvalidRegionError") else "credentials"
        )
        yield failed(name, _line(error), _way_in(error), code=error.exit_code)
        yield unknown("the rest", "cannot be asked for without credentials and a region")
        return
    yield ok("credentials", f"{caller.arn} of account {caller.account}")
    broken = bool(missing)
    for check in _given(session, caller, spec, steps, root, with_probe=run_probe):
        broken = broken or (check.status == "failed" and check.name in NEEDED_BY_JOBS)
        yield check
    packages = _asked("packages", partial(environment, session, common, root, say))
    yield packages
    if not run_probe:
        yield unknown("versions", f"only a job can compare the image with {common.lock}: {_offer(common, root)}")
    elif broken or packages.status == "failed":
        yield unknown("versions", "the probe was not started, as what it needs has failed above")
    else:
        say(f"starting one {INSTANCE} for {LIMIT_S // 60} minutes at most{ceiling(common, root)}")
        patient = Session(common.region, kms_key=common.kms_key)
        yield _asked(
            "versions", partial(probe, patient, spec.name, named(spec.name, common, session.region, root), root=root)
        )


def _given(
    session: Session, caller: Caller, spec: Pipeline, steps: dict[str, Settings], root: Path, *, with_probe: bool
) -> Iterator[Check]:
    """What somebody has to have set up, each different thing once."""
    for name, prefix in _distinct((chosen.bucket, chosen.prefix) for chosen in steps.values()):
        if name != UNSET:
            yield _asked("bucket", partial(bucket, Bucket(session, name, prefix)))
    for arn in _distinct(chosen.role for chosen in steps.values()):
        if arn != UNSET:
            yield _asked("role", partial(role, session, caller, arn))
            yield _asked("passrole", partial(pass_role, session, caller, arn))
    kinds = _distinct([*([PROCESSING] if with_probe else []), *map(kind_for, steps.values())])
    for kind in kinds:
        yield _asked("jobs", partial(job_rights, session, caller, spec.name, kind))
    for address in _distinct(chosen.image for chosen in steps.values()):
        if address not in (UNSET, OWN):
            yield _asked("image", partial(image, session, caller, address))
    for asked in own_images(spec, steps):
        yield _asked("image", partial(own, session, spec.name, root, *asked))
    wanted = [(chosen.instance, use) for chosen in steps.values() for use in uses(chosen)]
    yield from quotas(session, _distinct([*wanted, *([(INSTANCE, "processing job")] if with_probe else [])]))
    yield _asked("registry", partial(registry, session, caller, spec))
    common = next(iter(steps.values()))
    if common.bucket != UNSET:
        yield _asked("events", partial(events, session, spec, common))
    yield _asked("executions", partial(executions, session, spec))
    if any(chosen.trains for chosen in steps.values()):
        yield _asked("training", partial(training, session, Store(root / "runs")))
    for kind in kinds:
        yield _asked("logs", partial(logs, session, kind))
    yield _asked("price", partial(price, spec, steps, root))


def region(session: Session, chosen: Settings) -> Check:
    if not session.region:  # a variable that is set to nothing, as in CI
        return failed("region", "AWS_REGION is set to nothing", WRITE_A_REGION)
    said = f"{session.region} ({'[sagemaker] region' if chosen.region else 'from the environment'})"
    if session.region not in session.regions("sagemaker"):
        return failed("region", f"{said} has no SageMaker that botocore knows", "spell it as AWS does, or update boto3")
    return ok("region", said)


def bucket(place: Bucket) -> Check:
    """Whether it is in the region and does what a run needs: write once, read back, tell what is not there."""
    name, here = place.name, place.session.region
    try:
        found = place.session.call("s3", "get_bucket_location", about=f"bucket {name}", Bucket=name)
        where = found.get("LocationConstraint") or "us-east-1"
        where = "eu-west-1" if where == "EU" else where
    except AwsError as error:
        if error.code in ABSENT:
            return failed("bucket", f"there is no s3://{name}", f"`aws s3 mb s3://{name} --region {here}`")
        if error.code not in DENIED:
            raise
        where = ""
    if where not in (here, ""):
        fix = f'name a bucket in {here}, or write [sagemaker] region = "{where}"'
        return failed("bucket", f"s3://{name} is in {where}, jobs would run in {here}", fix)
    key, content = f"doctor/{secrets.token_hex(8)}", b"written by runner doctor\n"
    try:
        place.size(key)
    except AwsError as error:
        if error.code in DENIED:
            said = f"what is in s3://{name}/{place.prefix} may not be listed, so what is not there cannot be told"
            return failed("bucket", said, f"grant s3:ListBucket below it: {GRANT}", code=error.exit_code)
        raise
    place.put(key, content, once=True)
    try:
        twice = place.put(key, content, once=True)
        back = place.get(key)
    finally:
        left = _remove(place, key)
    if twice or back != content:
        what = "takes If-None-Match and overwrites all the same" if twice else "gives other bytes back"
        return failed("bucket", f"s3://{name} {what}{left}", "name a bucket of S3 itself")
    said = "" if where else ", in a region that the caller may not ask for (s3:GetBucketLocation)"
    return ok("bucket", f"s3://{name}/{place.prefix} takes objects, once where asked, and gives them back{said}{left}")


def image(session: Session, caller: Caller, address: str) -> Check:
    match = IMAGE.fullmatch(address)
    if match is None:
        return failed(
            "image", f"{address} is in no private registry of ECR, which jobs take images from", NAME_AN_IMAGE
        )
    owner, where, repository, tag, digest = match.groups()
    if where != session.region:
        fix = f"name one in {session.region}; infra/Dockerfile says how to push one there"
        return failed("image", f"{address} is in {where}, jobs would run in {session.region}", fix)
    try:
        found = session.call(
            "ecr",
            "describe_images",
            about=f"image {address}",
            registryId=owner,
            repositoryName=repository,
            imageIds=[{"imageDigest": digest} if digest else {"imageTag": tag or "latest"}],
        )["imageDetails"][0]
    except AwsError as error:
        if error.code in NO_IMAGE:
            return failed(
                "image", f"there is no {address}", "push it, as infra/Dockerfile says, or name one that is there"
            )
        if error.code in DENIED and owner != caller.account:
            return unknown("image", f"{address}: account {owner} tells nobody what it has; a job fails at its start")
        if error.code in DENIED:
            return unknown("image", f"{address}: the caller may not ask (ecr:DescribeImages)")
        raise
    if any(kind in found.get("imageManifestMediaType", "") for kind in INDEXES):
        return unknown("image", f"{address} is a list of images, and whether jobs take one is not documented")
    size = f", {found['imageSizeInBytes'] / 1e6:,.0f} MB" if "imageSizeInBytes" in found else ""
    return ok("image", f"{address}{size}")


def own_images(spec: Pipeline, steps: dict[str, Settings]) -> list[tuple[Settings, str, bool]]:
    """(settings, what in pipeline.toml asks, whether it is to serve) of each image of one's own, once."""
    endpoints = {name: one for name, one in spec.targets.items() if isinstance(one, SageMakerTargetSpec)}
    targets = [f"[targets.{name}] serving_image" for name, one in endpoints.items() if one.serving_image == OWN]
    found: dict[tuple[str, str, bool], tuple[Settings, str, bool]] = {}
    for chosen in steps.values():
        asking = ["[sagemaker] serving_image"] if chosen.serving_image == OWN else targets
        if chosen.image == OWN:
            found.setdefault((chosen.lock, chosen.python, False), (chosen, "[sagemaker] image", False))
        if asking and chosen.role != UNSET:
            found.setdefault((chosen.lock, chosen.python, True), (chosen, asking[0], True))
    return list(found.values())


def own(session: Session, project: str, root: Path, chosen: Settings, what: str, serves: bool) -> Check:
    made = own_image(project, chosen, session.region, root)
    tag = made.server if serves else made.environment
    try:
        if said := lacking(session, made, tag):
            return failed("image", f'{what} = "own", and {said}', f"{PUSH} builds it.")
        found = details(session, made, tag)
    except AwsError as error:
        if error.code in DENIED:
            return unknown("image", f'{what} = "own": the caller may not ask (ecr:DescribeImages)')
        raise
    size = f", {found['imageSizeInBytes'] / 1e6:,.0f} MB" if found and "imageSizeInBytes" in found else ""
    return ok("image", f"{made.address(tag)} is of this {made.lock}{size}")


def uses(chosen: Settings) -> list[str]:
    """What a step's instance is used for, as quotas are named."""
    return [chosen.kind, *(["training warm pool"] if chosen.keep_warm_s else [])]


def quotas(session: Session, instances: list[tuple[str, str]]) -> Iterator[Check]:
    """How many of each (instance, use) there may be at once. A quota's code is known only from the list of all."""
    wanted = {f"{kind} for {use} usage": (kind, use) for kind, use in instances}
    found: dict[str, dict[str, Any]] = {}
    try:
        for action in ("list_service_quotas", "list_aws_default_service_quotas"):
            found = {**_listed(session, action, wanted.keys() - found.keys()), **found}
    except AwsError as error:
        why = (
            "the caller may not ask (servicequotas:ListServiceQuotas)"
            if error.code in DENIED
            else f"Service Quotas did not answer ({error.code})"
        )
        yield unknown(
            "quota",
            f"{', '.join(_distinct(kind for kind, _ in instances))}: {why}. A job beyond it fails when it is created",
        )
        return
    for name, (kind, use) in wanted.items():
        if name not in found:
            yield unknown("quota", f"Service Quotas lists no {name!r}; is there a {use} on {kind}?")
        elif found[name]["Value"] < 1:
            fix = (
                "`aws service-quotas request-service-quota-increase --service-code sagemaker --quota-code "
                f"{found[name]['QuotaCode']} --desired-value 1 --region {session.region}`, or another [sagemaker] instance"
            )
            yield failed("quota", f"0 {kind} for {use}s", fix, code=RemoteError.exit_code)
        else:
            yield ok("quota", f"{found[name]['Value']:g} {kind} at once for {use}s")


def price(spec: Pipeline, steps: dict[str, Settings], root: Path) -> Check:
    """What a run costs at most: each step's whole time on its instance, each attempt of it."""
    total, hourly, source = 0.0, {}, ""
    for name, chosen in steps.items():
        prices = Prices.read(root / chosen.prices if chosen.prices else None)
        if chosen.instance not in prices.hourly:
            fix = 'copy runner/aws/processing/prices.toml, add it, and write [sagemaker] prices = "prices.toml"'
            return unknown("price", f"{chosen.instance} is in no table ({prices.source}); {fix}")
        hourly[chosen.instance], source = prices.hourly[chosen.instance], prices.source
        total += most_usd(spec.steps.get(name), chosen, prices) or 0.0
    each = ", ".join(f"{kind} {value:g} USD an hour" for kind, value in hourly.items())
    return ok(
        "price", f"{each}; {counted(len(steps), 'step')} up to the time limit, each attempt, {total:.2f} USD ({source})"
    )


def environment(session: Session, chosen: Settings, root: Path, say: Callable[[str], None]) -> Check:
    """Whether a job can have the lock's packages, and what that uploads."""
    what = f"{chosen.lock} for Python {chosen.python} on {chosen.platform}"
    pins = wheels.pins(lock_file(chosen, root), python=chosen.python, platform=chosen.platform)
    if chosen.packages == "image":
        return ok("packages", f"{len(pins)} pinned by {what}, which the image is to have itself")
    say(f"looking for a wheel of each package of {what}; the first time they are downloaded")
    found = wheels.wheels(
        lock_file(chosen, root), python=chosen.python, platform=chosen.platform, cache=wheels.kept_folder()
    )
    whole = sum(wheel.size_bytes for wheel in found) / 1e6
    said = f"a wheel for each of the {len(found)} of {what}, {whole:,.0f} MB"
    if chosen.bucket == UNSET:
        return ok("packages", said)
    moved = wheels.missing_bytes(Bucket(session, chosen.bucket, chosen.prefix), found) / 1e6
    return ok("packages", f"{said}; {moved:,.0f} MB of them go up with the first run")


def _chosen(spec: Pipeline, missing: list[str]) -> tuple[Settings, dict[str, Settings]]:
    """The pipeline's settings and those of each step, with UNSET for the keys that are missing."""
    whole = msgspec.structs.replace(
        spec, sagemaker=msgspec.structs.replace(spec.sagemaker, **dict.fromkeys(missing, UNSET))
    )
    common = settings(whole)
    return common, {name: settings(whole, name) for name in whole.steps} or {"": common}


def _session(chosen: Settings) -> Session:
    from botocore.exceptions import BotoCoreError

    try:
        return Session(chosen.region, patience_s=PATIENCE_S, kms_key=chosen.kms_key)
    except BotoCoreError as error:  # a profile that is not there, a configuration that cannot be read
        raise AwsError(str(error), code=type(error).__name__) from error


def _way_in(error: AwsError) -> str:
    match error.code:
        case "NoRegion":
            return WRITE_A_REGION
        case "EndpointConnectionError" | "InvalidRegionError":
            return "check the region's name and the network"
        case _:
            return "log in (`aws sso login`, `aws configure`), or set AWS_PROFILE to a profile of `aws configure list-profiles`"


def _offer(chosen: Settings, root: Path) -> str:
    return f"`runner doctor --on sagemaker --probe` starts one {INSTANCE} for {LIMIT_S // 60} minutes at most{ceiling(chosen, root)}"


def _remove(place: Bucket, key: str) -> str:
    """Take the probe's object away; what is left, in words."""
    try:
        place.session.call("s3", "delete_object", about=place.address(key), Bucket=place.name, Key=place.prefix + key)
    except AwsError as error:
        return f"; {place.address(key)} stays ({error.code})"
    return ""


def _listed(session: Session, action: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    token: dict[str, str] = {}
    while wanted - found.keys():
        page = session.call(
            "service-quotas", action, about="the quotas of sagemaker", ServiceCode="sagemaker", MaxResults=100, **token
        )
        found |= {quota["QuotaName"]: quota for quota in page["Quotas"] if quota["QuotaName"] in wanted}
        if not page.get("NextToken"):
            break
        token = {"NextToken": page["NextToken"]}
    return found


def _asked(name: str, ask: Callable[[], Check]) -> Check:
    """What the check says, or that it could not be made."""
    try:
        return ask()
    except AwsError as error:
        fix = GRANT if error.code in DENIED else "do what it says, then ask again"
        return failed(name, _line(error), fix, code=error.exit_code)
    except RunnerError as error:
        return failed(name, _line(error), "do what it says, then ask again", code=error.exit_code)


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
