"""The templates and the style sheet, and the environment they are filled in with."""

from __future__ import annotations

import functools
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.escape import visible

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def style() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


@functools.cache
def environment() -> jinja2.Environment:
    """Everything that is filled in is escaped, and what has no look of its own is made visible."""
    import jinja2

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    made.filters.update(number=number, when=when, size=size, short=lambda text: str(text)[:12])
    return made


def number(value: Any) -> str:
    """Four significant digits; counts in full."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):  # of any length; a float may not hold it
        text = f"{value:,}" if abs(value) < 10**30 else str(value)
        return text if len(text) <= 60 else f"{text[:40]}… ({len(text):,} digits)"
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"


def when(text: str | None) -> str:
    """A UTC time to the second; what is not a time as it stands."""
    if not text:
        return ""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return text


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def reason(error: Exception) -> str:
    """What a person makes of an error in laying something out."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__
