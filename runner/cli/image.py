"""`image push`: an image of one's own, built in AWS from the lock."""

from __future__ import annotations

import click

from runner.cli.options import fields, print_json, result_options
from runner.cli.terminal import say
from runner.project import Project


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
@result_options
def push_command(dry_run: bool, no_wait: bool, as_json: bool, project: Project) -> None:
    """Build the image of the lock in CodeBuild and wait for it; one that is there is not built again.

    infra/image.yaml makes the repository and the CodeBuild project. A build takes some minutes, which AWS bills.

    \b
    Example:
      runner image push --dry-run
      runner image push
    """
    from runner.aws.image_build import push_all

    images = push_all(
        project.session(),
        project.spec,
        project.root,
        wait=not no_wait,
        dry_run=dry_run,
        say=lambda line: say(f"  … {line}", err=True),
    )
    if as_json:
        rows = [
            {**fields(image, "addresses", "size_bytes"), "outcome": image.outcome, "build": image.build or None}
            for image in images
        ]
        print_json({"images": rows, "dry_run": dry_run})
        return
    for image in images:
        size = f"   {image.size_bytes / 1e6:,.0f} MB" if image.size_bytes else ""
        for address in image.addresses:
            say(f"{address}   {image.outcome}{size}")
        if image.outcome == "building":
            say(f"  {image.build}; `runner image push` follows it", err=True)
