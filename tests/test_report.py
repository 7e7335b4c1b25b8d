"""The report says what happened, first things first, and nothing in a notebook can make it do anything."""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.browser import browser
from support.commands import Done
from support.pages import Page, inert
from support.projects import PAGES, Project, code, notebook, parameters, text

from runner.manifest import RunManifest
from runner.records import read
from runner.report import clean, files
from runner.report.notebook import write_notebook_page
from runner.report.page import write_report

HOSTILE = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<a href=\"javascript:document.title='owned'\">x</a>",
    "<iframe src=\"data:text/html,<script>parent.document.title='owned'</script>\"></iframe>",
    "<svg onload=\"document.title='owned'\"></svg>",
    "<style>body{display:none}</style>",
    '<form action="https://example.org"><input></form>',
    '<meta http-equiv=refresh content="0;url=https://example.org">',
    '<object data="x"></object><embed src="x"><base href="https://example.org">',
]


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run with figures, tables and a gate with all kinds of rules."""
    project = Project(tmp_path_factory.mktemp("report"))
    project.write(
        "nb.ipynb",
        text("# A heading\n\nSome *prose* with <b>markup</b>."),
        parameters("depth: int = 5  # levels"),
        "import matplotlib.pyplot as plt, pandas as pd\nfrom runner.scraps import figure, metric, table",
        "fig, axes = plt.subplots()\naxes.plot([1, 2])\nfigure('curve', fig, alt='A line that rises from 1 to 2', caption='Rising.')",
        "table('slices', pd.DataFrame({'slice': ['a', 'b'], 'rows': [10, 20]}), caption='By slice')",
        "metric('auc', 0.91, low=0.88, high=0.94, better='higher')\nmetric('rmse', 2.0)",
    )
    project.toml(
        'name = "page"\n[steps.fit]\nnotebook = "nb.ipynb"\n'
        '[[gate]]\nmetric = "fit.auc"\nmin = 0.85\nconfident = true\n[[gate]]\nmetric = "fit.rmse"\nmax = 2.0\n'
    )
    done = project.runner("run", "-m", "a <note>", "--tag", "t&1", env=PAGES)
    assert done.code == 0, done.err
    return project


def test_the_verdict_in_words_comes_first_then_every_rule(passed: Project) -> None:
    page = Page(passed.runs[-1] / "report.html")
    assert page.text.index("Passed: 2 of 2 judged rules hold") < page.text.index("The gate, rule by rule")
    for said in (
        "fit.auc >= 0.85 confidently",
        "0.88 to 0.94",
        "threshold 0.85",
        "margin 0.03",
        "exactly the allowed maximum",
    ):
        assert said in page.text
    assert "a <note>" in page.text
    assert "#t&1" in page.text
    inert(page)


def test_figures_carry_their_alt_text_and_tables_their_numbers(passed: Project) -> None:
    page = Page(passed.runs[-1] / "report.html")
    assert [image["alt"] for image in page.all("img")] == ["A line that rises from 1 to 2"]
    assert "By slice" in page.text
    assert "Rising." in page.text
    executed = Page(passed.runs[-1] / "steps" / "fit" / "executed.html")
    assert "A line that rises from 1 to 2" in [image["alt"] for image in executed.all("img")]
    assert [tag for tag, _ in executed.tags].count("h1") == 1  # a markdown heading is a heading
    assert "application/scrapbook" not in executed.text
    assert {attributes.get("id") for attributes in executed.all("div")} >= {"cell-1", "cell-5"}
    inert(executed)


def test_every_link_of_the_report_leads_to_a_file(passed: Project) -> None:
    folder = passed.runs[-1]
    links = [str(a["href"]) for a in Page(folder / "report.html").all("a")]
    assert links
    assert all((folder / link.partition("#")[0]).exists() for link in links)


def test_a_failed_run_opens_at_the_failing_cell(project: Project) -> None:
    project.write("nb.ipynb", "a = 1", "table = {}\ntable['<region>']", "never = 1")
    project.toml('name = "page"\n[steps.fit]\nnotebook = "nb.ipynb"\n')
    assert project.runner("run", env=PAGES).code == 3
    page = Page(project.runs[-1] / "report.html")
    assert page.text.index("Failed: fit stopped at cell [2]. KeyError: '<region>'") < page.text.index("Steps")
    assert page.text.index("table['<region>']") < page.text.index("Steps")
    assert "steps/fit/executed.html#cell-2" in [a.get("href") for a in page.all("a")]
    executed = Page(project.runs[-1] / "steps" / "fit" / "executed.html")
    failed = [a for a in executed.all("div") if "failed" in str(a.get("class")).split()]
    assert [a["id"] for a in failed] == ["cell-2"]
    assert "not run" in executed.text
    inert(page)
    inert(executed)


@pytest.fixture
def hostile(project: Project) -> Path:
    """A run whose notebook, parameters, error and metadata try everything; executed for real, then tampered with."""
    bad = "".join(HOSTILE)
    project.write(
        "nb.ipynb",
        text(bad + "\n\n[x](javascript:alert(1))"),
        parameters(f"x: str = {bad!r}"),
        f"from IPython.display import HTML, Markdown, display\nbad = {bad!r}\ndisplay(HTML(bad), Markdown(bad))\nprint(bad)",
        code("raise ValueError(bad)"),
    )
    project.toml(f'name = "page"\n[steps.fit]\nnotebook = "nb.ipynb"\nparameters = {{ x = {json.dumps(bad)} }}\n')
    assert project.runner("run", "-m", bad, env=PAGES).code == 3
    folder = project.runs[-1]
    executed = folder / "steps" / "fit" / "executed.ipynb"
    document = json.loads(executed.read_text())
    sizes = {
        "width": '1" onload="document.title=1',
        "height": "1 onload=document.title=1",
        "alt": '"><script>1</script>',
    }
    svg = "<svg xmlns='http://www.w3.org/2000/svg' onload=\"document.title='owned'\"><script>1</script></svg>"
    cell = notebook("1")["cells"][0]
    cell["id"] = "last"
    cell["outputs"] = [
        {"output_type": "display_data", "data": {"image/png": 'iVBOR" onerror="x'}, "metadata": {}},
        {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {"image/png": sizes}},
        {
            "output_type": "display_data",
            "data": {"image/svg+xml": svg},
            "metadata": {"scrapbook": {"name": "s", "display": True}},
        },
        {"output_type": "display_data", "data": {"application/javascript": "document.title='owned'"}, "metadata": {}},
        {"output_type": "stream", "name": 'stdout"><script>1</script>', "text": "</pre><script>1</script>"},
    ]
    document["cells"].append(cell)
    document["metadata"]["title"] = bad
    document["metadata"]["language_info"] = {"name": f'x" onclick="1">{bad}'}
    executed.chmod(0o644)
    executed.unlink()
    executed.write_text(json.dumps(document))
    manifest = read(RunManifest, folder / "run.json")
    write_notebook_page(folder / "steps" / "fit", manifest=manifest, state=manifest.steps[0])
    write_report(folder)
    return folder


def test_nothing_hostile_in_a_notebook_survives_into_its_pages(hostile: Path) -> None:
    for path in (hostile / "report.html", hostile / "steps" / "fit" / "executed.html"):
        page = Page(path)
        inert(page)
        sizes = [image.get("width") for image in page.all("img")] + [image.get("height") for image in page.all("img")]
        assert all(value is None or value.isdecimal() for value in sizes)


def test_a_browser_runs_nothing_of_a_hostile_notebook(hostile: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as chromium:
        for path in (hostile / "report.html", hostile / "steps" / "fit" / "executed.html"):
            chromium.open(path.as_uri())
            assert chromium.value("document.title") != "owned"
            assert chromium.value("document.querySelectorAll('h1').length") >= 1
            assert [a for a in chromium.requests if not a.startswith(("data:", path.as_uri()))] == []


def test_a_run_in_any_state_has_a_report(passed: Project, tmp_path: Path) -> None:
    shutil.copytree(passed.runs[-1], tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    for status, said in (("running", "still going on"), ("interrupted", "stopped before its end")):
        manifest["status"] = status
        manifest["steps"][0] |= {"result": None, "job": None, "status": None}
        (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
        assert said in Page(write_report(tmp_path / "run")).text


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("fail", "Not passed"),
        ("inconclusive", "Inconclusive: not enough test rows to judge "),
        ("error", "No verdict could be given"),
    ],
)
def test_each_verdict_is_told_in_words(passed: Project, tmp_path: Path, outcome: str, said: str) -> None:
    shutil.copytree(passed.runs[-1], tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    manifest["verdict"]["outcome"] = outcome
    manifest["verdict"]["rules"][0]["outcome"] = outcome
    (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
    assert said in Page(write_report(tmp_path / "run")).text


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
DISPLAYED = {  # what a cell displays, and what the page says of it
    "{'text/plain': 5}": "<pre class=\"result\" tabindex=\"0\">5</pre>",
    "{'text/html': None, 'text/plain': 'left'}": "left",
    "{'text/html': ['<b>a</b>', 'b', 3]}": '["<b>a</b>", "b", 3]',
    "{'image/png': 5, 'text/plain': 'a number'}": "a number",
    "{'image/png': {'a': 1}}": "Not shown: image/png",
    "{'text/plain': 'p', 'application/x': {'k': 1}}": "<pre class=\"result\" tabindex=\"0\">p</pre>",
    "{'application/json': deep(99)}": "]\n  ]\n ]\n]",
    "{'application/json': deep(900)}": "[not kept: an output of more than 100 lists or tables in one another]",
    "{'text/plain': 'meta'}, metadata={'deep': deep(900)}": "more than 100 lists",
    "{'text/plain': 'odd'}, metadata={'scrapbook': 5, 'image/png': 3}": "odd",
    "{'application/json': {'a': [1, 'x']}}": "&#34;x&#34;",
    "{'text/latex': '$x^2$', 'text/plain': '<IPython.core.display.Latex object>'}": "$x^2$",
    "{'application/javascript': 'alert(1)'}": "Not shown: application/javascript",
    "{'text/html': '<div id=x></div><script>draw(x)</script>'}": "shown by JavaScript",
    "{'text/html': '<div><style>b {}</style></div>'}": "This output has no text and no picture",
    "{'application/vnd.x+json': 10**400}": "Not shown: application/vnd.x+json",
    "{'image/svg+xml': '<svg xmlns=\"http://www.w3.org/2000/svg\"/>'}": "data:image/svg+xml;base64,",
    "{'application/scrapbook.scrap.json+json': {'name': 't.table', 'data': {'columns': ['a'], 'rows': [5, [1, 2], [10**400]]}}}": "",
}  # fmt: skip


@pytest.mark.parametrize("kernel", ["forked", "standard"])
def test_whatever_a_cell_displays_its_notebook_is_valid_and_there_is_a_report(
    one_step: Callable[..., Done], project: Project, kernel: str
) -> None:
    done = one_step(
        "from IPython.display import display\ndef deep(levels):\n    x = 1\n    for _ in range(levels): x = [x]\n    return x",
        *(f"display({given}, raw=True)" for given in DISPLAYED),
        "class Odd:\n    def _repr_mimebundle_(self, **_): return {'text/plain': 'p', 'application/x': {'k': 1}}\nOdd()",
        arguments=("--kernel", kernel),
    )
    assert done.code == 0, done.err
    assert project.runner("report", "latest").code == 0
    executed = project.runs[-1] / "steps" / "only" / "executed.ipynb"
    nbformat.validate(nbformat.read(executed, as_version=4))
    parts = (executed.parent / "executed.html").read_text().split('<div class="cell"')[-len(DISPLAYED) - 1 :]
    for (given, said), part in zip(DISPLAYED.items(), parts, strict=False):
        assert said in part, given
    assert "(401 digits)" in (project.runs[-1] / "report.html").read_text()


def page_of(run: Path, cells: list[Any], step: str = "fit", **metadata: Any) -> str:
    """The page of an executed notebook with these cells, in a copy of the run."""
    executed = run / "steps" / step / "executed.ipynb"
    executed.unlink()
    executed.write_text(json.dumps({**notebook(), "cells": cells, "metadata": metadata}))
    manifest = read(RunManifest, run / "run.json")
    write_report(run)
    return write_notebook_page(executed.parent, manifest=manifest, state=manifest.steps[0]).read_text()


def shown(*bundles: dict[str, Any]) -> dict[str, Any]:
    outputs = [{"output_type": "display_data", "data": bundle, "metadata": {}} for bundle in bundles]
    return {"cell_type": "code", "metadata": {}, "source": "shown", "execution_count": 1, "outputs": outputs}


def prose(source: str, **attachments: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source, "attachments": attachments}


@pytest.fixture
def copied(passed: Project, tmp_path: Path) -> Path:
    shutil.copytree(passed.runs[-1], tmp_path / "run")
    return tmp_path / "run"


def test_a_picture_pasted_into_a_markdown_cell_is_shown(copied: Path) -> None:
    picture = {"image/png": PIXEL}
    made = page_of(
        copied,
        [
            prose("A pasted one: ![seen](attachment:image.png)", **{"image.png": picture}),
            prose("![spaced](attachment:two%20words.png) <img src='attachment:two words.png'>", **{"two words.png": picture}),
            prose("![gone](attachment:gone.png)"),
            prose("![odd](attachment:odd.png)", **{"odd.png": 7}),
            prose("![drawn](attachment:d.svg)", **{"d.svg": {"image/svg+xml": ["<svg xmlns='http://www.w3.org/2000/svg'/>"]}}),
            prose("no source", **{"image.png": {"image/png": "not base64!"}}),
        ],
    )  # fmt: skip
    assert made.count(f'src="data:image/png;base64,{PIXEL}"') == 3
    assert 'src="data:image/svg+xml;base64,' in made
    assert made.count("is missing") == 2
    assert "attachment gone.png is missing" in made


@pytest.mark.soak
def test_every_notebook_that_installed_packages_test_themselves_with_has_a_page(copied: Path) -> None:
    found = sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.ipynb"))
    assert len(found) > 50  # papermill's, scrapbook's, nbdime's
    manifest = read(RunManifest, copied / "run.json")
    folder = copied / "steps" / "fit"
    for path in found:
        (folder / "executed.ipynb").unlink()
        shutil.copyfile(path, folder / "executed.ipynb")
        made = write_notebook_page(folder, manifest=manifest, state=manifest.steps[0]).read_text()
        assert "cannot be shown" not in made or not json.loads(path.read_bytes() or b"0"), path
        assert write_report(copied).exists()


# the kinds of notebooks that nbformat, nbconvert and nbclient test themselves with
@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], ""),
        ([{"cell_type": "raw", "metadata": {"raw_mimetype": "text/html"}, "source": "<script>1</script>"}], ""),
        ([{"cell_type": "unknown", "source": "x"}], ""),
        ([{"cell_type": "code"}], "[ ]"),
        ([{"cell_type": "code", "source": None, "metadata": None, "outputs": None}], "[ ]"),
        ([None, 5, "x", []], ""),
        ([{"cell_type": "code", "source": ["a = 1\n", "b"], "outputs": [None]}], "This cannot be shown"),
        ([{"cell_type": "code", "source": "x", "outputs": [{"output_type": "nothing"}]}], "[1]"),
        ([{"cell_type": "code", "source": "x", "outputs": [{"output_type": "error", "traceback": None}]}], "None: None"),
        ([{"cell_type": "code", "source": "x", "outputs": [{"output_type": "error", "ename": "E", "evalue": "v", "traceback": [1]}]}], "E: v"),
        ([{"cell_type": "code", "source": "x", "outputs": [{"output_type": "stream", "name": 1, "text": [1, "kept"]}]}], "kept"),
        ([{"cell_type": "code", "source": "x", "outputs": [{"output_type": "stream", "text": "50%\r100%\x1b[32m!\x1b[0m\x07"}]}], "50%\n100%!\\x07"),
        ([{"cell_type": "code", "source": "%%bash\necho $x\n", "metadata": {"tags": "x", "papermill": 5}}], "bash"),
        ([prose("$a_1 + b_1$ and $$\\frac{x_1}{y_1} *z*$$ cost \\$5, not $6")], "$a_1 + b_1$ and $$\\frac{x_1}{y_1} *z*$$ cost $5, not $6"),
        ([prose("| a | b |\n|---|--:|\n| 1 | 2 |\n\n- [x] ~~done~~")], '<td style="text-align:right">2</td>'),
        ([prose("```python\nimport os\n```\n```nope\n<b>\n```")], '<span class="kn">import</span>'),
        ([prose("# A & B\n\n<b>bold</b> &copy; <https://example.org>")], "<h1>A &amp; B</h1>"),
        ([shown({"text/html": "<svg><text>x</text></svg>", "text/plain": "Figure()"})], "Figure()"),
        ([shown({"image/png": PIXEL + "\n", "text/plain": "x"})], PIXEL),
        ([shown({"text/html": "<table><tr><td>1</table>", "text/plain": "df"})], "<td>1</td>"),
    ],
)  # fmt: skip
def test_a_notebook_of_any_kind_has_a_page(copied: Path, cells: list[Any], said: str) -> None:
    assert said in page_of(copied, cells)


def test_a_file_that_is_not_a_notebook_has_a_page_that_says_so(copied: Path) -> None:
    executed = copied / "steps" / "fit" / "executed.ipynb"
    manifest = read(RunManifest, copied / "run.json")
    for content, said in (
        (b"{", "JSONDecodeError"),
        (b"[" * 5000, "nested too deeply"),
        (b"{}", "no list of cells"),
        (b"\xff", "UnicodeDecodeError"),
    ):
        executed.unlink()
        executed.write_bytes(content)
        made = write_notebook_page(executed.parent, manifest=manifest, state=manifest.steps[0]).read_text()
        assert "This notebook cannot be shown: " in made
        assert said in made
        assert ("Its figures cannot be read" in write_report(copied).read_text()) == (content != b"{}")


@pytest.mark.soak
def test_outputs_that_are_long_or_deep_are_cut_with_a_sentence(copied: Path) -> None:
    row = "<tr><th>7</th>" + "<td>0.123456</td>" * 10 + "</tr>"
    frame = f"<div><style scoped>x {{ }}</style><table class='dataframe'>{row * 16_000}</table><p>16000 rows</p></div>"
    deep = {"text/html": "<div>" * 20_000 + "deep", "text/plain": "deep"}
    worst = {"text/html": "".join(f"<b title={n}><p>" for n in range(1200)), "text/plain": "worst"}
    cells = [
        shown({"text/html": "<style>" * 60_000, "text/plain": "styled"}),
        shown({"text/html": frame, "text/plain": "frame"}),
        shown(deep, worst, {"text/plain": "x" * 1_500_000}),
        prose("[" * 9000),
        prose("x " * 30_000),
        prose(f"[a]: {'b' * 20_000}\n\n{'[a]' * 9000}"),
        {"cell_type": "code", "metadata": {}, "source": "a." * 20_000, "outputs": []},
    ]  # fmt: skip
    made = page_of(copied, cells)
    assert "styled" in made
    assert made.count("<td>0.123456</td>") > 40_000
    assert "The first 1,000,000 of 3,024,088 characters of this output are shown" in made
    assert "<div><div>" in made
    assert "would take too long to lay out. It is in executed.ipynb" in made
    assert "The first 1,000,000 of 1,500,000 characters are shown" in made
    assert "This Markdown of 60,000 characters is too long to be laid out" in made
    assert made.count("too long to be laid out") == 2  # and one that would repeat an address 9000 times
    assert "a.a.a." in made
    assert len(made) < 12_000_000


def test_pictures_within_markup_are_shown_however_long_the_markup(copied: Path) -> None:
    picture = f"data:image/png;base64,{'A' * 400_000}"
    made = page_of(
        copied,
        [
            shown({"text/html": f"<p>{picture[:300]}</p><img src='{picture}'>" * 4 + "<b>end</b>", "text/plain": "x"}),
            shown({"text/html": '<img src="data:image/held,0"><img src="data:image/held,99">' * 9, "text/plain": "x"}),
            shown({"text/html": f'<img src="{picture}">' + '<img src="data:image/held,0">' * 9, "text/plain": "x"}),
        ],
    )  # fmt: skip
    assert made.count(f'src="{picture}"') == 5
    assert "<b>end</b>" in made
    assert len(made) < 6 * len(picture)


def test_an_output_cannot_look_like_the_page_itself(copied: Path) -> None:
    page = page_of(
        copied,
        [
            shown({"text/html": "<section class='verdict good'><h1 id=failure style='position:fixed'>Passed</h1></section>"}),
            shown({"text/html": "<span class='word pass'>passed</span><p class=meta>x</p><pre class=error>y</pre>"}),
            prose("<div class='cell failed' id='cell-9'><span class='word fail k'>z</span></div>"),
        ],
    )  # fmt: skip
    body = page[page.index("</style>") :]
    assert "verdict" not in body
    assert "<h1>Passed</h1>" in body
    assert '<span>passed</span><p>x</p><pre tabindex="0">y</pre>' in body
    assert '<span class="k">z</span>' in body  # of code, which no name of the page's own is
    assert "cell-9" not in body


@pytest.mark.parametrize(
    "address",
    ["data:text/html,x", "DATA:text/html,x", "data&#58;text/html,x", "da&Tab;ta:text/html,x", "da\nta:text/html,x", " data:text/html,x",
     "&#1;data:text/html,x", "data&colon;text/html,x", "javascript:x", "java&NewLine;script:x", "vbscript:x", "file:///etc/passwd", "blob:x"],
)  # fmt: skip
def test_a_link_of_an_output_leads_to_no_page_that_it_brings_along(address: str) -> None:
    for markup in (f'<a href="{address}">x</a>', f"<a href='{address}'>x</a>", f'<img src="{address}">'):
        assert not re.search("href|src", clean.html(markup)[0])


def test_the_compiled_templates_are_kept_where_nobody_else_writes_and_pages_are_made_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(cache: Path) -> bool:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        files.environment.cache_clear()
        assert files.environment().get_template("notebook.html.j2") is not None
        return any(cache.rglob("*.compiled"))

    for name, mode in (("own", 0o700), ("everybodys", 0o777)):
        (tmp_path / name / "runner" / "templates").mkdir(parents=True)
        (tmp_path / name / "runner" / "templates").chmod(mode)
    (tmp_path / "a file").touch()
    assert [kept(tmp_path / name) for name in ("own", "own", "everybodys", "a file")] == [True, True, False, False]
    files.environment.cache_clear()
