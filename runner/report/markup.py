"""Markdown and source code as HTML for a page; HTML in Markdown passes through `runner.report.clean`.

Both parsers are linear for usual notebooks, but slow for text that was written to be slow: longer text stays text.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from runner.escape import visible
from runner.report import clean

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexer import Lexer

LONGEST_MARKDOWN, LONGEST_SOURCE, LONGEST_LINE = 50_000, 20_000, 1000
MOST_REPEATED = 20_000_000  # characters that references could repeat
_ATTACHMENT = re.compile(r"""(?<=src=)(["'])attachment:([^"'<>]*)\1""")
_MATH = re.compile(r"\$\$(?:[^$\\]|\\.)+\$\$|\$(?![\s$])(?:[^$\\]|\\.)+\$", re.S)


def markdown(text: str, attachments: Mapping[str, Any] | None = None) -> str:
    """The Markdown as HTML that may stand in a page, with the cell's pasted pictures in place.

    Raises clean.TooMuch.
    """
    if len(text) > LONGEST_MARKDOWN or ("]:" in text and len(text) * text.count("[") > MOST_REPEATED):
        raise clean.TooMuch(f"This Markdown of {len(text):,} characters is too long to be laid out.")
    page = str(_parser().render(text))
    page = _ATTACHMENT.sub(functools.partial(_picture, attachments=attachments or {}), page)
    return clean.html(page, classes=_classes())[0]


def highlighted(source: str, language: str) -> str:
    """The source as HTML, its words marked with Pygments' classes; as it stands where that would take long."""
    source, lexer = visible(source), _lexer(language)
    if lexer is None or len(source) > LONGEST_SOURCE or max(map(len, source.split("\n"))) > LONGEST_LINE:
        marked = html.escape(source)
    else:
        from pygments import highlight

        marked = highlight(source, lexer, _formatter())
    return f'<pre class="highlight">{marked}</pre>'


def load() -> None:
    """Import and build what pages need, before the first one is asked for."""
    _lexer("python")
    _parser()
    clean.html("")


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # 0.1 s

    parser = MarkdownIt("commonmark", {"html": True, "highlight": lambda code, name, _: highlighted(code, name)})
    parser.enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "math", _math)
    # addresses of pasted pictures stay; `clean` decides which links may stay
    parser.validateLink = lambda _: True  # type: ignore[assignment,method-assign]
    return parser


def _math(state: StateInline, silent: bool) -> bool:
    """A formula stays as it was typed: its `_`, `*` and `\\\\` are not markup. A page has no script to draw it."""
    match = _MATH.match(state.src, state.pos)
    if match is None:
        return False
    if not silent:
        state.push("text", "", 0).content = match[0]
    state.pos = match.end()
    return True


def _picture(match: re.Match[str], attachments: Mapping[str, Any]) -> str:
    name = unquote(html.unescape(match[2]))
    bundle = attachments.get(name)
    for mime, data in bundle.items() if isinstance(bundle, dict) else ():
        if address := clean.image(mime, data):
            return f'"{address}"'
    return f'"" alt="the attachment {html.escape(name)} is missing"'


@functools.cache
def _lexer(language: str) -> Lexer | None:
    if language in ("python", "ipython", "ipython3"):
        from ipython_pygments_lexers import IPython3Lexer  # by its name it is looked for among all packages

        return IPython3Lexer()
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language)
    except ClassNotFound:
        return None


@functools.cache
def _formatter() -> HtmlFormatter[str]:
    from pygments.formatters.html import HtmlFormatter

    return HtmlFormatter(nowrap=True)  # it makes a style sheet, which takes as long as a cell's words


@functools.cache
def _classes() -> frozenset[str]:
    from pygments.token import STANDARD_TYPES

    return frozenset({"highlight", *filter(None, STANDARD_TYPES.values())})
