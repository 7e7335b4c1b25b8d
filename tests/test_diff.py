"""Runs and revisions side by side: every cause is named, by cell, and numbers are compared only where they may be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Done
from support.pages import Page, inert
from support.projects import PAGES, Project, parameters, program, text

from runner.audit.cells import cell_changes
from runner.notebook.source import Cell

HOSTILE = "<script>document.title='owned'</script>|`@someone`\x1b[2J"
PIPELINE = """
name = "tiny"

[steps.train]
notebook = "nb/train.ipynb"
outputs = { model = "model/" }
parameters = { depth = 5 }

[steps.predict]
notebook = "nb/predict.ipynb"
inputs = { test = "./rows.csv", model = "train.model" }
outputs = { predictions = "predictions.csv" }

[steps.score]
notebook = "nb/score.ipynb"
inputs = { predictions = "predict.predictions" }

[[gate]]
metric = "score.auc"
min = 0.855

[model]
name = "tiny"
from = "train.model"
"""
FIGURES = """from IPython.display import display
for name, alt, image in (("curve", f"A dot at {auc:.2f}", "iVBORw0K" if auc < 0.86 else "iVBORw0L"), ("frame", "A frame", "iVBO")):
    named = {"image/png": {"alt": alt}, "scrapbook": {"name": name, "data": False, "display": True}}
    display({"image/png": image}, metadata=named, raw=True)"""
SCORE = "auc = 0.8 + float(Path(predictions).read_text().split()[0]) / 100"


@dataclass(frozen=True)
class Compared:
    """A repository with runs: as committed, then edited and deeper, then on other rows."""

    project: Project
    first: str
    edited: str
    other_rows: str

    def runner(self, *arguments: str) -> Done:
        done = self.project.runner(*arguments)
        assert done.code == 0, done.err
        return done


def write(project: Project) -> None:
    project.toml(PIPELINE)
    (project.folder / "rows.csv").write_text("1\n2\n")
    (project.folder / ".gitignore").write_text("runs/\n")
    project.write(
        "nb/train.ipynb",
        parameters('depth: int = 5  # levels\nlabel: str = "plain"\nmodel: str = "work/model"'),
        "from pathlib import Path\nPath(model).mkdir(parents=True, exist_ok=True)\n(Path(model) / 'w').write_text(str(depth))",
        "from runner.scraps import metric\nmetric('rounds', depth * 10)",
    )
    project.write(
        "nb/predict.ipynb",
        parameters('test: str = "work/t"\nmodel: str = "work/m"\npredictions: str = "work/p"'),
        "from pathlib import Path\nrows = Path(test).read_text().split()",
        "Path(predictions).write_text((Path(model) / 'w').read_text() + ' ' + ' '.join(rows))",
    )
    score(project, "metric('loss', 1 - auc, better='lower')")
    (project.folder / "nb" / "helper.py").write_text("SHIFT = 0\n")


def score(project: Project, loss: str, *more: str, first: str = "# Score", shown: str = "print('scored')") -> None:
    project.write(
        "nb/score.ipynb",
        text(first),
        parameters('predictions: str = "work/p"'),
        "from pathlib import Path\nfrom helper import SHIFT\nfrom runner.scraps import metric",
        *more,
        SCORE,
        text("## Results"),
        FIGURES,
        shown,
        "metric('auc', auc, low=auc - 0.02, high=auc + 0.02, better='higher')",
        loss,
    )


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        [program("git"), "-C", str(folder), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    project = Project(tmp_path_factory.mktemp("diff"))
    write(project)
    git(project.folder, "init", "-q", "-b", "main")
    git(project.folder, "add", "-A")
    git(project.folder, "commit", "-q", "-m", "first")
    assert project.runner("run", env=PAGES).code == 4  # 0.85 is below the gate
    score(
        project,
        "metric('loss', 1.0 - auc, better='lower')  # \x1b[2J",
        "extra = SHIFT + 1",
        first="# Another heading",
        shown="",
    )
    (project.folder / "nb" / "helper.py").write_text("SHIFT = 1\n")
    assert (
        project.runner(
            "run", "--no-register", "-p", "depth=6", "-p", f"train.label={HOSTILE}", "-m", "<b>deeper</b>", env=PAGES
        ).code
        == 0
    )
    (project.folder / "rows.csv").write_text("1\n2\n3\n")
    assert project.runner("run", "--no-register", "-p", "depth=6", "-p", f"train.label={HOSTILE}").code == 0
    return Compared(project, *(folder.name for folder in project.runs))


@pytest.fixture(scope="module")
def difference(compared: Compared) -> dict[str, Any]:
    made: dict[str, Any] = compared.runner("diff", compared.first, compared.edited, "--json").json
    return made


def test_code_is_told_by_cell_and_prose_apart(difference: dict[str, Any]) -> None:
    (step,) = difference["steps"]
    assert (step["step"], step["notebook"], step["kind"], step["text_cells"]) == (
        "score",
        "nb/score.ipynb",
        "changed",
        1,
    )
    assert [(cell["kind"], cell["before"], cell["after"]) for cell in step["cells"]] == [
        ("added", None, 3),
        ("removed", 5, None),
        ("changed", 7, 7),
    ]
    assert step["cells"][0]["diff"] == ["+extra = SHIFT + 1"]
    assert step["cells"][2]["diff"] == [
        "-metric('loss', 1 - auc, better='lower')",
        "+metric('loss', 1.0 - auc, better='lower')  # \x1b[2J",
    ]
    assert step["modules"] == [{"name": "helper.py", "kind": "changed", "diff": ["-SHIFT = 0", "+SHIFT = 1"]}]


def test_parameters_are_told_with_both_values(difference: dict[str, Any]) -> None:
    assert [(p["name"], p["kind"], p["before"], p["after"]) for p in difference["parameters"]] == [
        ("train.depth", "changed", 5, 6),
        ("train.label", "changed", "plain", HOSTILE),
    ]


def test_metrics_have_difference_and_direction_by_what_is_better(difference: dict[str, Any]) -> None:
    metrics = {metric["name"]: metric for metric in difference["metrics"]}
    assert metrics["score.auc"]["difference"] == pytest.approx(0.01)
    assert metrics["score.loss"]["difference"] == pytest.approx(-0.01)
    assert [metrics[f"score.{name}"]["direction"] for name in ("auc", "loss")] == ["better", "better"]
    assert metrics["train.rounds"]["direction"] == "unknown"
    assert [metrics[name]["overlap"] for name in ("score.auc", "score.loss")] == [True, None]
    assert not any(metric["not_comparable"] for metric in metrics.values())  # another model is what is compared
    assert difference["rules"] == [{"rule": "score.auc >= 0.855", "before": "fail", "after": "pass"}]
    assert [difference[side]["run"]["verdict"] for side in ("before", "after")] == ["fail", "pass"]


def test_data_that_came_from_outside_is_told_apart_from_what_followed(compared: Compared) -> None:
    made = compared.runner("diff", compared.edited, compared.other_rows, "--json").json
    assert [data["name"] for data in made["data"] if data["outside"]] == ["predict.test"]
    assert [data["name"] for data in made["data"] if not data["outside"]] == ["score.predictions"]
    assert made["parameters"] == []
    assert made["steps"] == []
    assert made["environment"] == made["packages"] == []


def test_packages_that_a_step_stands_on_are_told_by_version(compared: Compared, tmp_path: Path) -> None:
    copy = Project(tmp_path / "copy")
    shutil.copytree(compared.project.folder, copy.folder)
    file = copy.folder / "runs" / compared.edited / "run.json"
    manifest = json.loads(file.read_text())
    manifest["environment"] |= {"python": "3.99.0"}
    manifest["environment"]["packages"] |= {"ipython": "9.99", "never-imported": "1.0"}
    file.write_text(json.dumps(manifest))
    out = copy.runner("diff", compared.edited, compared.other_rows, "--json").json
    assert [(change["name"], change["before"]) for change in out["environment"]] == [("python", "3.99.0")]
    assert [(package["name"], package["before"], package["imported"]) for package in out["packages"]] == [
        ("ipython", "9.99", True),
        ("never-imported", "1.0", False),
    ]


def test_a_run_does_not_differ_from_itself(compared: Compared) -> None:
    done = compared.runner("diff", "latest", "latest", "--md")
    assert "Nothing differs in code, parameters, data and environment." in done.out


@pytest.fixture(scope="module")
def printed(compared: Compared) -> str:
    """What a person sees, whose last line says where the page is."""
    return compared.runner("diff", compared.first, compared.edited).out


def test_the_terminal_is_told_all_and_not_steered(printed: str) -> None:
    for said in ("gate failed → passed", "depth  5 → 6   (train)", "cell [7] changed", "cell [5] removed",
                 "1 text cell changed", "better, intervals overlap", "page runs/comparisons/"):  # fmt: skip
        assert said in printed
    assert "\x1b" not in printed


def test_the_page_shows_both_and_nothing_in_it_runs(compared: Compared, printed: str) -> None:
    path = compared.project.folder / printed.splitlines()[-1].removeprefix("page ")
    assert path.parent.name == "comparisons"
    page = Page(path)
    inert(page)
    for said in ("Gate failed → passed; metrics: 2 better (1 with overlapping intervals)", HOSTILE[:39], "<b>deeper</b>",
                 "-SHIFT = 0", "1 text cell changed", "The same in both: score: frame"):  # fmt: skip
        assert said in page.text
    alts = [str(image["alt"]) for image in page.all("img")]
    assert "score.auc, higher is better: " in alts[0]
    assert re.search(r"0\.85 \(0\.83 to 0\.87\); \w+ 0\.86 \(0\.84 to 0\.88\)", alts[0])
    assert [alt for alt in alts if alt.startswith("A dot at")] == ["A dot at 0.85", "A dot at 0.86"]
    links = [str(link["href"]) for link in page.all("a")]
    assert len(links) == 2
    assert all((path.parent / link).exists() for link in links)
    assert compared.runner("verify", "--all").code == 0  # the page lies outside what is sealed


def test_markdown_holds_what_notebooks_say_in_code_only(compared: Compared) -> None:
    out = compared.runner("diff", compared.first, compared.edited, "--md").out
    assert "| `train.depth` | `5` | `6` |" in out
    assert "Cell [7] changed\n```diff\n-metric('loss', 1 - auc" in out
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", out, flags=re.S)
    assert "<script>" in out
    assert "<" not in outside
    assert "@" not in outside
    rows = [line for line in out.splitlines() if line.startswith("| `train.label`")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 4  # a bar in a value opens no column


def test_runs_on_other_data_are_not_compared(compared: Compared) -> None:
    made = compared.runner("compare", compared.first, compared.edited, compared.other_rows, "--json").json
    assert [row["name"] for row in made["parameters"]] == ["train.depth", "train.label"]
    why = {row["name"]: row["not_comparable"] for row in made["metrics"]}
    assert why["score.auc"] == ["", "", "test data differ"]  # through the predictions, which are made from it
    assert why["train.rounds"] == ["", "", ""]  # no data went into it
    assert made["metrics"][0]["name"] == "score.auc"  # judged by the gate
    assert [run["verdict"] for run in made["runs"]] == ["fail", "pass", "pass"]


def test_the_table_and_the_page_of_several_runs_say_so(compared: Compared) -> None:
    runs = (compared.first, compared.edited, compared.other_rows)
    out = compared.runner("compare", *runs, "-o", "sub/several.html").out
    assert "≠ not comparable: test data differ" in out
    page = Page(compared.project.folder / "sub" / "several.html")
    inert(page)
    assert "3 runs side by side" in page.text
    assert "≠ not comparable" in page.text
    assert HOSTILE[:39] in page.text
    assert any("not comparable: test data differ" in str(image["alt"]) for image in page.all("img"))
    markdown = compared.runner("compare", *runs, "--md").out
    assert "| `train.depth` | `5` | `6` | `6` |" in markdown
    assert "the same in all" not in out + page.text + markdown  # as none is
    for options, file in (((), "two.html"), (("--md",), None)):
        out = compared.runner("compare", *runs[1:], *options, *(["-o", f"sub/{file}"] if file else [])).out
        assert "2 parameters are the same in all." in out
    assert "2 parameters are the same in all." in Page(compared.project.folder / "sub" / "two.html").text
    assert "≠ not comparable: `test data differ`" in markdown


def test_a_revision_is_compared_with_the_working_tree_without_a_run(compared: Compared, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(compared.project.folder), "copy")
    project = Project(tmp_path / "copy")
    assert "Nothing differs" in project.runner("diff", "HEAD", "--md").out
    score(project, "metric('loss', 1 - auc, better='lower')", shown="print('scored: ', auc)")
    project.toml(PIPELINE.replace("depth = 5", "depth = 7").replace("0.855", "0.9"))
    (project.folder / "nb" / "helper.py").write_text("SHIFT = 2\n")
    done = project.runner("diff", "main", "--json")
    assert done.code == 0, done.err
    made = done.json
    assert [(p["name"], p["before"], p["after"]) for p in made["parameters"]] == [("train.depth", 5, 7)]
    assert [(p["name"], p["before"], p["after"]) for p in made["pipeline"]] == [
        ("gate.score.auc", "score.auc >= 0.855", "score.auc >= 0.9")
    ]
    (step,) = made["steps"]
    assert [(cell["kind"], cell["after"], cell["diff"]) for cell in step["cells"]] == [
        ("changed", 5, ["-print('scored')", "+print('scored: ', auc)"])
    ]
    assert [module["diff"] for module in step["modules"]] == [["-SHIFT = 0", "+SHIFT = 2"]]
    assert not (project.folder / "runs").exists()
    assert project.runner("diff", "main", "-o", "page.html").code == 0
    inert(Page(project.folder / "page.html"))


def test_a_pipeline_below_the_top_of_its_repository_is_found_at_the_revision(project: Project) -> None:
    inner = Project(project.folder / "models" / "a")
    inner.write("nb.ipynb", "x = 1")
    inner.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    git(project.folder, "init", "-q", "-b", "main")
    (project.folder / "README").write_text("first")
    git(project.folder, "add", "README")
    git(project.folder, "commit", "-q", "-m", "without it")
    git(project.folder, "add", "-A")
    git(project.folder, "commit", "-q", "-m", "with it")
    inner.write("nb.ipynb", "x = 2")
    inner.write("more.ipynb", "y = 1")
    inner.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n[steps.more]\nnotebook = "more.ipynb"\n')
    out = inner.runner("diff", "HEAD").out
    assert "step more added: more.ipynb, 1 code cell" in out
    assert "cell [1] changed" in out
    assert "+x = 2" in out
    before = inner.runner("diff", "HEAD~1")
    assert before.code == 2
    assert "There is no models/a/pipeline.toml at" in before.err


@pytest.mark.parametrize("revision", ["nowhere", "--help^", "HEAD:pipeline.toml", ""])
def test_a_revision_that_git_does_not_know_is_an_error_in_words(compared: Compared, revision: str) -> None:
    done = compared.project.runner("diff", "--", revision)
    assert done.code == 2
    assert "git knows no revision" in done.err
    assert "Traceback" not in done.err


def test_outside_a_repository_there_are_no_revisions(project: Project) -> None:
    project.write("nb.ipynb", "x = 1")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    program("git")
    done = project.runner("diff", "HEAD")
    assert done.code == 2
    assert "is in no git repository" in done.err


def test_what_cannot_be_asked_is_said(compared: Compared) -> None:
    for arguments, said in (
        (("compare", "latest"), "Name two runs or more"),
        (("diff", "latest", "latest", "--md", "--json"), "--md or --json, not both"),
        (("diff", "latest", "nowhere"), "There is no run 'nowhere'"),
    ):
        done = compared.project.runner(*arguments)
        assert done.code == 2
        assert said in done.err


def cells(*sources: str, ids: str = "") -> list[tuple[Cell, str]]:
    return [
        (Cell("code", source, (), number), ids[number - 1 : number] or "") for number, source in enumerate(sources, 1)
    ]


def told(before: list[tuple[Cell, str]], now: list[tuple[Cell, str]]) -> list[tuple[str, int | None, int | None]]:
    return [(change.kind, change.before, change.after) for change in cell_changes(before, now)]


def test_a_cell_rewritten_in_place_is_known_by_its_id() -> None:
    assert told(cells("a = 1", "b = load()", ids="ab"), cells("a = 1", "frame.plot(kind='bar')", ids="ab")) == [
        ("changed", 2, 2)
    ]
    assert told(cells("b = load()"), cells("frame.plot(kind='bar')")) == [("added", None, 1), ("removed", 1, None)]


def test_an_inserted_cell_renumbers_the_others_and_changes_none() -> None:
    before, now = cells("a = 1", "b = a + 1", ids="ab"), cells("import os", "a = 1", "b = a + 2", ids="abc")
    assert told(before, now) == [("added", None, 1), ("changed", 2, 3)]


def test_a_cell_that_only_moved_is_told_as_moved() -> None:
    assert told(cells("a = 1", "import os", "c = 3"), cells("import os", "c = 3", "a = 1")) == [("moved", 1, 3)]


sources = st.lists(st.sampled_from(["a = 1", "a = 2", "b = f(a)", "print(b)", "c = [1, 2]", "import os"]), max_size=6)


@given(sources, sources)
def test_every_cell_is_accounted_for_once(before: list[str], now: list[str]) -> None:
    changes = cell_changes(cells(*before), cells(*now))
    for numbers in ([c.before for c in changes], [c.after for c in changes]):
        there = [number for number in numbers if number is not None]
        assert len(there) == len(set(there))
    kinds = [change.kind for change in changes]
    assert len(before) - kinds.count("removed") == len(now) - kinds.count("added")
    assert (not changes) == (before == now)


def test_json_of_a_difference_keeps_its_keys(difference: dict[str, Any]) -> None:
    assert list(difference) == ["format", "before", "after", "steps", "parameters", "pipeline", "data", "environment",
                                "packages", "rules", "metrics", "page"]  # fmt: skip
    json.dumps(difference)
