"""The command line: a command parses, calls one function, prints. Results go to stdout, all else to stderr.

Command modules are imported when their command is used, so that `runner --help` shows at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
from collections.abc import Sequence

import click

from runner import __version__
from runner.cli.terminal import say
from runner.errors import Refused, RunnerError, UsageError

HIDDEN = ""  # instead of a first line: only programs call it
COMMANDS = {
    "init": ("init", "Make a project for a table: notebooks, pipeline.toml, all that it needs."),
    "run": ("run", "Run the pipeline's notebooks, judge, and register the model."),
    "resume": ("run", "Continue an interrupted or failed run with its own code and parameters."),
    "sweep": ("sweep", "Try many values for a step, ranked on validation rows; evaluate the winner."),
    "stop": ("run", "Stop a run: its jobs elsewhere, or the process that works on it."),
    "fetch": ("transfer", "Bring a run's outputs here that stayed in S3."),
    "doctor": ("doctor", "Say what would keep a run from working, here or in SageMaker."),
    "upload": ("doctor", "Put a table into the project's bucket, from where jobs read it."),
    "adopt": ("adopt", "Make existing notebooks the steps of a pipeline: show how, and write copies."),
    "check": ("before_run", "Say what is wrong with pipeline.toml and its notebooks; start nothing."),
    "open": ("before_run", "Open a step's notebook in Jupyter, with a run's inputs and parameters."),
    "kernel": ("before_run", "Register this environment as a Jupyter kernel."),
    "runs": ("runs", "List runs, the newest first."),
    "show": ("runs", "Show one run: steps, metrics, verdict, provenance."),
    "diff": ("diff", "Show what differs between two runs, or since a git revision: code by cell."),
    "compare": ("diff", "Show several runs side by side: parameters, metrics, verdicts."),
    "verify": ("audit", "Check every sealed file, registry row and event against its hash."),
    "reproduce": ("audit", "Execute a run again from its snapshot and compare."),
    "debug": ("transfer", "Open a copy of a step's notebook with the run's own values, the failing cell marked."),
    "pack": ("transfer", "Put a run with all it stands on into one file."),
    "import": ("transfer", "Take in a packed run, every file checked."),
    "gc": ("audit", "Remove runs that nothing needs any more."),
    "graph": ("graph", "Draw the pipeline, or what became of a run."),
    "logs": ("logs", "Print what a run's cells printed."),
    "site": ("ui", "Write the pages of all runs and versions into a folder, without forms."),
    "ui": ("ui", "Show runs, models and targets as web pages, and decide there."),
    "report": ("runs", "Print where a run's report is, writing it anew where it is missing."),
    "models": ("models", "List registered model versions."),
    "register": ("models", "Register the model of a run that passed and did not register."),
    "approve": ("models", "Approve a pending model version."),
    "reject": ("models", "Reject a pending version, or revoke an approved one."),
    "history": ("models", "Show everything that happened to a model's versions."),
    "predict": ("serving", "Score a file of raw records by an approved model version."),
    "serve": ("serving", "Serve an approved model version over HTTP."),
    "rest": ("rest", "Write the schema and the OpenAPI file of a REST API in front of a model."),
    "deploy": ("deploy", "Serve an approved model version at a target, beside the old one until it has proved itself."),
    "rollback": ("deploy", "Serve again what a target served before."),
    "undeploy": ("deploy", "Serve nothing at a target any more."),
    "deployments": ("deploy", "Show what each target serves, since when and by whom, and whether it answers."),
    "monitor": ("monitor", "Watch a target: judge what was captured there, learn anew where the answer is no."),
    "release": ("deploy", "Walk a version through approval, staging and production, asking before each step."),
    "pipeline": ("pipeline", "Show, push, start and follow the pipeline as a SageMaker Pipeline."),
    "studio": ("studio", "Publish the template by which people create such a project in SageMaker Studio."),
    "image": ("image", "Build the image of the lock in AWS, for jobs and endpoints."),
    "setup-git": ("git", "Keep outputs out of commits, and merge notebooks cell by cell."),
    "clean-notebook": ("git", HIDDEN),
}

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# what a machine or a file system refuses; any other OSError is a fault in the runner, shown with its traceback
MACHINE_TROUBLE = (
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO, errno.ESTALE,
    errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG,
    errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EBUSY,
)  # fmt: skip


class Commands(click.Group):
    """Knows the commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (_, line) in COMMANDS.items() if line != HIDDEN]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"runner.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from runner.pipeline.file import nearest

            raise click.UsageError(f"There is no command {args[0]!r}{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="runner")
def group() -> None:
    """Run parameterized notebooks as a pipeline: executed, judged, registered, reported.

    \b
    Example:
      runner run                 execute pipeline.toml in this folder
      runner show latest         its result
      runner approve NAME/1 --reason "reviewed"
    """


def entry(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. RunnerErrors print as a sentence, never as a traceback."""
    try:
        check_text(arguments)
        code = group.main(args=list(arguments), prog_name="runner", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(text.getvalue(), err=True, nl=False)
        return error.exit_code
    except RunnerError as error:
        return _failed(error)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted", err=True)
        return 130
    except RecursionError:
        return _failed(UsageError("A file that was read, a notebook, a table or pipeline.toml, is nested too deeply."))
    except OSError as error:
        return machine_trouble(error, arguments)
    except Exception:
        return _fault()
    return code if isinstance(code, int) else 0


def machine_trouble(error: OSError, arguments: Sequence[str]) -> int:
    """Print what the machine refused, and what to do; the exit code."""
    if error.errno in MACHINE_TROUBLE:
        where = f": {error.filename}" if error.filename else ""
        sentence = f"This machine did not allow what was needed: {error.strerror}{where}."
        if isinstance(error, PermissionError):
            sentence += " Accounts that share a folder need one group and a umask of 0002: see SECURITY.md."
        return _failed(Refused(sentence))
    if error.errno not in DISK_TROUBLE:
        return _fault()
    say(f"{error.strerror}: {error.filename or 'while writing'}", err=True)
    remedy = "`runner resume latest`" if arguments[:1] in (["run"], ["resume"], ["sweep"]) else "give the command again"
    say(f"  Nothing was sealed or switched half. Make space, then {remedy}.", err=True)
    return Refused.exit_code


def check_text(arguments: Sequence[str]) -> None:
    """Raises UsageError for an argument or a working folder that is not UTF-8: no record could hold it."""
    for text in arguments:
        if (escaped := _escaped(text)) is not None:
            raise UsageError(f"The argument {escaped} is not UTF-8. Give it as UTF-8, or rename the file it names.")
    with contextlib.suppress(FileNotFoundError):
        if (escaped := _escaped(os.getcwd())) is not None:  # noqa: PTH109 - pathlib is a tenth of a start
            raise UsageError(
                f"The name of this folder, {escaped}, is not UTF-8, so no record could name it. Rename it."
            )


def _escaped(text: str) -> str | None:
    """The text with escapes for what is not UTF-8 in it; None where all of it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return repr(os.fsencode(text))[1:]
    return None


def _fault() -> int:
    """Print the traceback of a fault in the runner; it may quote a notebook."""
    import traceback

    say(traceback.format_exc(), err=True, nl=False)
    return RunnerError.exit_code


def _failed(error: RunnerError) -> int:
    lines = "\n".join([str(error), *getattr(error, "__notes__", [])]).splitlines()
    say("\n".join([f"{error.headline}:", *(f"  {line}" for line in lines)]), err=True)
    return error.exit_code
