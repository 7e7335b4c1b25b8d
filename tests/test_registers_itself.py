"""Runs that register their model themselves, as no step of their pipeline does: the guide's own example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.projects import PAGES, ROOT, Project, parameters, recorded

from runner import failpoint
from runner.model.registry import LocalRegistry


@pytest.fixture
def prices(tmp_path: Path) -> Project:
    """The guide's own example, which has no step that registers."""
    project = Project(tmp_path)
    guide = (ROOT / "docs" / "own-notebooks.md").read_text()
    (example,) = re.findall(r"```toml\n(name = \"prices\".*?)```", guide, re.DOTALL)
    (tmp_path / "prices.csv").write_text("price\n1\n")
    project.write("prepare.ipynb", parameters('source: str = ""\ntable: str = ""'), "open(table, 'w').write('1')")
    project.write(
        "fit.ipynb",
        parameters('table: str = ""\nmodel: str = ""\nmax_depth: int = 4'),
        "import pathlib\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)",
        "(place / 'model.json').write_text('[]' if max_depth == 9 else '{}')",
        "(place / 'signature.json').write_text('{}')",
        recorded("rmse", "50.0 + (max_depth == 7) * 20"),
    )
    project.write(
        "register.ipynb",
        parameters('model: str = ""\nverdict: str = ""'),
        "import runner.model; runner.model.register(model, card='# By hand')",
    )
    project.toml(example)
    return project


BY_NOTEBOOK = """
[steps.register]
notebook = "register.ipynb"
inputs = { model = "fit.model", verdict = "gate.verdict" }
"""


@pytest.mark.soak
def test_the_guides_example_registers_a_version_without_a_step_that_does_and_only_once(prices: Project) -> None:
    checked = prices.runner("check").out
    assert "a run that passes its gate registers prices from fit.model, with a card made from the run's" in checked
    assert [step["name"] for step in prices.runner("run", "--dry-run", "--json").json] == ["prepare", "fit"]
    first = prices.runner("run", "--json")
    version = {"name": "prices", "version": 1, "status": "pending"}
    assert (first.code, first.json["model_version"], "not_registered" in first.json) == (0, version, False), first.err
    for arguments in ((), (), ("--tag", "again"), ("fit",)):  # by the fast path, from the cache, and of a part
        done = prices.runner("run", "--json", *arguments)
        assert (done.code, done.json["model_version"]) == (0, version), done.err
    (registered,) = prices.runner("models", "--json").json
    assert (registered["run"], len(registered["sources"])) == (first.json["run"], 1)
    assert prices.runner("resume", first.json["run"]).code == 0
    reproduced = prices.runner("reproduce", first.json["run"])
    assert reproduced.code == 0, reproduced.out + reproduced.err
    assert prices.runner("register", first.json["run"], "--json").json["version"] == 1
    assert prices.runner("run", "--force", "--json").json["model_version"]["version"] == 2  # a new model, though equal
    failed = prices.runner("run", "--json", "-p", "fit.max_depth=7")
    assert (failed.code, failed.json["verdict"], failed.json["model_version"]) == (4, "fail", None)
    assert len(prices.runner("models", "--json").json) == 2
    verified = prices.runner("verify", "--all")
    assert (verified.code, "sound" in verified.out) == (0, True), verified.out


def test_the_card_of_a_run_that_registers_itself_has_what_the_run_knows_and_is_inert(prices: Project) -> None:
    live = "[x](javascript:1) @all | `<img src=x>`"
    prices.write("prepare.ipynb", parameters('source: str = ""\ntable: str = ""\nnote: str = ""'), "open(table, 'w')")
    done = prices.runner("run", "--json", "-p", "fit.max_depth=5", "-p", f"prepare.note={live}")
    assert done.code == 0, done.err
    version, manifest = LocalRegistry(prices.folder / "runs" / "registry.db").get("prices", 1), prices.manifest
    for part in (
        "# Model card: prices\n\n## Verdict\n\n**pass**\n\n- ",
        "| `fit.rmse` | 50 |",
        manifest["sources"]["prepare.source"]["artifact"]["sha256"],
        manifest["steps"][1]["snapshot"]["notebook.ipynb"],
        "`fit.max_depth`: `5`",
        f"run `{manifest['run']}`",
        "model file `signature.json`: sha256 `",
        "Nobody has written what this model is for",
    ):
        assert part in version.card, part
    assert version.description == "fit.rmse 50"
    assert "javascript" in version.card
    outside_code = re.sub(r"(?s)(`+)(?!`).+?(?<!`)\1(?!`)", "", version.card)
    assert not re.search(r"javascript|@all|<img", outside_code)


