"""`image push`: an image of one's own, built in AWS from the lock."""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.cli.terminal import say


@click.group("image")
def image_command() -> None:
    """The image that jobs and endpoints start where [sagemaker] image or serving_image is "own".

    \b
    Example:
      runner image push
    """


@image_command.command("push")
@click.option("--dry-run", is_flag=True, help="Say whether it would be built; start nothing.")
@click.option("--no-wait", is_flag=True, help="Leave once the build is started; the same command follows it later.")
@json_option
@pipeline_option
def push_command(dry_run: bool, no_wait: bool, as_json: bool, pipeline: Path) -> None:
    """Build the image of the lock in CodeBuild and wait for it; one that is there is not built again.

    infra/image.yaml makes the repository and the CodeBuild project. A build takes some minutes, which AWS bills.

    \b
    Example:
      runner image push --dry-run
      runner image push
    """
    from runner.aws.image_build import push_all
    from runner.project import Project

    project = Project(pipeline)
    found = push_all(
        project.session(), project.spec, project.root, wait=not no_wait, dry_run=dry_run,
        say=lambda line: say(f"  … {line}", err=True),
    )  # fmt: skip
    if as_json:
        images = [
            {"addresses": one.addresses, "outcome": one.what, "build": one.build or None, "size_bytes": one.size_bytes}
            for one in found
        ]
        print_json({"images": images, "dry_run": dry_run})
        return
    for one in found:
        size = f"   {one.size_bytes / 1e6:,.0f} MB" if one.size_bytes else ""
        for address in one.addresses:
            say(f"{address}   {one.what}{size}")
        if one.what == "building":
            say(f"  {one.build}; `runner image push` follows it", err=True)
