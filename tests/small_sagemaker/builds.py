"""CodeBuild, as far as a build of an image from a ZIP in S3 goes: the project's commands run in bash, with a `docker` and
an `aws` that know what is used of them and refuse everything else (build_tools.py)."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from moto.backends import get_backend

from .buildspec import script
from .calls import ACCOUNT, SERVICE_KEY, Call
from .errors import ServiceError
from .gateway import Action
from .rights import name_of_role

TOOLS = Path(__file__).with_name("build_tools.py")
TAKEN = {
    "projectName", "sourceTypeOverride", "sourceLocationOverride", "environmentVariablesOverride", "idempotencyToken",
}  # fmt: skip


class Builds:
    """`client_as` gives a service's client for what is done as the role of an ARN."""

    def __init__(self, region: str, url: str, client_as: Callable[[str, str], Any], wait_s: float) -> None:
        self._region, self._url, self._client_as, self._wait_s = region, url, client_as, wait_s
        self._lock = threading.Lock()
        self._builds: dict[str, dict[str, Any]] = {}
        self._tokens: dict[str, tuple[str, str]] = {}

    def actions(self) -> dict[tuple[str, str], Action]:
        return {
            ("codebuild", "StartBuild"): self.start,
            ("codebuild", "BatchGetBuilds"): self.get,
            ("ecr", "DescribeImages"): self.check_registry,
            ("ecr", "PutImage"): self.check_tag,
        }

    def start(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        if unknown := wanted.keys() - TAKEN:
            raise NotImplementedError(f"StartBuild with {', '.join(sorted(unknown))} is not known here")
        name = wanted["projectName"]
        project = get_backend("codebuild")[ACCOUNT][self._region].codebuild_projects.get(name)
        if project is None:
            arn = f"arn:aws:codebuild:{self._region}:{ACCOUNT}:project/{name}"
            raise ServiceError("ResourceNotFoundException", f"Project cannot be found: {arn}")
        token, asked = wanted.get("idempotencyToken"), json.dumps(wanted, sort_keys=True)
        with self._lock:
            if token in self._tokens:
                build, before = self._tokens[token]
                if before != asked:
                    raise ServiceError("InvalidInputException", "Parameters differ from those of this token before")
                return {"build": self._builds[build]}
            number = str(uuid.uuid4())
            build = f"{name}:{number}"
            self._builds[build] = {
                "id": build,
                "arn": f"arn:aws:codebuild:{self._region}:{ACCOUNT}:build/{build}",
                "projectName": name,
                "buildStatus": "IN_PROGRESS",
                "currentPhase": "QUEUED",
                "buildComplete": False,
                "startTime": time.time(),
                "phases": [],
                "logs": {"groupName": f"/aws/codebuild/{name}", "streamName": number},
            }
            if token:
                self._tokens[token] = (build, asked)
        found = self._builds[build]
        threading.Thread(target=self._run, args=(found, project.project_metadata, wanted), daemon=True).start()
        return {"build": found}

    def get(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        ids = call.parameters["ids"]
        return {
            "builds": [self._builds[one] for one in ids if one in self._builds],
            "buildsNotFound": [one for one in ids if one not in self._builds],
        }

    def check_registry(self, call: Call, environ: dict[str, Any]) -> None:
        """Another account's registry tells nothing to whom its repository's policy does not name."""
        owner = call.parameters.get("registryId", ACCOUNT)
        if owner != ACCOUNT:
            name = call.parameters["repositoryName"]
            arn = f"arn:aws:ecr:{self._region}:{owner}:repository/{name}"
            said = f"User is not authorized to perform: ecr:DescribeImages on resource: {arn} because no resource-based policy allows the ecr:DescribeImages action"
            raise ServiceError("AccessDeniedException", said)

    def check_tag(self, call: Call, environ: dict[str, Any]) -> None:
        """moto gives a tag to another image whatever the repository says."""
        wanted = call.parameters
        found = get_backend("ecr")[ACCOUNT][self._region].repositories.get(wanted["repositoryName"])
        tag = wanted.get("imageTag")
        if found is None or found.image_tag_mutability != "IMMUTABLE":
            return
        if any(tag in image.image_tags for image in found.images):
            said = f"The image tag '{tag}' already exists in the '{wanted['repositoryName']}' repository and cannot be overwritten"
            raise ServiceError("ImageTagAlreadyExistsException", said)

    def _run(self, build: dict[str, Any], project: dict[str, Any], wanted: dict[str, Any]) -> None:
        role, phase, reason, lines = project["serviceRole"], "DOWNLOAD_SOURCE", "", [""]
        folder = Path(tempfile.mkdtemp(prefix="build-"))
        time.sleep(self._wait_s)
        try:
            build["currentPhase"] = phase
            self._fetch(wanted.get("sourceLocationOverride") or project["source"]["location"], role, folder / "src")
            build["currentPhase"] = phase = "BUILD"
            code, lines = self._execute(build, project, wanted, folder)
            if code:
                reason = f"Error while executing command. Reason: exit status {code}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._log(build["logs"], role, lines)
        contexts = [{"statusCode": "COMMAND_EXECUTION_ERROR", "message": reason}] if reason else []
        status = "FAILED" if reason else "SUCCEEDED"
        build["phases"] = [{"phaseType": phase, "phaseStatus": status, "contexts": contexts}]
        build |= {"currentPhase": "COMPLETED", "buildComplete": True, "endTime": time.time(), "buildStatus": status}

    def _fetch(self, location: str, role: str, folder: Path) -> None:
        bucket, _, key = location.partition("/")
        s3 = self._client_as("s3", role)
        s3.get_bucket_location(Bucket=bucket)
        data = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(folder)

    def _execute(
        self, build: dict[str, Any], project: dict[str, Any], wanted: dict[str, Any], folder: Path
    ) -> tuple[int, list[str]]:
        """(exit code, the log's lines) of the phase `build`, the only one that is known here."""
        made = project["environment"]
        spec = yaml.safe_load(project["source"]["buildspec"])
        if str(spec["version"]) != "0.2" or spec["env"] != {"shell": "bash"} or set(spec["phases"]) != {"build"}:
            raise NotImplementedError(f"this buildspec is not known here: {spec}")
        tools = folder / "bin"
        tools.mkdir()
        for name in ("aws", "docker"):
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TOOLS}" {name} "$@"\n')
            (tools / name).chmod(0o755)
        variables = [*made.get("environmentVariables", []), *wanted.get("environmentVariablesOverride", [])]
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "AWS_DEFAULT_REGION": self._region,
            "AWS_ENDPOINT_URL": self._url,
            "AWS_ACCESS_KEY_ID": f"{SERVICE_KEY}.{name_of_role(project['serviceRole'])}",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "DOCKER_STATE": str(folder / "docker.json"),
            "PRIVILEGED": str(made.get("privilegedMode", False)),
            "CODEBUILD_BUILD_ID": build["id"],
            **{one["name"]: one["value"] for one in variables},
        }
        done = subprocess.run(
            ["bash", "-c", script(spec)],
            cwd=folder / "src", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    def _log(self, place: dict[str, str], role: str, lines: list[str]) -> None:
        """Into a group that is there, as the role: a build goes on without a log."""
        logs, names = self._client_as("logs", role), {"logGroupName": place["groupName"]}
        names["logStreamName"] = place["streamName"]
        try:
            logs.create_log_stream(**names)
            now = int(time.time() * 1000)
            events = [{"timestamp": now, "message": line + "\n"} for line in lines or [""]]
            logs.put_log_events(**names, logEvents=events)
        except logs.exceptions.ClientError:
            return