def test_a_pipeline_with_a_step_that_registers_leaves_it_to_that_step(prices: Project) -> None:
    prices.toml((prices.folder / "pipeline.toml").read_text() + BY_NOTEBOOK)
    said = (
        "a run that passes its gate registers prices\npipeline.toml is sound: prepare → fit → register; 1 gate rule\n"
    )
    assert said in prices.runner("check").out
    done = prices.runner("run", "--json")
    assert (done.code, done.json["model_version"]["version"]) == (0, 1), done.err
    assert LocalRegistry(prices.folder / "runs" / "registry.db").get("prices", 1).card == "# By hand"
    done = prices.runner("run", "fit", "--json")  # a part without the step that registers
    assert (done.code, done.json["model_version"]) == (0, None), done.err
    assert "step register did not run" in done.json["not_registered"]


@pytest.mark.soak
def test_a_run_that_registers_itself_may_be_told_not_to_and_registers_later_and_once(prices: Project) -> None:
    done = prices.runner("run", "--json", "--no-register")
    said = f"No model was registered, as --no-register says. `runner register {done.json['run']}` does it now."
    assert (done.code, done.json["model_version"], done.json["not_registered"]) == (0, None, said), done.err
    for _ in range(2):
        registered = prices.runner("register", done.json["run"], "--json")
        assert (registered.code, registered.json["version"], registered.json["run"]) == (0, 1, done.json["run"])
    again = prices.runner("run", "--json")
    assert (again.code, again.json["model_version"]["version"]) == (0, 1), again.err
    swept = prices.runner("sweep", "fit", "-p", "fit.max_depth=2,3", "--metric", "fit.rmse")
    assert (swept.code, "only registration remains" in swept.err) == (0, True), swept.err
    assert len(prices.runner("models", "--json").json) == 1
    done = prices.runner("run", "prepare", env=PAGES)
    assert "no verdict: not all steps that the gate judges were run\n" in done.out
    assert (
        "without a verdict: not all steps that the gate judges were run."
        in prices.runs[-1].joinpath("report.html").read_text()
    )


def test_a_model_that_nobody_could_approve_is_refused_and_its_run_stays_whole(prices: Project) -> None:
    for arguments in ((), ("--tag", "again")):
        done = prices.runner("run", "-p", "fit.max_depth=9", *arguments)
        assert (done.code, "is neither UBJ nor JSON" in done.err) == (8, True), done.err
        assert "Nobody could approve it" in done.err
        run = prices.runs[-1].name
        assert f"`runner register {run}` tries again" in done.err
        assert (prices.manifest["status"], prices.manifest["verdict"]["outcome"]) == ("succeeded", "pass")
        assert "No model was registered. `runner register" in prices.runner("show", run).out
        assert prices.runner("register", run).code == 8
        verified = prices.runner("verify", "--all")
        assert (verified.code, "sound" in verified.out) == (0, True), verified.out
    assert prices.runner("models", "--json").json == []


@pytest.mark.parametrize("with_step", [False, True])
def test_a_profile_may_say_that_nothing_is_registered(prices: Project, with_step: bool) -> None:
    toml = (prices.folder / "pipeline.toml").read_text() + BY_NOTEBOOK * with_step
    prices.toml(toml + "\n[profiles.smoke]\nmodel.register = false\n")
    checked = prices.runner("check", "--profile", "smoke").out
    assert ("[model] register is false" in checked, "registers prices" in checked) == (True, False)
    done = prices.runner("run", "--profile", "smoke", "--json")
    assert (done.code, done.json["model_version"]) == (0, None), done.err
    assert "as [model] register = false says. `runner register" in done.json["not_registered"]
    assert prices.runner("register", done.json["run"], "--json").json["version"] == 1


def test_check_says_why_no_run_registers(prices: Project) -> None:
    whole = (prices.folder / "pipeline.toml").read_text()
    prices.toml(whole + '[profiles.raw]\nskip = ["fit"]\n')
    assert "the profile skips fit, which makes the model, so nothing is registered" in (
        prices.runner("check", "--profile", "raw").out
    )
    prices.toml(re.sub(r"\[model\].*", "", whole, flags=re.DOTALL))
    assert "no run registers a model: there is no [model]\n" in prices.runner("check").out
    assert prices.runner("check", "--json").json["warnings"] == []
    for arguments in (("approve", "prices/1", "--reason", "x"), ("models",)):
        asked = prices.runner(*arguments)
        assert "`runner check` says whether" in asked.err


@pytest.mark.cases(1)
@pytest.mark.parametrize("place", ["before registering", "registered", "version recorded", "before the end"])
def test_a_run_that_is_killed_while_it_registers_itself_registers_once(prices: Project, place: str) -> None:
    assert prices.runner("run", "--no-register").code == 0
    prices.runner("run", "--tag", "killed", env={failpoint.VARIABLE: place})
    resumed = prices.runner("resume", "latest", "--json")
    assert (resumed.code, resumed.json["model_version"]["version"]) == (0, 1), resumed.err
    assert len(prices.runner("models", "--json").json) == 1
