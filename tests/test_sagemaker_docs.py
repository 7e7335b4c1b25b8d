"""docs/sagemaker.md is walked: every command block in its order, by the real commands, against the small SageMaker.

`runner` is this checkout's. `aws` is the real one, in an environment of its own; what it asks for is answered by the
double, and by moto where that knows the service: CloudFormation makes of infra/ what moto has. The [sagemaker] blocks go
into pipeline.toml where they stand; its steps are tiny, its names those of the page.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import pytest
from cloud import RemoteProject
from small_sagemaker import CLIENT_KEY, SmallSageMaker, own_image
from small_sagemaker.images import kept_image
from support.commands import Done
from support.machines import Machines
from support.projects import ROOT, parameters, recorded

from runner.cli import group

PAGE = ROOT / "docs" / "sagemaker.md"
LOCK = Path(__file__).parent / "small_sagemaker" / "aws_cli" / "aws_cli.lock"
BLOCK = re.compile(r"^```(console|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# what cannot be run here, by how it begins
NOT_HERE = {
    "aws configure sso": "asks a person, in a browser; of version 2 of the command",
    "aws sso login": "the same",
    "export AWS_PROFILE": "there is no profile: the credentials come from the environment",
    "make studio": "makes an environment; tests/test_packaging.py reads the Makefile",
    "gh variable set": "GitHub's, with an account there",
}
# what moto does not know: the command itself has taken it, and was told so
NOT_IN_MOTO = {
    "aws codebuild import-source-credentials": "CodeBuild's credentials",
    "aws sagemaker create-studio-lifecycle-config": "Studio",
    "aws sagemaker delete-studio-lifecycle-config": "Studio",
}
BASE = """
name = "churn"
[steps.data]
notebook = "data.ipynb"
inputs = { source = "./data/churn.csv" }
outputs = { table = "t.csv" }
[steps.train]
notebook = "train.ipynb"
inputs = { table = "data.table" }
outputs = { model = "model/" }
[steps.register]
notebook = "register.ipynb"
inputs = { model = "train.model", verdict = "gate.verdict" }
[[gate]]
metric = "train.score"
min = 0.5
[model]
name = "churn"
from = "train.model"
"""
# the containers here have one Python and the lock's packages; with AWS's image wheels of a hundred packages would come
HERE = {"python": "3.11", "packages": "image", "poll_s": 0.2}
TRAIN = """
import numpy as np, pandas as pd, xgboost as xgb
import runner.model
frame = pd.DataFrame({"calls": np.arange(40.0), "minutes": np.arange(40.0) % 7})
answers = (frame["calls"] > 20).astype(int)
booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(frame, answers), 2)
runner.model.save(model, booster, frame, target="left", positive="yes")
"""


@dataclass
class Walk:
    """One walk through the page: what was run, and what became of it."""

    project: RemoteProject
    programs: Path
    table: dict[str, Any] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)

    def configure(self, text: str) -> None:
        """As a person writes it into pipeline.toml: keys that are there get the new value."""
        self.table = merged(self.table, tomllib.loads(text))
        self.project.toml(written(self.table))

    def run(self, command: str) -> None:
        if reason := next((start for start in NOT_HERE if command.startswith(start)), None):
            self.skipped.add(reason)
            return
        done = self.project.here(*shlex.split(command)[1:]) if command.startswith("runner ") else self.bash(command)
        if done.code and "NotImplemented" in done.err:
            self.unknown.add(next((start for start in NOT_IN_MOTO if command.startswith(start)), command))
        elif done.code:
            self.troubles.append(f"$ {command}\n[{done.code}] {done.out}{done.err}")

    def bash(self, command: str) -> Done:
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail\n{command}"],
            cwd=self.project.folder,
            env={
                **self.project.cloud.environment,
                **self.project.extra,
                "AWS_ACCESS_KEY_ID": CLIENT_KEY,  # who makes buckets and stacks is the account's administrator
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "HOME": str(self.project.folder),
            },
            capture_output=True,
            text=True,
        )
        return Done(done.returncode, done.stdout, done.stderr)


def merged(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    made = dict(before)
    for key, value in more.items():
        old = made.get(key)
        made[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made


def written(table: dict[str, Any]) -> str:
    """As TOML, each table of the top on one line."""
    return "".join(f"{key} = {inline(value)}\n" for key, value in table.items())


def inline(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "{ " + ", ".join(f"{key} = {inline(one)}" for key, one in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(inline, value)) + "]"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case _:
            return str(value)


def commands(block: str) -> Iterator[str]:
    """Each command of a console block, with the lines that continue it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = next((number for number, line in enumerate(lines, 1) if not line.endswith("\\")), len(lines))
        yield "\n".join(lines[:length])


