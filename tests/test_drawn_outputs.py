"""Outputs drawn at random, each trying to run, fetch or lie about something, through the pages and Markdown in a browser."""

from __future__ import annotations

import base64
import http.server
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.browser import Browser, browser
from support.projects import Project, notebook, text

from runner import escape
from runner.manifest import RunManifest
from runner.records import read
from runner.report.notebook import write_notebook_page
from runner.report.page import write_report
from runner.report.pull_request import fence, table

OWN = "document.title='owned';window.owned=1"
TAGS = (
    "a", "b", "div", "span", "p", "table", "td", "svg", "math", "style", "script", "iframe", "object", "embed", "img",
    "video", "audio", "source", "form", "input", "button", "select", "textarea", "template", "noscript", "title", "base",
    "meta", "link", "details", "section", "h1", "pre", "mtext", "mglyph", "foreignObject", "annotation-xml", "use", "image",
    "animate", "set", "marquee", "frameset", "plaintext", "xmp", "noembed", "dialog", "portal", "slot", "custom-tag", "isindex",
)  # fmt: skip
SCHEMES = (
    "javascript:{own}", "JaVaScRiPt:{own}", "java\tscript:{own}", "&#106;avascript:{own}", "&#x6a;avascript&colon;{own}",
    " \x01javascript:{own}", "data:text/html,<script>parent.{own}</script>", "da\nta:text/html;base64,PHNjcmlwdD4=",
    "data:image/svg+xml,<svg onload='{own}'/>", "vbscript:x", "file:///etc/passwd", "{at}", "//{host}/x", "{at}#javascript:",
    "blob:{at}", "attachment:a.png", "attachment:../../x", "data:image/png;base64,iVBORw0KGgo=", "data:image/held,0", "#cell-1",
)  # fmt: skip
EVENTS = (
    "onerror",
    "onload",
    "onclick",
    "onmouseover",
    "onfocus",
    "onbegin",
    "ontoggle",
    "onanimationstart",
    "OnErRoR",
    "on error",
)
ADDRESSED = (
    "href",
    "src",
    "xlink:href",
    "srcset",
    "data",
    "action",
    "formaction",
    "poster",
    "background",
    "content",
    "ping",
    "srcdoc",
)
LOOKS = (
    'class="verdict good"', "class='word pass cell failed'", 'id="cell-1"', 'id="failure"', 'title="x"', 'dir="rtl"', "hidden",
    'style="position:fixed;top:0;left:0;width:100vw;height:100vh;background:url({at})"', 'style="margin:-500px;float:left"',
    'style="text-align:right;position:absolute"', "autofocus", 'contenteditable tabindex="1"', 'slot="x" is="y"', 'colspan="999"',
    'http-equiv="refresh" content="0;url={at}"', 'rel="stylesheet" href="{at}"', 'target="_top"', 'width="99999" height="99999"',
)  # fmt: skip
RAW = (
    "<style>@import '{at}';body{{display:none}}</style>", "<!--><img src={at}>-->", "<![CDATA[<img src={at}>]]>", "<?x <img src={at}>?>",
    "</div></div></body></html><script>{own}</script>", "</pre></code><img src={at} onerror={own}>", "<svg><style><img src={at}></style>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src={at} onerror={own}&gt;'>", "<noscript><p title='</noscript><img src={at}>'>",
    "<form><math><mtext></form><form><mglyph><style></math><img src={at} onerror={own}>", "<table><a href='javascript:{own}'><tr><td>x",
    "<svg></p><style><a id='</style><img src={at} onerror={own}>'>", "<a href='{at}' ping='{at}'>x</a>", "\u202egnp.exe\u2066", "\x00<\x00img src={at}>",
    "<div>" * 60, "<b>" * 40, "<table>" * 30, "&lt;script&gt;{own}&lt;/script&gt;", "%3Cscript%3E{own}%3C/script%3E", "{{{{7*7}}}}{{% raw %}}",
    "<h1>Passed: 9 of 9 judged rules hold.</h1>", "<img src=x srcset='{at} 2x'>", "<svg><use href='{at}#x'/></svg>", "<input type=image src={at}>",
)  # fmt: skip
PROSE = (
    "[x](javascript:{own})", "![x]({at})", "![x][r]\n\n[r]: {at}", "<javascript:{own}>", "[x]: data:text/html,y\n[x]", "`<img src={at}>`", "| a |\n| - |\n| <img src={at}> |",
    "```html\n<script>{own}</script>\n```", "$\\href{{javascript:{own}}}{{x}}$", "![a](attachment:a.png)", '![a](attachment:a.png"onerror="{own})', "<img src='attachment:a.png' onerror='{own}'>",
    "[a](<javascript:{own}>)", "[![x]({at})](javascript:{own})", "# <img src={at}>", "> <iframe src={at}>", "&#106;avascript:{own}", "```x\" onload=\"{own}\n1\n```", "@octocat #1 www.evil.example",
)  # fmt: skip
KINDS = ("text/html", "text/markdown", "image/svg+xml", "text/latex", "application/json", "application/javascript", "text/plain",
         "image/png", "application/vnd.x+json", "application/x-\"><script>", "prose", "stream", "error")  # fmt: skip


