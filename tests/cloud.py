"""A project whose steps run in the small SageMaker: the same one as here, with a [sagemaker] table."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Done, Project
from small_sagemaker import Image, NotPermittedError, SmallSageMaker, own_image

BUCKET = "work"
SAGEMAKER = """
[sagemaker]
bucket = "work"
prefix = "team"
role = "arn:aws:iam::123456789012:role/jobs"
image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/own:1"
python = "3.11"
packages = "image"
poll_s = 0.2
"""


@dataclass(frozen=True)
class RemoteProject(Project):
    """As Project; `toml` adds [sagemaker], and every command reaches the small SageMaker."""

    cloud: SmallSageMaker
    settings: str = SAGEMAKER
    extra: dict[str, str] = field(default_factory=dict)

    def toml(self, content: str) -> Path:
        shutil.copyfile(ROOT / "requirements.lock", self.folder / "requirements.lock")
        return super().toml(content + self.settings)

    def runner(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        return super().runner(*arguments, env={**self.cloud.environment, **self.extra, **(env or {})}, cwd=cwd)

    def here(self, *arguments: str) -> Done:
        """As `runner`, in this process, which has boto3 and the SDK imported already: a second less, or five."""
        from runner.cli import entry

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            for name, value in {**self.cloud.environment, **self.extra, "RUNNER_NO_REPORT": "1"}.items():
                patch.setenv(name, value)
            code = entry(arguments)
        return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def running(image: Image | None = None, **options: Any) -> Iterator[SmallSageMaker]:
    """The small SageMaker with a bucket; skips, saying why, where this machine may not mount."""
    try:
        made = SmallSageMaker(images={"*": image or own_image()}, **options)
    except NotPermittedError as error:
        pytest.skip(f"the small SageMaker cannot run containers here: {error}")
    with made as cloud:
        place = {"LocationConstraint": cloud.region}
        cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield cloud


def jobs(cloud: SmallSageMaker) -> list[str]:
    """The names of all processing jobs."""
    pages = cloud.client("sagemaker").get_paginator("list_processing_jobs").paginate()
    return sorted(job["ProcessingJobName"] for page in pages for job in page["ProcessingJobSummaries"])
