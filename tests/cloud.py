"""A project whose steps run in the small SageMaker: the same one as here, with a [sagemaker] table.

Each command is run by whoever it is for, with the policies that infra/ has for them (account.py).
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from account import attach, key, whose
from small_sagemaker import Image, SmallSageMaker, own_image
from support import botocore_files, sdk
from support.commands import Done
from support.projects import ROOT, Project

BUCKET = "work"
SAGEMAKER = """
[sagemaker]
bucket = "work"
prefix = "team"
role = "arn:aws:iam::123456789012:role/PROJECT-jobs"
image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/own:1"
python = "3.11"
packages = "image"
poll_s = 0.2
"""


@dataclass(frozen=True)
class RemoteProject(Project):
    """As Project; `toml` adds [sagemaker] and the account's policies, and every command reaches the small SageMaker.

    `sources` are ARNs outside the project's prefix that its steps read, as SourceArns of infra/policies.yaml has them,
    and `tables` is Tables there.
    """

    cloud: SmallSageMaker
    settings: str = SAGEMAKER
    extra: dict[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    tables: str = ""

    def toml(self, content: str) -> Path:
        shutil.copyfile(ROOT / "requirements.lock", self.folder / "requirements.lock")
        made = super().toml(in_sagemaker(content, self.settings))
        self.attach()
        return made

    def attach(self) -> None:
        if self.cloud is None:  # of a test that asks nothing of it
            return
        attach(self.cloud, self.folder / "pipeline.toml", sources=self.sources, tables=self.tables)

    def environment(self, *arguments: str) -> dict[str, str]:
        self.attach()  # another project of the test may have been the account's since
        return {**self.cloud.environment, **key(whose(*arguments)), **self.extra}

    def runner(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        return super().runner(*arguments, env={**self.environment(*arguments), **(env or {})}, cwd=cwd)

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return super().start(*arguments, env={**self.environment(*arguments), **(env or {})})

    def here(self, *arguments: str) -> Done:
        """As `runner`, in this process, which has boto3 and the SDK imported already: a second less, or five."""
        from runner.cli import entry

        botocore_files.keep()
        if arguments[0] == "pipeline":
            sdk.check_once()
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            for name, value in {**self.environment(*arguments), "RUNNER_NO_REPORT": "1"}.items():
                patch.setenv(name, value)
            code = entry(arguments)
        return Done(code, out.getvalue(), err.getvalue())


def in_sagemaker(content: str, settings: str = SAGEMAKER) -> str:
    """The pipeline.toml with [sagemaker], and with the role that infra/policies.yaml makes for a project of its name."""
    found = re.search(r'^name = "(.+)"', content, re.MULTILINE)
    return content + settings.replace("PROJECT-jobs", f"{found[1].lower()}-jobs" if found else "no-jobs")


@contextmanager
def running(image: Image | None = None, **options: Any) -> Iterator[SmallSageMaker]:
    """The small SageMaker with a bucket; skips, saying why, where this machine may not mount."""
    made = SmallSageMaker(images={"*": image or own_image(warm=True)}, **options)
    with made as cloud:
        place = {"LocationConstraint": cloud.region}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield cloud


def jobs(cloud: SmallSageMaker) -> list[str]:
    """The names of all processing jobs."""
    pages = cloud.client("sagemaker").get_paginator("list_processing_jobs").paginate()
    return sorted(job["ProcessingJobName"] for page in pages for job in page["ProcessingJobSummaries"])
