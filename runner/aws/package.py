"""The archive that an endpoint unpacks: the model folder, and the script that answers requests with it.

model.ubj  signature.json  features.py     the folder's files, as they are
code/inference.py                          runner/scoring/inference.py, which needs nothing of ours beside it
code/runtimes.py                           runner/scoring/runtimes.py, where the model is not XGBoost's
code/pyproject.toml  wheel_backend.py      by which pip installs it there, without a package index
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.audit.tarball import FREE_BYTES, RATIO, Tarball
from runner.aws.bucket import Bucket
from runner.aws.session import Session, domain
from runner.errors import Refused, Tampered, UsageError
from runner.model.compatibility import registered
from runner.model.files import GRAPH, MODEL, SIGNATURE, TREES, check_files, read_files, sha256_of
from runner.model.signature import Signature
from runner.model.versions import ModelVersion
from runner.paths import inside

SCORING = Path(__file__).parents[1] / "scoring"
PROGRAM, RUNTIMES = "inference.py", "runtimes.py"
CODE = "code/"
INSIDE = f"{CODE}{PROGRAM}"
PROJECT = f"{CODE}pyproject.toml"
BACKEND = "wheel_backend"
PYPROJECT = f'[build-system]\nrequires = []\nbuild-backend = "{BACKEND}"\nbackend-path = ["."]\n'
# variables of a container; pip need not look for an index that a VPC does not let it reach
ENVIRONMENT = {"SAGEMAKER_PROGRAM": PROGRAM, "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code", "PIP_NO_INDEX": "1"}
# who holds the serving image in each region: image_uri_config/xgboost.json of the SageMaker Python SDK
ACCOUNTS = {
    "af-south-1": "510948584623", "ap-east-1": "651117190479", "ap-northeast-1": "354813040037",
    "ap-northeast-2": "366743142698", "ap-northeast-3": "867004704886", "ap-south-1": "720646828776",
    "ap-south-2": "628508329040", "ap-southeast-1": "121021644041", "ap-southeast-2": "783357654285",
    "ap-southeast-3": "951798379941", "ap-southeast-4": "106583098589", "ca-central-1": "341280168497",
    "ca-west-1": "190319476487", "cn-north-1": "450853457545", "cn-northwest-1": "451049120500",
    "eu-central-1": "492215442770", "eu-central-2": "680994064768", "eu-north-1": "662702820516",
    "eu-south-1": "978288397137", "eu-south-2": "104374241257", "eu-west-1": "141502667606",
    "eu-west-2": "764974769150", "eu-west-3": "659782779980", "il-central-1": "898809789911",
    "me-central-1": "272398656194", "me-south-1": "801668240914", "sa-east-1": "737474898029",
    "us-east-1": "683313688378", "us-east-2": "257758044811", "us-gov-east-1": "237065988967",
    "us-gov-west-1": "414596584902", "us-west-1": "746614075791", "us-west-2": "246618743249",
}  # fmt: skip
REPOSITORY, TAG = "sagemaker-xgboost", "3.2-0"


@dataclass(frozen=True)
class ModelSource:
    """Where a model's archive is, and the ARN of its model package or the image that serves it."""

    archive: str  # s3://…/model.tar.gz
    archive_sha256: str
    package: str = ""
    image: str = ""
    packaged_image: str = ""  # that the package names


