"""`rest`: the files of a model that infra/rest.yaml and front-end developers need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import print_json, result_options
from runner.cli.terminal import say
from runner.project import Project

if TYPE_CHECKING:
    from runner.serve.openapi import Authentication

SCHEMA, OPENAPI = "record.schema.json", "openapi.json"


@click.command("rest")
@click.argument("model", metavar="NAME[/VERSION]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="build/rest",
    show_default=True,
    help="The folder that both files are written to.",
)
@click.option(
    "--url",
    default="https://API.execute-api.REGION.amazonaws.com/v1",
    help="The API's address: the stack's output Url.",
)
@click.option(
    "--authentication",
    type=click.Choice(["api-key", "iam", "none"]),
    default="api-key",
    show_default=True,
    help="What the OpenAPI file asks of callers.",
)
@result_options
def rest_command(
    model: str, output: Path, url: str, authentication: Authentication, as_json: bool, project: Project
) -> None:
    """Write the files of a REST API in front of an approved model version: nothing is deployed.

    record.schema.json is what infra/rest.yaml checks requests by, openapi.json is for who calls the API; both come from
    the version's own signature. Without /VERSION they are those of the highest approved one.

    \b
    Example:
      runner rest NAME
      runner rest NAME/3 --output build/rest --url https://abc123.execute-api.eu-west-1.amazonaws.com/v1
    """
    import json

    from runner.model.folder import load
    from runner.serve.openapi import openapi, record_schema

    version = project.version(model)
    signature = load(project.version_folder(version), sha256=version.sha256).signature
    output.mkdir(parents=True, exist_ok=True)
    files = {
        SCHEMA: record_schema(signature),
        OPENAPI: openapi(signature, version, url=url, authentication=authentication),
    }
    for name, content in files.items():
        (output / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json({"model": version.label, "files": [str(output / name) for name in files]})
        return
    for name in files:
        say(f"{output / name}  of {version.label}")
