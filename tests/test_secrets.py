"""What is secret stands in no file of the store: not as a parameter, not in the environment, not in what a cell shows."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.projects import PAGES, Project, parameters

from runner.notebook.redaction import MARK, Redactor

TOKEN = "s3cr3t-canary-7f1e9c"
AWKWARD = "kan4ri\\x \"y&z\t<w/é'\U0001f511v4ult"  # every encoding changes some of it, and none its ends
ENVIRONMENT = {"SHOP_TOKEN": TOKEN, "OTHER_PASSWORD": "canary-in-the-environment", **PAGES}
CANARIES = {
    "AWS access key id": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub token": "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345",
    "Google API key": "AIza" + "SyA-0123456789abcdefghijABCDEFGHIJ0",
    "Slack token": "xoxb-" + "123456789012-abcdefghijkl",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    "password in an address": "admin:hunter2",
}


def using(project: Project, *cells: str, toml: str = "") -> Project:
    project.write("nb.ipynb", parameters('x: int = 1\ntoken: str = ""  # secret: of the shop'), *cells)
    project.toml(f'name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n{toml}\n')
    return project


def holding(folder: Path, text: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_secret_reaches_the_notebook_and_no_file(project: Project) -> None:
    using(
        project,
        "import sys, warnings\nassert token == 's3cr3t-' + 'canary-7f1e9c'\nprint('using', token)\ntoken",
        "from IPython.display import HTML, display\ndisplay(HTML(f'<b>{token}</b>'), {'nested': [token]})\n"
        "sys.stderr.write(token[:5]); sys.stderr.flush(); sys.stderr.write(token[5:])",
    )
    done = project.runner("run", "-p", "token=env:SHOP_TOKEN", "--json", env=ENVIRONMENT)
    assert done.code == 0, done.err
    assert holding(project.folder, TOKEN) == []
    assert holding(project.folder, ENVIRONMENT["OTHER_PASSWORD"]) == []
    assert MARK in str(project.executed("only"))
    assert project.step("only")["parameters"]["token"] == "env:SHOP_TOKEN"
    assert "redacted in nb.ipynb, cell [2]: secret parameter" in done.err
    assert "redacted" in (project.runs[-1] / "report.html").read_text()
    assert project.runner("verify", "latest").code == 0


def test_a_secret_in_a_traceback_and_in_a_dying_kernels_last_words_is_taken_out(project: Project) -> None:
    using(project, "raise type(token, (Exception,), {})(f'refused for {token}')")
    done = project.runner("run", "-p", "token=env:SHOP_TOKEN", env=ENVIRONMENT)
    assert done.code == 3
    assert TOKEN not in done.out + done.err
    assert project.step("only")["result"]["error"]["ename"] == MARK
    assert f"refused for {MARK}" in done.err
    using(project, "import os, sys\nos.write(2, token.encode()); os._exit(5)")
    done = project.runner("run", "-p", "token=env:SHOP_TOKEN", env=ENVIRONMENT)
    assert done.code == 6
    assert TOKEN not in done.out + done.err
    assert holding(project.folder, TOKEN) == []


def test_no_encoding_of_a_secret_is_stored_wherever_it_stands(project: Project) -> None:
    using(
        project,
        "import base64, html, json, shlex\nfrom urllib.parse import quote, quote_plus\n"
        "from IPython.display import display\n"
        "ways = [token, repr(token), ascii(token), repr(repr(token)), str({'t': token}), repr(token.encode()),\n"
        "        json.dumps(token), json.dumps(token, ensure_ascii=False), json.dumps(json.dumps({'t': [token]})),\n"
        "        json.dumps(token).replace('/', '\\\\/'), quote(token), quote(token, safe=''), quote_plus(token),\n"
        "        quote(quote(token, safe=''), safe=''), html.escape(token), html.escape(html.escape(token)),\n"
        "        html.escape(json.dumps(token)), token.encode('ascii', 'xmlcharrefreplace').decode(),\n"
        "        token.encode('unicode_escape').decode(), shlex.quote(token), token.replace('\"', '\"\"'),\n"
        "        base64.b64encode(token.encode()).decode(), base64.b64encode(b'ann:' + token.encode()).decode(),\n"
        "        base64.urlsafe_b64encode(b'it is ' + token.encode() + b'!').decode()]\n"
        "for way in ways: print('<', way, '>')",
        "display({'text/html': f'<b>{html.escape(token)}</b>', 'application/' + token: 'x', 'application/json': {token: [token]}},\n"
        "        metadata={token: token, 'image/png': {'alt': token}}, raw=True)",
        "import ipywidgets\nipywidgets.Text(value=token)",
    )
    done = project.runner("run", "-p", "token=env:SHOP_TOKEN", "--json", env={**ENVIRONMENT, "SHOP_TOKEN": AWKWARD})
    assert done.code == 0, done.err
    packed = [base64.b64encode(b" " * n + AWKWARD.encode()).decode()[4:-4] for n in range(3)]
    for piece in ("kan4ri", "v4ult", *packed):
        assert holding(project.folder, piece) == []
        assert piece not in done.out + done.err
    printed = "".join(project.executed("only")["cells"][2]["outputs"][0]["text"])
    assert printed.count("<") == printed.count(MARK) == 24
    assert "a widget: secret parameter" in project.step("only")["result"]["redacted"]


def test_a_secret_is_named_and_never_given(project: Project) -> None:
    using(project)
    for text, said in (
        (f"token={TOKEN}", "is secret; write env:NAME"),
        ("token=env:NOT_SET", "no environment variable"),
    ):
        done = project.runner("run", "-p", text, env=ENVIRONMENT)
        assert done.code == 2
        assert said in done.err
        assert TOKEN not in done.err
    using(project, toml=f'parameters = {{ token = "{TOKEN}" }}')
    assert project.runner("check").code == 2
    using(project, toml='parameters = { token = "env:SHOP_TOKEN" }')
    assert project.runner("run", env=ENVIRONMENT).code == 0
    project.write("nb.ipynb", parameters('token: str = "abc"  # secret'))
    done = project.runner("check", env=ENVIRONMENT)
    assert "its default must be empty" in done.out + done.err


def test_a_value_that_looks_like_a_credential_is_named_by_check(project: Project) -> None:
    project.write("nb.ipynb", parameters('url: str = ""\nname: str = ""'), "url")
    project.toml(
        'name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\nparameters = { name = "ann?b=c", url = "https://h/t?X-Amz-Signature=0a" }\n'
    )
    done = project.runner("check")
    assert done.code == 0
    assert done.out.count("looks like it lets one in") == 1
    assert "the value of `url` looks" in done.out


def test_debug_takes_the_secret_from_the_environment_too(project: Project) -> None:
    using(project, "assert token, 'no token'\n1 / 0")
    assert project.runner("run", "-p", "token=env:SHOP_TOKEN", env=ENVIRONMENT).code == 3
    made = project.runner("debug", "latest", "only", "--no-open")
    assert "token = os.environ['SHOP_TOKEN']" in Path(made.out.strip()).read_text()


def test_what_looks_like_a_credential_is_taken_out_and_flagged(project: Project) -> None:
    shown = [f"print({canary!r})" for canary in CANARIES.values() if "\n" not in canary and ":" not in canary]
    using(project, *shown, "print('postgres://' + 'admin:hunter2@db/x')")
    done = project.runner("run", "--json", env=PAGES)
    assert done.code == 0, done.err
    executed = project.executed("only")
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    assert "AKIAIOSFODNN7EXAMPLE" not in str(outputs)
    assert "postgres://[redacted]@db/x" in str(outputs)
    assert "cell [2]: AWS access key id" in project.step("only")["result"]["redacted"]
    page = (project.runs[-1] / "report.html").read_text()
    assert "AWS access key id" in page


@pytest.mark.parametrize("kind", CANARIES)
def test_each_form_is_found(kind: str) -> None:
    text = f"before postgres://{CANARIES[kind]}@after"
    made, kinds = Redactor().text(text)
    assert CANARIES[kind] not in made
    assert kind in kinds


@pytest.mark.soak
def test_looking_for_secrets_takes_time_in_proportion_to_the_text() -> None:
    hard = [mark * 8 + "end" for mark in ('"', "\\", "&", "%", "'", '\\"', "\\\n", "& ", "&amp;", "%25")]
    redactor = Redactor(hard)
    runs = (
        "\\",
        "&amp;",
        '"',
        "%25",
        "'",
        '\\"',
        "\\\\n",
        "&+",
        "eyJ-",
        "://a:",
        "-----BEGIN A",
        "ghp_",
        "xoxb",
        "sig=",
    )
    for text in (run * 20_000 + "-end" for run in runs):
        assert redactor.text(text) == (text, [])


@pytest.mark.parametrize(
    "secret",
    [
        "\"\"''\\\\x",
        "\\\\\\\"''\"&&amp;x",
        "%25%20 ab  c",
        "\\n\\u00e9\né",
        "a\nb\t\\\\d",
        "éé\U0001f511\U0001f511",
        "   %%x",
    ],
)
def test_a_secret_that_looks_like_an_encoding_is_found_in_every_encoding(secret: str) -> None:
    ways: list[Callable[[str], str]] = [
        str, repr, ascii, json.dumps, html.escape, quote, quote_plus, shlex.quote,
        lambda text: repr(text.encode()), lambda text: text.encode("unicode_escape").decode(),
        lambda text: text.encode("ascii", "xmlcharrefreplace").decode(), lambda text: text.replace('"', '""'),
        lambda text: json.dumps(text, ensure_ascii=False).replace("/", "\\/"), lambda text: quote(text, safe=""),
    ]  # fmt: skip
    twice = [(json.dumps, json.dumps), (repr, repr), (json.dumps, html.escape), (json.dumps, quote), (quote, quote),
             (quote, json.dumps), (html.escape, html.escape), (repr, json.dumps)]  # fmt: skip
    written = [way(secret) for way in ways] + [second(first(secret)) for first, second in twice]
    for text in written:
        made, kinds = Redactor([secret]).text(f"<{text}>")
        assert kinds == ["secret parameter"]
        assert not set(made.replace(MARK, "")) - set("<>\"'\\%225Cquotamp;&b#x7")


@settings(deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "Zs"]), min_size=4, max_size=40), st.text(max_size=50))
def test_no_secret_of_four_characters_or_more_survives(secret: str, around: str) -> None:
    assume(secret not in "text/plain image/png")  # keys are looked through too
    made, kinds = Redactor([secret]).inside({"text/plain": [around + secret + around], "image/png": secret})
    if secret not in MARK:
        assert secret not in made["text/plain"][0].replace(MARK, "")
    assert "secret parameter" in kinds
    assert made["image/png"] == secret