@dataclass(frozen=True)
class Package:
    """The archive in memory, with the content of the folder that it was made of."""

    archive: bytes
    sha256: str  # of the archive
    files: dict[str, bytes]

    @property
    def folder_sha256(self) -> str:
        """As `runner.content.artifact` gives it of the folder."""
        return sha256_of(self.files)

    @property
    def objective(self) -> str:
        """XGBoost's name for what the model was trained for; "" where no signature says it."""
        try:
            return str(json.loads(self.files[SIGNATURE])["objective"])
        except (KeyError, TypeError, ValueError):
            return ""

    @property
    def contributions(self) -> dict[str, float]:
        """How much each column moves the score, as the model's author gave it; empty where that was not given."""
        try:
            return {str(name): float(value) for name, value in json.loads(self.files["contributions.json"]).items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            return {}


def package(folder: Path) -> Package:
    """The folder as model.tar.gz, with the code that answers for it: equal files give equal bytes.

    Raises Refused for a pickle or another format that runs code when it is loaded, UsageError where the folder has a
    file in the script's folder.
    """
    files = read_files(folder)
    check_files(files, folder)
    if file_there := next((name for name in files if name.startswith(CODE)), None):
        raise UsageError(
            f"{folder / file_there} stands where the endpoint's own script goes. Save it under another name."
        )
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in sorted({**files, **code(files)}.items()):
            member = tarfile.TarInfo(name)  # no time, no owner
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    data = buffer.getvalue()
    return Package(archive=data, sha256=hashlib.sha256(data).hexdigest(), files=files)


def code(files: Collection[str] = (MODEL,)) -> dict[str, bytes]:
    """The archive's files that are not of the model folder, which has `files`."""
    backend = f"{BACKEND}.py"  # as text; nothing here runs it
    programs = (PROGRAM,) if any(name in files for name in TREES) else (PROGRAM, RUNTIMES)
    return {
        **{f"{CODE}{name}": (SCORING / name).read_bytes() for name in programs},
        f"{CODE}{backend}": Path(__file__).with_name(backend).read_bytes(),
        PROJECT: PYPROJECT.encode(),
    }


def check_package(data: bytes, sha256: str, *, running: bool = False) -> dict[str, bytes]:
    """The files of an archive that is about to be deployed, or with `running` was before, by name; none is written.

    Raises Tampered where its hash is not `sha256`, it is damaged, has anything but files below its folder or unpacks to
    far more than its size. Raises Refused for a pickle, and before a deployment for an archive of an earlier release,
    with which an instance that starts would need a package index.
    """
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise Tampered(f"The model archive has the hash {actual[:12]}; recorded is {sha256[:12]}. It was altered.")
    files: dict[str, bytes] = {}
    try:
        for member in Tarball(io.BytesIO(data), most_bytes=FREE_BYTES + RATIO * len(data), where="it"):
            if member.name in files:
                raise Tampered(f"{member.name!r} is there twice.")
            files[inside(member.name)] = member.read()
    except Refused as error:
        raise Tampered(f"The model archive {sha256[:12]} cannot be unpacked: {error}") from error
    check_files(files, Path("model.tar.gz"))
    if INSIDE not in files:
        raise Refused(f"The model archive {sha256[:12]} has no {INSIDE}, so no endpoint could answer with it.")
    if PROJECT not in files and not running:
        raise Refused(
            f"The model archive {sha256[:12]} is of an earlier release and has no {PROJECT}, so an endpoint would need "
            "a package index to start. Register the run's model again: `runner run --force`."
        )
    return files


def signature(session: Session, version: ModelVersion) -> Signature:
    """Of a version whose files are in S3. Raises Tampered where it is gone or another."""
    address = f"{version.location}{SIGNATURE}"
    bucket, _, key = address.removeprefix("s3://").partition("/")
    content = Bucket(session, bucket).get(key)
    if content is None:
        raise Tampered(f"{address} is gone.")
    return registered(content, version, where=address)


def check_image(files: Mapping[str, bytes], image: str, label: str, key: str) -> None:
    """Raises UsageError where the image is SageMaker's for XGBoost, and the version's model is another; `key` is that
    of pipeline.toml by which there is another image."""
    if image.partition("/")[2].partition(":")[0] != REPOSITORY or any(name in files for name in TREES):
        return
    runtime = "onnxruntime" if GRAPH in files else "LightGBM"
    raise UsageError(
        f"{label} needs {runtime}, and {image}, which is to serve it, has XGBoost alone. Serve it with an image of "
        f'your own: {key} = "own", with {runtime.lower()} in its lock (docs/sagemaker.md, section 8).'
    )


def serving_image(region: str, named: str | None = None) -> str:
    """The image an endpoint runs: `named`, or SageMaker's XGBoost. Raises UsageError where none is known there."""
    if named is not None:
        return named
    if region not in ACCOUNTS:
        raise UsageError(
            f"It is not known which account holds {REPOSITORY} in {region}. "
            f'Write [sagemaker] serving_image = "ACCOUNT.dkr.ecr.{region}.amazonaws.com/{REPOSITORY}:{TAG}".'
        )
    return f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain(region)}/{REPOSITORY}:{TAG}"
