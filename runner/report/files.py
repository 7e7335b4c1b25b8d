"""The templates and the style sheet, how a page is made of them, and how values look in it."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.content import atomic_write
from runner.escape import html, visible
from runner.report.clean import POLICY

if TYPE_CHECKING:
    import jinja2
    from jinja2.bccache import Bucket
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, **values: Any) -> bytes:
    """The template filled in, as a page that needs no other file."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    text = environment().get_template(template).render(style=style, policy=POLICY, **values)
    return text.encode("utf-8", "backslashreplace")


def write_page(path: Path, content: bytes) -> Path:
    """Write a page to `path`, whose folder is made; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    return path


@functools.cache
def environment(*more: Path) -> jinja2.Environment:
    """Escapes every value, with escapes for control characters too. `more` are further folders of templates."""
    import jinja2

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*more, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
        bytecode_cache=_compiled_templates(),
    )
    environment.filters.update(prose=prose, number=number, when=when, size=size, short=lambda text: str(text)[:12])
    return environment


def _compiled_templates() -> jinja2.BytecodeCache:
    """Compiling a report's templates takes as long as filling them in, so the user's cache keeps them compiled, as
    Python keeps its modules."""
    import jinja2

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "runner" / "templates"
    # what compiled code depends on beside the template
    compiler = f"{jinja2.__version__} {Path(__file__).stat().st_mtime_ns} "

    class Compiled(jinja2.FileSystemBytecodeCache):
        def get_cache_key(self, name: str, filename: str | None = None) -> str:
            return name  # whatever folder it lies in: the checksum tells them apart

        def get_source_checksum(self, source: str) -> str:
            return super().get_source_checksum(compiler + source)

        def load_bytecode(self, bucket: Bucket) -> None:
            with contextlib.suppress(OSError):
                if _is_ours(folder):
                    super().load_bytecode(bucket)

        def dump_bytecode(self, bucket: Bucket) -> None:
            with contextlib.suppress(OSError):  # a cache that cannot be written
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if _is_ours(folder):
                    super().dump_bytecode(bucket)

    return Compiled(str(folder), "%s.compiled")


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have written there what would be executed here."""
    found = folder.stat()
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def svg_address(figure: Figure) -> str:
    """A matplotlib figure as an address for `img`, the same bytes for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"


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
    """A UTC time to the second; other text unchanged."""
    if not text:
        return ""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return text


def prose(text: object) -> str:
    """A sentence of ours with what stands in backticks as code; all of it is escaped."""
    from jinja2.filters import do_mark_safe

    parts = html(str(text)).split("`")
    paired = len(parts) % 2 == 1
    marked = "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))
    return do_mark_safe(marked if paired else "`".join(parts))


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def reason(error: Exception) -> str:
    """An error in a page's layout, for a person."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__
