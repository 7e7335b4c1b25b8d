"""Drawing the pipeline: `graph`."""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli.options import print_json, profile_option, result_options
from runner.cli.terminal import say
from runner.errors import Refused
from runner.project import Project


@click.command("graph")
@click.argument("run", required=False)
@click.option("-o", "output", type=click.Path(path_type=Path), metavar="FILE.svg", help="Write the drawing as SVG.")
@profile_option
@result_options
def graph_command(run: str | None, output: Path | None, profile: str | None, as_json: bool, project: Project) -> None:
    """Draw the pipeline: data, steps, gate and model, and what each takes; with RUN, what became of each.

    \b
    Example:
      runner graph
      runner graph latest -o run.svg
    """
    from runner.content import atomic_write
    from runner.report.graph import MARKS, graph, svg, text

    if run is None:
        project.profile = profile
        nodes = graph(project.spec)
    else:
        (manifest,) = project.as_of_now([project.run(run)])
        nodes = graph(manifest.pipeline, manifest)
    if output is not None:
        try:
            atomic_write(output, svg(nodes, standalone=True).encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise Refused(f"Cannot write {output}: {error.strerror}. Name another place with -o FILE.svg.") from error
    if as_json:
        rows = [{"id": node.id, "kind": node.kind, "name": node.label, "detail": node.detail} for node in nodes]
        statuses = [{"status": node.status or None, "needs": list(node.needs)} for node in nodes]
        print_json([{**row, **status} for row, status in zip(rows, statuses, strict=True)])
        return
    lines = text(nodes)
    rails = max(len(rail) for rail, _ in lines)
    names = max(len(node.label) for _, node in lines)
    details = max(len(node.detail) for _, node in lines)
    for rail, node in lines:
        detail = f"{MARKS.get(node.status, ' ')} {node.detail}".ljust(details + 2)
        takes = f"  ◂ {', '.join(node.takes)}" if node.takes and node.kind == "step" else ""
        say(f"{rail.ljust(rails)}  {node.label.ljust(names)}  {detail}{takes}".rstrip())
    if output is not None:
        say(f"drawing {output}", err=True)
