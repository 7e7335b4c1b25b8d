"""CodePipeline and CodeBuild as a template declares them: stages in order, each action under its role.

What the services themselves do as a role (AWS's "Minimum permissions" of each action) is asked of that role's policies in
the small SageMaker, and objects are really put and fetched with the role's key; a build's commands run in a checkout.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from iam import ACCOUNT, REGION, Request, Stack
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from small_sagemaker.buildspec import script

VARIABLE = re.compile(r"#\{(?:variables\.)?([\w.]+)\}")


@dataclass
class Execution:
    """One way through the stages. `waits` names the stage whose question nobody has answered yet."""

    id: str
    variables: dict[str, str]
    commit: str
    done: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    waits: str = ""
    failed: str = ""


@dataclass
class CodePipeline:
    """The one pipeline of a template, whose repository is a folder here.

    `environment` is the machine's of a build, without credentials: a build's commands get its role's, and nothing else.
    """

    cloud: SmallSageMaker
    stack: Stack
    repository: Path
    folder: Path
    environment: Mapping[str, str]
    executions: dict[str, Execution] = field(default_factory=dict)

    @property
    def pipeline(self) -> dict[str, Any]:
        (found,) = [one for one in self.stack.template["Resources"].values() if one["Type"].endswith("Pipeline")]
        made: dict[str, Any] = self.stack.render(found["Properties"])
        return made

    @property
    def name(self) -> str:
        return str(self.pipeline["Name"])

    def start(self, *, token: str, variables: Mapping[str, str] | None = None) -> Execution:
        """A new execution; the one there is where the token was used before."""
        if token not in self.executions:
            known = {one["Name"]: one["DefaultValue"] for one in self.pipeline.get("Variables", [])}
            unknown = set(variables or {}) - set(known)
            assert not unknown, f"{self.name} has no variables {sorted(unknown)}"
            head = git(self.repository, "rev-parse", "HEAD").strip()
            self.executions[token] = Execution(
                f"execution-{len(self.executions) + 1}", {**known, **(variables or {})}, head
            )
        return self.executions[token]

    def go_on(self, execution: Execution, *, approved: bool = False) -> Execution:
        """Through the stages that are left, up to the end, a failure or a question that was not `approved`."""
        for stage in self.pipeline["Stages"]:
            name = stage["Name"]
            if name in execution.done or execution.failed:
                continue
            for action in stage["Actions"]:
                if action["ActionTypeId"]["Category"] == "Approval":
                    self._ask("sns:Publish", action["Configuration"]["NotificationArn"])
                    if not (approved and execution.waits == name):
                        execution.waits = name
                        return execution
                    execution.waits = ""
                elif not self._act(action, execution):
                    execution.failed = name
                    return execution
            execution.done.append(name)
        return execution

    def _act(self, action: Mapping[str, Any], execution: Execution) -> bool:
        given = action["Configuration"]
        if action["ActionTypeId"]["Category"] == "Source":
            connection = given["ConnectionArn"]
            self._ask(f"{connection.split(':')[2]}:UseConnection", connection)
            if given.get("OutputArtifactFormat") == "CODEBUILD_CLONE_REF":
                content = json.dumps({"commit": execution.commit, "connection": connection}).encode()
            else:
                content = subprocess.check_output(["git", "-C", self.repository, "archive", execution.commit])
            for what in ("Acl", "Location", "Versioning"):
                self._ask(f"s3:GetBucket{what}", f"arn:aws:s3:::{self._bucket}")
            self._put(role_name(self.pipeline["RoleArn"]), self._artifact(execution), content)
            return True
        project = self._project(given["ProjectName"])
        for verb in ("StartBuild", "BatchGetBuilds"):
            self._ask(f"codebuild:{verb}", f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{project['Name']}")
        told = {one["Name"]: one["Value"] for one in project["Environment"].get("EnvironmentVariables", [])}
        for one in json.loads(given.get("EnvironmentVariables", "[]")):
            known = {**execution.variables, "codepipeline.PipelineExecutionId": execution.id}
            told[one["name"]] = VARIABLE.sub(lambda found, known=known: known[found[1]], one["value"])  # type: ignore[misc]
        outputs = [one["Name"] for one in action.get("OutputArtifacts", [])]
        return self._build(project, told, execution, outputs)

    def _build(
        self, project: Mapping[str, Any], told: Mapping[str, str], execution: Execution, outputs: list[str]
    ) -> bool:
        """Whether every command of the build succeeded. What it prints goes to its log, as its role."""
        role, number = role_name(project["ServiceRole"]), len(execution.logs) + 1
        checkout = self.folder / f"{self.name}-{execution.id}-{number}"
        content = self._get(role, self._artifact(execution))
        if content.startswith(b"{"):  # it clones by itself, so that it has the history
            connection = json.loads(content)["connection"]
            for verb in ("GetConnection", "GetConnectionToken", "UseConnection"):
                self._ask(f"{connection.split(':')[2]}:{verb}", connection, role=role)
            git(self.folder, "clone", "--quiet", self.repository, checkout)
            git(checkout, "checkout", "--quiet", execution.commit)
        else:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(checkout, filter="data")
        made = checkout / ".venv"  # the environment that `make .venv/.all` would install is the one this runs in
        made.mkdir()
        (made / "bin").symlink_to(Path(sys.prefix, "bin"))
        for name in (".core", ".all"):
            (made / name).touch()
        written = project["Source"].get("BuildSpec", "buildspec.yml")
        spec = yaml.safe_load(written if "\n" in written else (checkout / written).read_text())
        done = subprocess.run(
            [spec["env"]["shell"], "-c", script(spec)],
            cwd=checkout,
            env={
                **self.environment,
                **told,
                "AWS_ACCESS_KEY_ID": f"{CLIENT_KEY}.{role}",
                "CODEBUILD_RESOLVED_SOURCE_VERSION": execution.commit,
                "HOME": str(self.folder),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        execution.logs.append(done.stdout)
        self._log(role, f"/aws/codebuild/{project['Name']}")
        for name in outputs:
            for found in [path for pattern in spec["artifacts"]["files"] for path in checkout.glob(pattern)]:
                key = f"{self.name[:20]}/{name}/{execution.id}/{found.relative_to(checkout)}"
                self._put(role, key, found.read_bytes())
        return done.returncode == 0

    def _project(self, name: str) -> dict[str, Any]:
        """The template's CodeBuild project, which the pipeline names by `!Ref`."""
        resource = self.stack.template["Resources"][name.removeprefix("ref-")]
        found: dict[str, Any] = self.stack.render(resource["Properties"])
        return found

    @property
    def _bucket(self) -> str:
        return str(self.pipeline["ArtifactStore"]["Location"])

    def _artifact(self, execution: Execution) -> str:
        return f"{self.name[:20]}/checkout/{execution.id}.zip"

    def _ask(self, action: str, resource: str, role: str = "") -> None:
        self.cloud.require(role or role_name(self.pipeline["RoleArn"]), [Request(action, resource)])

    def _put(self, role: str, key: str, content: bytes) -> None:
        self._ask("s3:PutObjectAcl", f"arn:aws:s3:::{self._bucket}/{key}", role=role)
        self.cloud.client("s3", access_key=f"{CLIENT_KEY}.{role}").put_object(
            Bucket=self._bucket, Key=key, Body=content
        )

    def _get(self, role: str, key: str) -> bytes:
        self._ask("s3:GetObjectVersion", f"arn:aws:s3:::{self._bucket}/{key}", role=role)
        client = self.cloud.client("s3", access_key=f"{CLIENT_KEY}.{role}")
        content: bytes = client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return content

    def _log(self, role: str, group: str) -> None:
        for verb in ("CreateLogStream", "PutLogEvents"):
            self._ask(f"logs:{verb}", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{group}:log-stream:1", role=role)


def role_name(arn: str) -> str:
    return arn.rpartition("/")[2]


def git(folder: Path, *arguments: str | os.PathLike[str]) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout
