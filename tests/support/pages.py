"""What a page holds, read as a browser reads it."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from runner.report import clean


class Page(HTMLParser):
    """Elements and attributes of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def inert(page: Page) -> None:
    """Nothing in the page can run, load or send anything."""
    forbidden = {"script", "iframe", "object", "embed", "form", "input", "base", "link", "frame"}
    assert not forbidden & {tag for tag, _ in page.tags}
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        if tag == "img":
            assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        if tag == "a" and "href" in attributes:
            assert not str(attributes["href"]).strip().lower().startswith(("javascript:", "data:", "vbscript:"))
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [clean.POLICY]
    assert not [a for a in page.all("meta") if str(a.get("http-equiv")).lower() == "refresh"]
