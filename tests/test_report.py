"""The report says what happened, first things first, and nothing in a notebook can make it do anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import PAGES, Project, code, notebook, parameters, text

from runner.manifest import RunManifest
from runner.records import read
from runner.report import clean
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
    chromium = shutil.which("chromium")
    assert chromium, "install Debian's chromium; .ci/run does"
    for path in (hostile / "report.html", hostile / "steps" / "fit" / "executed.html"):
        done = subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert "<title>owned" not in done.stdout
        assert "<h1>" in done.stdout


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
    [("fail", "Not passed"), ("inconclusive", "Inconclusive"), ("error", "No verdict could be given")],
)
def test_each_verdict_is_told_in_words(passed: Project, tmp_path: Path, outcome: str, said: str) -> None:
    shutil.copytree(passed.runs[-1], tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    manifest["verdict"]["outcome"] = outcome
    manifest["verdict"]["rules"][0]["outcome"] = outcome
    (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
    assert said in Page(write_report(tmp_path / "run")).text
