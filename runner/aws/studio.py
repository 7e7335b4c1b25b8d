"""infra/project.yaml uploaded for Studio: a template of "Create project", with the stacks that it nests.

Studio shows the objects below the address in its domain's tag `sagemaker:projectS3TemplatesLocation` that have a tag of
their own; its pages read them, which the bucket has to allow (AWS: "Custom project templates", S3).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.rights import identity
from runner.aws.session import AwsError, domain
from runner.aws.upload import in_bucket
from runner.errors import UsageError
from runner.records import Pipeline

PROJECT = "project.yaml"
TEMPLATES, PARTS, NAME = "studio/templates/", "studio/parts/", "notebook-pipeline"
VISIBLE = {"sagemaker:studio-visibility": "true"}
LOCATION = "sagemaker:projectS3TemplatesLocation"  # a tag of the domain
LAUNCH_ROLE = "runner-studio-launch"  # infra/studio.yaml makes it
NESTED = re.compile(r'TemplateURL: !Sub "\$\{Templates\}([\w.-]+)"')
TEMPLATES_PARAMETER = '  Templates:\n    Type: String\n    Default: ""\n'
PAGES = "https://*.sagemaker.aws"
CORS = {  # as AWS's samples of such templates have it
    "AllowedOrigins": [PAGES],
    "AllowedMethods": ["GET", "HEAD", "PUT", "POST", "DELETE"],
    "AllowedHeaders": ["*"],
    "ExposeHeaders": ["ETag", "x-amz-version-id"],
}


@dataclass(frozen=True)
class PublishedTemplate:
    """`parts` is the address of what is nested; `allowed` says whether Studio's pages could read the bucket before."""

    template: str
    parts: str
    nested: list[str]
    allowed: bool
    steps: list[str]  # what to do now, in order; what is indented belongs to the line before it


def publish(spec: Pipeline, root: Path, *, bucket: str | None, dry_run: bool) -> PublishedTemplate:
    """Upload the template and its parts to [sagemaker] bucket or `bucket`, and let Studio's pages read it there.

    What is nested has an address of its content, so that an existing project keeps what it was made from.
    Raises UsageError where infra/ is not beside pipeline.toml, and for a bucket that users of Studio may write to.
    """
    template = _read(root / "infra" / PROJECT)
    nested = {name: _read(root / "infra" / name).encode() for name in NESTED.findall(template)}
    if template.count(TEMPLATES_PARAMETER) != 1:
        raise UsageError(f"{root / 'infra' / PROJECT} has no empty parameter Templates to say where its parts are.")
    sagemaker = msgspec.structs.replace(spec.sagemaker, bucket=bucket or spec.sagemaker.bucket)
    project_bucket = in_bucket(msgspec.structs.replace(spec, sagemaker=sagemaker))
    place = Bucket(project_bucket.session, project_bucket.name)
    if "sagemaker" in place.name.lower():
        raise UsageError(
            f"AmazonSageMakerFullAccess lets users of Studio write to {place.name}, as to any bucket with that word, "
            "and what is written there would be created with the rights of the launch role. Name another with --bucket."
        )
    digest = hashlib.sha256(b"".join(name.encode() + content for name, content in sorted(nested.items()))).hexdigest()
    folder = f"{PARTS}{digest[:16]}/"
    parts = _url(place, folder)
    template = template.replace(TEMPLATES_PARAMETER, TEMPLATES_PARAMETER.replace('""', f'"{parts}"'))
    key, about = f"{TEMPLATES}{NAME}.yaml", f"bucket {place.name}"
    rules = _rules(place)
    allowed = any(PAGES in rule["AllowedOrigins"] for rule in rules)
    if not dry_run:
        for name, content in nested.items():
            place.put(folder + name, content)
        place.put(key, template.encode())
        place.tag(key, VISIBLE)
        if not allowed:
            cors = {"CORSRules": [*rules, CORS]}
            place.session.call("s3", "put_bucket_cors", about=about, Bucket=place.name, CORSConfiguration=cors)
    return PublishedTemplate(_url(place, key), parts, sorted(nested), allowed, _steps(spec, place))


def _steps(spec: Pipeline, place: Bucket) -> list[str]:
    session, account = place.session, identity(place.session).account
    parameters = f"Bucket={place.name} StudioRole=NAME" + (f" KmsKeyArn={session.kms_key}" if session.kms_key else "")
    menus = "Projects (below Deployments or More) > Create project > Organization templates > S3 templates"
    return [
        "Once for the account, as an administrator:",
        "  make the launch role, and let the users of a Studio role create projects:",
        "    aws cloudformation deploy --template-file infra/studio.yaml --stack-name runner-studio "
        f"--capabilities CAPABILITY_NAMED_IAM --parameter-overrides {parameters}",
        "  tell the domain where templates are (or: SageMaker AI > Domains > the domain > Tags):",
        f"    aws sagemaker add-tags --resource-arn arn:aws:sagemaker:{session.region}:{account}:domain/DOMAIN-ID "
        f"--tags Key={LOCATION},Value={place.address(TEMPLATES)}",
        "  connect GitHub: Developer Tools > Settings > Connections > Create connection; and for pull requests:",
        "    aws codebuild import-source-credentials --server-type GITHUB --auth-type PERSONAL_ACCESS_TOKEN "
        '--token "…"',
        "For each project, in Studio:",
        f"  {menus} > {NAME} > Next",
        f"  Name: {spec.name}, as in pipeline.toml. Role ARN: arn:aws:iam::{account}:role/{LAUNCH_ROLE}",
        "  Repository, Branch, Connection, Email: of the repository with this pipeline.toml. Then Create",
        "  once it is Created: its stack's outputs Bucket and JobRoleArn are [sagemaker] bucket and role; push that",
    ]


def _rules(place: Bucket) -> list[dict[str, Any]]:
    try:
        reply = place.session.call("s3", "get_bucket_cors", about=f"bucket {place.name}", Bucket=place.name)
    except AwsError as error:
        if error.code != "NoSuchCORSConfiguration":
            raise
        return []
    return list(reply["CORSRules"])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror}. It is part of the repository of the runner; copy its infra/ "
            "beside pipeline.toml."
        ) from error


def _url(place: Bucket, key: str) -> str:
    return f"https://{place.name}.s3.{place.session.region}.{domain(place.session.region)}/{key}"
