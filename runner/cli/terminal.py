"""Writing to the terminal: the one place that does, so that nothing in what is shown acts on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from runner.escape import terminal


def say(
    text: object = "", *, err: bool = False, nl: bool = True, over: bool = False, colour: str | None = None
) -> None:
    """Print for a person; with `over` the next line is written over this one."""
    click.echo(click.style(terminal(str(text)), fg=colour) + "\r" * over, err=err, nl=nl and not over)


def confirm(question: str) -> bool:
    return click.confirm(terminal(question), err=True)


def ask(question: str, default: str) -> str:
    """A person's answer; `default` where they only press return."""
    shown = terminal(default)
    answer: str = click.prompt(terminal(question), default=shown, err=True)
    return default if answer == shown else answer


def new_password(question: str) -> str:
    """What a person types twice, which is not shown."""
    answer: str = click.prompt(terminal(question), hide_input=True, confirmation_prompt=True, err=True)
    return answer


def drawn(text: str, **style: Any) -> Any:
    """The text for rich to draw: none of it is markup, and none of it acts on the terminal."""
    from rich.text import Text  # 0.1 s, and a log needs none of it

    return Text(terminal(text), **style)


def live(lines: Callable[[], Any], *, per_s: float, transient: bool = False) -> Any:
    """rich's live display of the lines on stderr, not yet started; with `transient` it is cleared at its end."""
    from rich.console import Console  # 0.1 s, and a log needs none of it
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    return Live(console=console, get_renderable=lines, refresh_per_second=per_s, transient=transient)
