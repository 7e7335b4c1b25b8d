"""`studio publish`: the template of Studio's "Create project"."""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.cli.terminal import say


@click.group("studio")
def studio_command() -> None:
    """What an administrator of SageMaker Studio does once, so that people make projects by clicking.

    \b
    Example:
      runner studio publish --dry-run
    """


@studio_command.command("publish")
@click.option("--bucket", metavar="NAME", help="Instead of [sagemaker] bucket.")
@click.option("--dry-run", is_flag=True, help="Say what would go where, and what to do then; upload nothing.")
@json_option
@pipeline_option
def publish_command(bucket: str | None, dry_run: bool, as_json: bool, pipeline: Path) -> None:
    """Put infra/project.yaml, with all that it nests, where Studio finds it as a project template.

    Prints what to do next, in Studio and before it. Publishing again replaces the template; projects that are there
    stay as they are until somebody updates them.

    \b
    Example:
      runner studio publish --dry-run
      runner studio publish --bucket my-templates
    """
    from runner.aws.studio import publish
    from runner.pipeline.file import load

    found = publish(load(pipeline), pipeline.parent, bucket=bucket, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "template": found.template,
                "parts": [found.parts + name for name in found.nested],
                "cors_changed": not found.allowed,
                "dry_run": dry_run,
                "next": found.steps,
            }
        )
        return
    say(found.template)
    verb = "would be" if dry_run else "is"
    say(f"  {verb} a template of Studio, with {', '.join(found.nested)} in {found.parts}", err=True)
    if not found.allowed:
        say(f"  pages of Studio {'would be' if dry_run else 'are'} allowed to read the bucket (CORS)", err=True)
    for line in found.steps:
        say(line)
