"""Looking instead of typing: `ui`, `site`."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import click

from runner.cli.options import print_json, project_option, result_options
from runner.cli.terminal import new_password, say
from runner.errors import UsageError, counted
from runner.project import Project


@click.command("ui")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="One that other machines reach needs RUNNER_UI_USERS or --trust-user-header.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option("--open", "open_", is_flag=True, help="Open the pages in the browser.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Answer by this name too, as a proxy's.")
@click.option(
    "--trust-user-header",
    "header",
    default="",
    metavar="NAME",
    help="Who somebody is stands in this header, which a proxy sets and nobody else can.",
)
@click.option(
    "--prefix", default="", metavar="PATH", help="The path before every address, where a proxy leaves it there."
)
@click.option(
    "--user", default="", metavar="NAME", help="Ask for a password, print a line for RUNNER_UI_USERS, and end."
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Listen at this file, for Jupyter of this account alone: the pages of all projects in this folder.",
)
@project_option
def ui_command(  # noqa: PLR0913 - click passes each option by its name
    host: str,
    port: int,
    open_: bool,
    hosts: tuple[str, ...],
    header: str,
    prefix: str,
    user: str,
    socket: Path | None,
    project: Project,
) -> None:
    """Show runs, models and targets as web pages, and decide there.

    The printed address lets one browser in, as the account that this runs as. Where others are to come, RUNNER_UI_USERS
    is a file with a line NAME:HASH for each person, or its text.

    \b
    Example:
      runner ui --open
      runner ui --user ana >> users
      RUNNER_UI_USERS=users runner ui --host 0.0.0.0
    """
    from runner.serve.listening import bind, bind_file
    from runner.ui import access as who_comes
    from runner.ui.server import access, address, jupyter_access, opened, serve, serve_several

    if user:
        say(f"{user}:{_hash(user)}")
        return
    if socket is not None:
        serve_several(Path.cwd(), jupyter_access(socket), bind_file(socket))
        return
    if not project.file.is_file():
        _ = project.spec  # says what is missing
    try:
        listening = bind(host, port)
    except UsageError as error:
        raise UsageError(f"{error} Choose another with --port.") from error
    port = listening.getsockname()[1]
    entry = access(
        host,
        port,
        header=header,
        hosts=hosts,
        users_text=os.environ.get(who_comes.USERS, ""),
        on_sign_in=lambda: say(f"signed in; for another browser: {address(host, port, entry)}", err=True),
    )
    with contextlib.ExitStack() as stack:

        def ready() -> None:
            where = address(host, port, entry)
            say(f"pages of {project.file} at {where}", err=True)
            if open_:
                threading.Thread(target=lambda: stack.enter_context(opened(where)), daemon=True).start()

        serve(project.file.absolute(), entry, listening, prefix=prefix, on_ready=ready)


def _hash(user: str) -> str:
    from runner.ui.access import hasher

    if ":" in user or user != user.strip() or not user.isprintable():
        raise UsageError(f"{user!r} cannot be a user's name: no colon, no space at its ends.")
    hasher_ = hasher()
    password = new_password("Password")
    if len(password) < 8:
        raise UsageError("A password has 8 characters or more.")
    return hasher_.hash(password)


@click.command("site")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--profile", metavar="NAME", help="Of the registry that [profiles.NAME] of the pipeline file has.")
@result_options
def site_command(folder: Path, profile: str | None, as_json: bool, project: Project) -> None:
    """Write the pages of all runs and versions into DIR, without forms, for a CI artifact or a bucket.

    \b
    Example:
      runner site build/site
    """
    from runner.ui.site import write_site

    project.profile = profile
    written = write_site(project, folder)
    for sentence in written.left_out:
        say(sentence, err=True)
    if as_json:
        page = str((folder / "index.html").absolute())
        print_json({"page": page, "runs": written.runs, "versions": written.versions, "left_out": written.left_out})
        return
    say(folder / "index.html")
    say(f"{counted(written.runs, 'run')}, {counted(written.versions, 'version')}", err=True)
