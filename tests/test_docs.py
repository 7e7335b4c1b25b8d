"""The pages: complete where the code has the words, built without a warning, and to be read on a telephone."""

from __future__ import annotations

import ast
import inspect
import re
import struct
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
from support.projects import ROOT, program

import runner.drift
import runner.model
import runner.scraps
from runner import records
from runner.pipeline.file import TOP
from runner.records import Record, Rule

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_extensions"))
import reference  # noqa: E402


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_key_of_pipeline_toml_has_a_type_a_default_and_a_meaning_and_stands_on_the_page() -> None:
    for table, record in reference.TABLES.items():
        keys = reference.keys(table)
        assert [key.name for key in keys] == [
            field.encode_name for field in msgspec.structs.fields(record) if field.name in record.__annotations__
        ]
        assert all(key.type and key.default and key.description for key in keys), [k for k in keys if not k.description]
        assert f"```{{keys}} {table}\n" in page("pipeline-toml.md")
    assert {key.name for key in reference.keys("pipeline.toml")} | {"profiles"} == {*TOP, "skip"}
    assert "`[profiles.NAME]`" in page("pipeline-toml.md")


def test_every_record_that_the_file_can_hold_is_a_table_of_the_page() -> None:
    pending, held = [records.Pipeline], set()
    while pending:
        record = pending.pop()
        held.add(record)
        named = {word for field in msgspec.structs.fields(record) for word in re.findall(r"\w+", str(field.type))}
        pending += [base for base in record.__bases__ if base is not Record and base not in held]
        below = [one for name, one in vars(records).items() if name in named and inspect.isclass(one)]
        pending += [one for one in below if issubclass(one, Record) and one not in held]
    assert held == set(reference.TABLES.values())


def test_a_key_without_a_comment_or_with_a_type_that_has_no_words_would_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bare(Record, frozen=True):
        told: str = ""  # what it is
        untold: int = 1

    monkeypatch.setitem(reference.TABLES, "bare", Bare)
    assert [(key.name, key.description) for key in reference.keys("bare")] == [("told", "what it is"), ("untold", "")]
    with pytest.raises(ValueError, match="no words for the type bytes"):
        reference.in_words(ast.parse("bytes", mode="eval").body)
    (minimum,) = [key for key in reference.keys("gate") if key.name == "min"]
    assert (minimum.type, minimum.default) == ("number", "–")
    assert Rule in reference.TABLES.values()


def test_every_command_has_help_an_example_and_help_for_each_option() -> None:
    for name, command in reference.commands():
        assert command.help, name
        assert f"runner {name}" in command.help.partition("Example:")[2], name
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, f"runner {name} --{option.name}"
    assert ".. click:: runner.cli:group" in page("commands.md")


def test_every_command_with_json_has_a_row_that_says_what_it_prints_and_every_exit_code_its_meaning() -> None:
    rows = re.findall(r"^\| ((?:`[a-z ]+`(?:, )?)+) \| ", page("outputs.md"), re.MULTILINE)
    assert sorted(re.findall(r"`([a-z ]+)`", ", ".join(rows))) == sorted(reference.with_json())
    assert "{exit-codes}" in page("outputs.md")
    assert [code for code, _ in reference.exit_codes()] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 130]
    assert all(meaning for _, meaning in reference.exit_codes())


@pytest.mark.parametrize("module", [runner.scraps, runner.model, runner.drift])
def test_every_public_function_says_what_it_does_and_stands_on_the_page(module: object) -> None:
    name = module.__name__  # type: ignore[attr-defined]
    assert f".. automodule:: {name}\n   :members:" in page("python.md")
    public = {key: value for key, value in vars(module).items() if not key.startswith("_") and callable(value)}
    public = {key: value for key, value in public.items() if value.__module__.startswith("runner.")}
    assert len(public) >= 3
    for key, value in public.items():
        assert inspect.getdoc(value), f"{name}.{key}"
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert inspect.getdoc(function), f"{name}.{key}.{method}"


def test_a_link_of_a_page_leads_to_a_file_that_is_there() -> None:
    for written in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", written.read_text(encoding="utf-8")):
            assert (written.parent / target).exists(), f"{written.relative_to(ROOT)} links to {target}"


def test_each_page_is_in_the_table_of_contents_and_each_decision_in_its_own() -> None:
    named = set(re.findall(r"^([\w/-]+)$", page("index.md"), re.MULTILINE))
    named |= {f"decisions/{name}" for name in re.findall(r"^([\w-]+)$", page("decisions/index.md"), re.MULTILINE)}
    written = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert written - {"index"} <= named


def test_the_readme_shows_one_picture_that_loads_at_once() -> None:
    (picture,) = re.findall(r"!\[[^\]]{20,}\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    content = (ROOT / picture).read_bytes()
    assert len(content) < 150_000
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">I", content[16:20])[0] >= 1000  # pixels wide


def test_the_readme_says_how_to_install_upgrade_and_remove() -> None:
    said = (ROOT / "README.md").read_text().partition("## Install, upgrade, remove")[2]
    for word in (
        'pip install "git+',
        "-py3-none-any.whl",
        "pip uninstall papermill-runner",
        "git pull",
        "Supported platforms",
    ):
        assert word in said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `make docs` builds them; a warning is an error."""
    shown = subprocess.run([program("make"), "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert " -W " in shown.stdout
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.mark.soak  # in `make stories`
def test_the_site_has_what_the_code_says(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name, command in reference.commands():
        assert f'id="runner-{name.replace(" ", "-")}"' in commands
        for option in command.params:
            assert not isinstance(option, click.Option) or option.opts[-1] in commands
    assert "–reason" not in commands
    keys = (site / "pipeline-toml.html").read_text(encoding="utf-8")
    assert all(f'id="{reference.anchor(table)}"' in keys for table in reference.TABLES)
    python = (site / "python.html").read_text(encoding="utf-8")
    for name in ("runner.scraps.metric", "runner.scraps.figure", "runner.scraps.table", *runner.model.__all__):
        assert f'id="{name if "." in name else f"runner.model.{name}"}"' in python
    assert "a step failed" in (site / "outputs.html").read_text(encoding="utf-8")
    assert "What this project protects" in (site / "security.html").read_text(encoding="utf-8")
