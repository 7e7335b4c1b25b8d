"""botocore's descriptions of the services, read once in a process: each new session reads a megabyte of JSON again."""

from __future__ import annotations

import functools
from typing import Any

# what the runner's commands and jobs ask
SERVICES = ("s3", "sagemaker", "logs", "sts", "secretsmanager")


def keep() -> None:
    """Whoever asks for a file gets what was read before; botocore changes none of it. Twice is once."""
    from botocore.loaders import JSONFileLoader

    read = JSONFileLoader.load_file
    if hasattr(read, "__wrapped__"):
        return
    found: dict[str, Any] = {}

    @functools.wraps(read)
    def load_file(self: Any, file_path: str) -> Any:
        if file_path not in found:
            found[file_path] = read(self, file_path)
        return found[file_path]

    JSONFileLoader.load_file = load_file


def read() -> None:
    """Keep those of SERVICES, for processes that are forked from this one."""
    import boto3.session

    keep()
    for service in SERVICES:
        boto3.session.Session(region_name="eu-west-1").client(service)
