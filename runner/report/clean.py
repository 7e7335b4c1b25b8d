"""What may stand in a page: everything that comes from a notebook passes through here.

Notebooks hold whatever their cells printed, customer data among it; a stored report must not run any of it.
"""

from __future__ import annotations

import base64
import re
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt",
    "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "s", "small", "span",
    "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul",
}  # fmt: skip
ATTRIBUTES: dict[str, list[str]] = {
    "*": ["class", "title"],
    "a": ["href", "title"],
    "img": ["src", "alt", "title"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan", "scope"],
    "ol": ["start"],
}
PROTOCOLS = {"http", "https", "mailto", "data"}
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")
_DROPPED = re.compile(r"<(style|script|template|noscript|iframe|object)\b.*?</\1\s*>", re.I | re.S)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]")


def html(markup: str) -> str:
    """Markup with only harmless elements, attributes and addresses left."""
    import bleach  # nbconvert's own sanitizer

    cleaned: str = bleach.clean(
        _DROPPED.sub("", markup), tags=TAGS, attributes=_attribute, protocols=PROTOCOLS, strip=True, strip_comments=True
    )
    return cleaned


def image(mime: str, data: Any) -> str | None:
    """A `data:` address for an image output, or None where it is none. An SVG as an image runs no scripts."""
    if mime not in IMAGES:
        return None
    text = data if isinstance(data, str) else "".join(data)
    if mime == "image/svg+xml":
        return f"data:{mime};base64,{base64.b64encode(text.encode()).decode()}"
    packed = re.sub(r"\s+", "", text)
    return f"data:{mime};base64,{packed}" if re.fullmatch(r"[A-Za-z0-9+/=]*", packed) else None


def pixels(value: Any) -> int | None:
    """A size from an output's metadata, if it is one: nbconvert would write any text there, unquoted."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10_000 else None


def plain(text: Any) -> str:
    """Text without the control sequences that colour a terminal."""
    return _ANSI.sub("", text if isinstance(text, str) else "".join(text))


def _attribute(tag: str, name: str, value: str) -> bool:
    if name not in ATTRIBUTES.get(tag, []) and name not in ATTRIBUTES["*"]:
        return False
    if tag == "img" and name == "src":
        return value.startswith("data:image/")
    return not (tag == "a" and name == "href" and value.strip().lower().startswith("data:"))
