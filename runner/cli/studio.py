"""`studio publish`: the template of Studio's "Create project"."""

from __future__ import annotations

import click

from runner.cli.options import print_json, result_options
from runner.cli.terminal import say
from runner.project import Project


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
@result_options
def publish_command(bucket: str | None, dry_run: bool, as_json: bool, project: Project) -> None:
    """Put infra/project.yaml, with all that it nests, where Studio finds it as a project template.

    Prints what to do next, in Studio and before it. Publishing again replaces the template; projects that are there
    stay as they are until somebody updates them.

    \b
    Example:
      runner studio publish --dry-run
      runner studio publish --bucket my-templates
    """
    from runner.aws.studio import publish

    published = publish(project.spec, project.root, bucket=bucket, dry_run=dry_run)
    if as_json:
        parts = [published.parts + name for name in published.nested]
        facts = {"cors_changed": not published.allowed, "dry_run": dry_run, "next": published.steps}
        print_json({"template": published.template, "parts": parts, **facts})
        return
    say(published.template)
    verb = "would be" if dry_run else "is"
    say(f"  {verb} a template of Studio, with {', '.join(published.nested)} in {published.parts}", err=True)
    if not published.allowed:
        say(f"  pages of Studio {'would be' if dry_run else 'are'} allowed to read the bucket (CORS)", err=True)
    for line in published.steps:
        say(line)
