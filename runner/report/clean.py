"""What may stand in a page: everything that comes from a notebook passes through here.

Notebooks hold whatever their cells printed, also customer data; a stored report must not execute any of it, fetch
anything for it, or let it look like the page's own text.
"""

from __future__ import annotations

import base64
import functools
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nh3

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl",
    "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "s", "small",
    "span",
    "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul",
}  # fmt: skip
WITH_CONTENT = {"iframe", "noscript", "object", "script", "style", "template", "title"}  # dropped whole
ATTRIBUTES = {
    "*": {"hidden"},  # as scikit-learn hides what its own style sheet would show
    "a": {"href"},
    "abbr": {"title"},
    "img": {"alt", "src", "title"},
    "ol": {"start"},
    "td": {"colspan", "rowspan", "style"},
    "th": {"colspan", "rowspan", "scope", "style"},
}
SCHEMES = {"http", "https", "mailto"}
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")
MOST_CHARACTERS = 1_000_000  # of one output's markup; the page says what it left out
LONGEST_ADDRESS = 2000  # of a link: its element may be opened again in every block that follows it
# A parser of HTML, ammonia's html5ever too, takes time and memory by the product of elements and their depth. Markup
# of up to so many characters and so large a product is cleaned here, all else in a process that ends if it takes long.
SMALL, WORK = 100_000, 1_000_000
LIMIT_S, LIMIT_BYTES = 3, 2 << 30  # of processor time; several times that on the clock, where others take turns
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=]{200,}")
_PLACEHOLDER = "data:image/held,"
_FLAT = {"td", "th", "tr", "br", "li", "p", "dd", "dt", "img", "hr", "col", "option"}  # these end one another
_OPENED = re.compile(r"<([a-zA-Z]+)")
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0]+")
_SCHEME = re.compile(r"([^/?#]*?):")
_ANSI = re.compile(r"\x1b\[[0-9;:?<=>]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\^_]")


class TooMuch(Exception):
    """The markup is more than a page can take; the message is the sentence that stands in its place."""


def html(markup: str, *, classes: frozenset[str] = frozenset()) -> tuple[str, str]:
    """Markup with only harmless elements, attributes and addresses left, and a sentence about what was cut off, or "".

    Of classes, those on span and pre stay. Takes a few seconds at most. Raises TooMuch.
    """
    pictures: list[str] = []

    def take_out(match: re.Match[str]) -> str:
        pictures.append(match[0])
        return f"{_PLACEHOLDER}{len(pictures) - 1}"

    def put_back(match: re.Match[str]) -> str:
        number = int(match[1])
        if number >= len(pictures):
            return ""
        picture, pictures[number] = pictures[number], ""  # once: a repeated placeholder must not multiply its bytes
        return picture

    # pictures are most of a long output's bytes, and a parser need not read them
    kept, note = _cut(_PICTURE.sub(take_out, markup))
    small = len(kept) <= SMALL and _work(kept) <= WORK
    cleaned = _cleaner(classes).clean(kept) if small else _cleaned_apart(kept)
    return re.sub(rf'(?<=src="){_PLACEHOLDER}(\d{{1,9}})(?=")', put_back, cleaned), note


def image(mime: str, data: Any) -> str | None:
    """A `data:` address for an image output, None for other data. An SVG as an image runs no scripts."""
    text = joined(data)
    if mime not in IMAGES or not text.strip():
        return None
    if mime == "image/svg+xml":
        return f"data:{mime};base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"
    packed = re.sub(r"\s+", "", text)
    return f"data:{mime};base64,{packed}" if re.fullmatch(r"[A-Za-z0-9+/=]*", packed) else None


def pixels(value: Any) -> int | None:
    """A size from an output's metadata; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10_000 else None


def plain(text: Any) -> str:
    """Text without the control sequences that colour a terminal."""
    return _ANSI.sub("", joined(text)).replace("\r\n", "\n").replace("\r", "\n")


def joined(value: Any) -> str:
    """A notebook's text, which may be stored line by line; "" for anything else."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _cut(markup: str) -> tuple[str, str]:
    """As much of the markup as a page takes, and what to say of the rest."""
    if len(markup) <= MOST_CHARACTERS:
        return markup, ""
    kept = markup[:MOST_CHARACTERS].rpartition(">")[0] + ">"
    return kept, f"The first {len(kept):,} of {len(markup):,} characters of this output are shown."


def _work(markup: str) -> int:
    """A limit of the steps that the elements in the markup take, also if none of them is ever closed."""
    names = _OPENED.findall(markup)
    deep = sum(name.lower() not in _FLAT for name in names)
    links = LONGEST_ADDRESS // 8 if any(name in ("a", "A") for name in names) else 0
    return len(names) * (deep + links)


def _cleaned_apart(markup: str) -> str:
    """As `html`, in a process with limits of its own."""
    command, content = [sys.executable, "-P", "-m", "runner.report.clean"], markup.encode("utf-8", "replace")
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=5 * LIMIT_S, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        raise TooMuch(f"This output of {len(markup):,} characters would take too long to lay out.") from error
    return done.stdout.decode()


def _main() -> None:
    """Clean standard input to standard output, within the limits."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    except (ImportError, ValueError, OSError):  # no such limits on this system; the parent has a time limit
        pass
    cleaned = _cleaner(frozenset()).clean(sys.stdin.buffer.read().decode())
    if len(cleaned) > 4 * MOST_CHARACTERS:
        sys.exit(1)
    sys.stdout.buffer.write(cleaned.encode())


@functools.cache
def _cleaner(classes: frozenset[str]) -> nh3.Cleaner:
    import nh3

    return nh3.Cleaner(
        tags=TAGS,
        clean_content_tags=WITH_CONTENT,
        attributes=ATTRIBUTES,
        attribute_filter=_attribute,
        url_schemes={*SCHEMES, "data"},
        # what may scroll can be reached by keys; the tables of an output lie in an element that can
        set_tag_attribute_values={name: {"tabindex": "0"} for name in (("pre", "table") if classes else ("pre",))},
        allowed_classes={"span": set(classes), "pre": set(classes)} if classes else {},
        filter_style_properties={"text-align"},
    )


def _attribute(_: str, name: str, value: str) -> str | None:
    """The attribute's value, or None where it must be removed; read as a browser reads it."""
    if name == "src":
        return value if value.startswith("data:image/") else None
    if name == "href":
        scheme = _SCHEME.match(_UNSEEN.sub("", value))
        known = scheme is None or scheme[1].lower() in SCHEMES
        return value if known and len(value) <= LONGEST_ADDRESS else None
    return value[:LONGEST_ADDRESS]


if __name__ == "__main__":
    _main()