def aws_cli() -> Path:
    """The folder of the real `aws`, installed once per machine."""

    def build(made: Path) -> None:
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, made], check=True)
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", made / "bin" / "python"]
        subprocess.run([*install, "--no-deps", "--require-hashes", "-r", LOCK], check=True)

    return Path(kept_image("aws-cli", LOCK.read_bytes(), build).path) / "bin"


def make_project(folder: Path, cloud: SmallSageMaker) -> RemoteProject:
    made = RemoteProject(folder, cloud, settings="", extra={"BROWSER": "true", "TOKEN": "not so secret"})
    made.write(
        "data.ipynb",
        parameters("source: str = ''\ntable: str = ''\ntoken: str = ''  # secret"),
        "open(table, 'w').write(open(source).read())",
    )
    made.write("train.ipynb", parameters("table: str = ''\nmodel: str = ''"), TRAIN, recorded("score", "0.9"))
    made.write(
        "register.ipynb",
        parameters("model: str = ''\nverdict: str = ''"),
        "from runner.model import register\nregister(model, card='# Churn', description='tiny')",
    )
    (folder / "data").mkdir()
    (folder / "data" / "churn.csv").write_text("calls,minutes\n1,2\n")
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    return made


def make_studio(cloud: SmallSageMaker) -> None:
    """The domain and its users' role, which the page takes as given too."""
    allowed = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    role = cloud.client("iam").create_role(RoleName="StudioExecution", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    cloud.client("sagemaker").create_domain(
        DomainName="studio",
        AuthMode="IAM",
        DefaultUserSettings={"ExecutionRole": role},
        SubnetIds=["subnet-1"],
        VpcId="vpc-1",
        Tags=[{"Key": "team", "Value": "a"}],  # without any moto takes no others
    )


def test_every_command_of_ours_on_the_page_is_one() -> None:
    """With options that it has; what they do is seen by the walk below."""
    lines = [
        line
        for kind, block in BLOCK.findall(PAGE.read_text(encoding="utf-8"))
        if kind == "console"
        for line in commands(block)
    ]
    ours = [shlex.split(line)[1:] for line in lines if line.startswith("runner ")]
    assert len(ours) >= 25
    for words in ours:
        command, arguments = cast("click.Command", group), list(words)
        while isinstance(command, click.Group):
            name = arguments.pop(0)
            found = command.get_command(click.Context(command), name)
            assert found is not None, words
            command = found
        command.make_context(words[0], arguments)  # raises click.UsageError


@pytest.mark.soak
def test_every_command_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "machines")
    cloud = SmallSageMaker(images={"*": own_image()}, on_endpoint=machines)
    (tmp_path / "project").mkdir()
    with cloud:
        machines.cloud = cloud
        # moto does not simulate policies; the doctor then says "?" and why
        cloud.faults.add("SimulatePrincipalPolicy", "AccessDeniedException", times=None)
        for name in ("ada", "grace"):  # whose accounts the page takes as given
            cloud.client("iam").create_user(UserName=name)
        make_studio(cloud)
        walk = Walk(make_project(tmp_path / "project", cloud), aws_cli(), tomllib.loads(BASE))
        found = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
        assert len(found) >= 30
        for kind, block in found:
            if kind == "toml":
                walk.configure(block)
                if "[sagemaker]\n" in block:
                    walk.configure(written({"sagemaker": HERE}))
                continue
            for command in commands(block):
                walk.run(command)
        machines.close()
    if walk.troubles:
        pytest.fail("\n\n".join(walk.troubles), pytrace=False)
    assert walk.skipped == NOT_HERE.keys()
    assert walk.unknown == NOT_IN_MOTO.keys()


def test_each_line_of_what_nobody_has_verified_names_its_probe() -> None:
    """A check of `runner doctor`, with a name that it prints."""
    text = PAGE.read_text(encoding="utf-8").split("## Not verified without an account")[1]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    assert 1 <= len(rows) <= 10
    files = [*(ROOT / "runner" / "aws").glob("*.py"), ROOT / "runner" / "run" / "doctor.py"]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    names = set(re.findall(r'(?:ok|failed|unknown|_asked)\(\s*"(\w+)"', source))
    for what, told, _ in rows:
        probe = re.search(r"`runner doctor[^`]*`[^,]*, line `(\w+)`", told)
        assert probe, what
        assert probe[1] in names, what