class Draw:
    """Draws outputs and cells by a seed; `at` is where a page that fetched something would be seen."""

    def __init__(self, seed: int, host: str) -> None:
        self.random = random.Random(seed)
        self.host = host
        self.count = 0

    def filled(self, piece: str) -> str:
        self.count += 1
        return piece.format(own=OWN, at=f"http://{self.host}/{self.count}", host=self.host)

    def markup(self, pieces: tuple[str, ...] = RAW) -> str:
        """A few elements and pieces, one in another, some cut off or of mixed case."""
        made = ""
        for _ in range(self.random.randint(1, 4)):
            piece = self.filled(self.random.choice(pieces)) if self.random.random() < 0.5 else self.element()
            made = self.random.choice((made + piece, piece + made, f"<{self.random.choice(TAGS)}>{made}{piece}"))
        if self.random.random() < 0.2:
            made = made[: self.random.randrange(len(made) + 1)]
        return made

    def element(self) -> str:
        tag = self.random.choice(TAGS)
        tag = tag.upper() if self.random.random() < 0.2 else tag
        given = [self.attribute() for _ in range(self.random.randint(0, 4))]
        gap = self.random.choice((" ", "/", "\n", "\t", "\x0c"))
        end = self.random.choice(("", f"</{tag}>", "x", f"{OWN}</{tag}>"))
        return f"<{tag}{gap}{gap.join(given)}{self.random.choice(('>', '/>', '', ' >'))}{end}"

    def attribute(self) -> str:
        quote = self.random.choice(('"', "'", ""))
        match self.random.randrange(3):
            case 0:
                return f"{self.random.choice(EVENTS)}={quote}{OWN}{quote}"
            case 1:
                return f"{self.random.choice(ADDRESSED)}={quote}{self.filled(self.random.choice(SCHEMES))}{quote}"
            case _:
                return self.filled(self.random.choice(LOOKS))

    def cell(self, number: int) -> dict[str, Any]:
        """A cell as an executed notebook has it: code with one output, or Markdown with an attachment."""
        kind = self.random.choice(KINDS)
        said = self.markup(PROSE) if kind in ("prose", "text/markdown") else self.markup()
        if kind == "prose":
            picture = {"image/png": self.random.choice(("iVBORw0KGgo=", said, 7)), "image/svg+xml": said}
            return {
                "cell_type": "markdown",
                "metadata": {},
                "source": said,
                "attachments": {"a.png": picture, said: said},
            }
        metadata = {
            self.random.choice(("image/png", "image/svg+xml", said)): {"alt": said, "width": said, "caption": said}
        }
        output: dict[str, Any] = {"output_type": "display_data", "metadata": metadata}
        match kind:
            case "stream":
                output = {"output_type": "stream", "name": said, "text": [said]}
            case "error":
                output = {
                    "output_type": "error",
                    "ename": said,
                    "evalue": said,
                    "traceback": [said, f"\x1b]0;{said}\x07"],
                }
            case "image/svg+xml":
                output["data"] = {kind: f"<svg xmlns='http://www.w3.org/2000/svg' onload=\"{OWN}\">{said}</svg>"}
            case "image/png":
                output["data"] = {
                    kind: self.random.choice((said, base64.b64encode(said.encode()).decode(), 5, None, [1]))
                }
            case _:
                data = self.random.choice((said, [said, said], {"x": said})) if kind.endswith("json") else said
                output["data"] = {kind: data}
        tags = self.random.choice(([], [said], ["parameters"], "x"))
        return {
            "cell_type": "code", "id": said[:64], "execution_count": number, "metadata": {"tags": tags, "papermill": said},
            "source": f"{number}  # {said}" if self.random.random() < 0.3 else str(number), "outputs": [output],
        }  # fmt: skip


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """(host and port, the paths asked for) of a server that nothing ought to ask."""
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_HEAD = do_OPTIONS = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """A test's server is quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, whose executed notebook is then another."""
    project = Project(tmp_path_factory.mktemp("drawn"))
    project.write("nb.ipynb", text("# Drawn"), "1")
    project.toml('name = "drawn"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    assert project.runner("run").code == 0
    return project.runs[-1]


def page_of(run: Path, cells: list[dict[str, Any]]) -> Path:
    """The page of an executed notebook with these cells; the run's report is written too."""
    executed = run / "steps" / "only" / "executed.ipynb"
    executed.unlink()
    executed.write_text(json.dumps(notebook() | {"cells": cells}))
    manifest = read(RunManifest, run / "run.json")
    write_report(run)
    return write_notebook_page(executed.parent, manifest=manifest, state=manifest.steps[0])


SEEN = """(() => {
  const inside = [...document.querySelectorAll('.output > *, .text > *')].flatMap(part => [...part.querySelectorAll('*')]);
  const named = inside.filter(node => node.closest('.wide, .prose') && (node.id || (node.className &&
    !(node.closest('.prose') && /^(highlight|[a-z0-9]{1,3})( [a-z0-9]{1,3})*$/.test(node.className)))));
  const moved = inside.filter(node => {
    const style = getComputedStyle(node);
    return style.position !== 'static' || style.float !== 'none' || style.transform !== 'none' || style.zIndex !== 'auto';
  });
  const places = [...document.body.children, ...document.querySelector('body > main').children];
  const own = places.filter(node => !node.matches('body > header, body > main, .cell, .text, section.verdict'));
  const wild = inside.filter(node => [...node.attributes].some(a => a.name.startsWith('on') ||
    (a.name === 'style' && !/^text-align: ?[a-z]+;?$/.test(a.value)) || (a.name === 'src' && !a.value.startsWith('data:image/'))));
  return {
    title: document.title, owned: window.owned ?? null, cells: document.querySelectorAll('body > main > .cell').length,
    prose: document.querySelectorAll('body > main > .text').length, named: named.map(node => node.outerHTML.slice(0, 200)),
    moved: moved.map(node => node.outerHTML.slice(0, 200)), wild: wild.map(node => node.outerHTML.slice(0, 200)),
    own: own.map(node => node.outerHTML.slice(0, 200)), wide: document.documentElement.scrollWidth - innerWidth,
    bad: document.querySelectorAll('script, iframe, object, embed, form, input, link, base, frame, video, audio').length,
    styles: document.querySelectorAll('style').length,
  };
})()"""


def harmless(chromium: Browser, path: Path, *, cells: int, prose: int, width: int) -> None:
    """Nothing of the page ran, asked for anything, took the page's own looks, or lies outside its place."""
    chromium.open(path.as_uri(), width=width)
    seen = chromium.value(SEEN)
    assert seen["title"].startswith("only")
    assert (seen["owned"], seen["bad"], seen["styles"]) == (None, 0, 1)
    assert (seen["named"], seen["moved"], seen["wild"], seen["own"]) == ([], [], [], [])
    assert (seen["cells"], seen["prose"]) == (cells, prose)
    assert seen["wide"] <= 0
    assert [address for address in chromium.requests if not address.startswith(("data:", path.as_uri()))] == []


def markdown_of(draw: Draw, count: int) -> str:
    """Drawn text in every place where Markdown of ours has text from elsewhere."""
    lines: list[str] = []
    for number in range(count):
        said = draw.markup((*RAW, *PROSE))
        lines += [f"## {escape.code(said)}", "", f"**{escape.markdown(said)}**", ""]
        lines += [table([escape.code(said), escape.markdown(said)], [[escape.markdown(said), escape.code(said)]]), ""]
        lines += [fence(said.splitlines(), language=said if number % 2 else "python"), ""]
    return "\n".join(lines)


def rendered(markdown: str) -> str:
    """As GitHub lays it out, with none of the cleaning that it does afterwards."""
    from markdown_it import MarkdownIt

    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def look_at(seeds: range, each: int, run: Path, folder: Path) -> None:
    with listening() as (host, asked), browser(folder / "profile") as chromium:
        for seed in seeds:
            draw = Draw(seed, host)
            cells = [draw.cell(number) for number in range(1, each + 1)]
            path = page_of(run, cells)
            code = sum(cell["cell_type"] == "code" for cell in cells)
            harmless(chromium, path, cells=code, prose=each - code, width=1280 if seed % 2 else 400)
            page = folder / "markdown.html"
            page.write_text(
                f"<title>only</title>{rendered(markdown_of(draw, each))}", encoding="utf-8", errors="replace"
            )
            chromium.open(page.as_uri())
            tags = chromium.value(
                "[...new Set([...document.body.querySelectorAll('*')].map(node => node.tagName))].sort()"
            )
            assert set(tags) <= {"HR", "H2", "P", "STRONG", "CODE", "PRE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"}
            assert chromium.value("[document.title, window.owned ?? null]") == ["only", None]
            plain = chromium.value(
                "document.querySelectorAll('code, pre').forEach(node => node.remove()), document.body.textContent"
            )
            assert not re.search(r"@\w|://|www\.|#\d", plain)
            assert [address for address in chromium.requests if address != page.as_uri()] == []
        assert asked == []


@pytest.mark.soak  # test_report.py has a hostile notebook in a browser
def test_no_drawn_output_runs_fetches_or_leaves_its_place(run: Path, tmp_path: Path) -> None:
    look_at(range(1), 200, run, tmp_path)


@pytest.mark.soak
def test_five_thousand_drawn_outputs_run_fetch_and_move_nothing(run: Path, tmp_path: Path) -> None:
    look_at(range(1, 26), 200, run, tmp_path)
