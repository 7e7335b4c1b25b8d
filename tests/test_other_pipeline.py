"""Notebooks that have nothing to do with the shipped use case run the same way: another table, another kind of model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Done
from support.projects import PAGES, Project, code, parameters, text

TOML = """
name = "diabetes"

[parameters]
seed = 3

[steps.prepare]
notebook = "tägliche läufe/prepare.ipynb"
inputs = { source = "./patients.csv" }
outputs = { fit = "fit.parquet", held = "held.parquet" }

[steps.fit]
notebook = "tägliche läufe/fit.ipynb"
inputs = { fit = "prepare.fit" }
outputs = { model = "model/" }
parameters = { rounds = 40 }

[steps.baseline]
notebook = "tägliche läufe/baseline.ipynb"
inputs = { fit = "prepare.fit", held = "prepare.held" }

[steps.judge]
notebook = "tägliche läufe/judge.ipynb"
inputs = { held = "prepare.held", model = "fit.model", champion = "approved:progression" }

[[gate]]
metric = "judge.rmse"
max = 65.0

[[gate]]
metric = "baseline.rmse"
min = 65.0

[model]
name = "progression"
from = "fit.model"

[steps.enter]
notebook = "tägliche läufe/enter.ipynb"
inputs = { model = "fit.model", verdict = "gate.verdict" }
"""
WAIT = "import pathlib, time\ndeadline = time.monotonic() + 60\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """scikit-learn's diabetes table: 442 patients, ten measurements, disease progression after a year."""
    from sklearn.datasets import load_diabetes

    project = Project(tmp_path_factory.mktemp("Ein Ordner – für Überläufe"))
    load_diabetes(as_frame=True).frame.to_csv(project.folder / "patients.csv", index=False)
    (project.folder / "diabètes.toml").write_text(TOML, encoding="utf-8")
    write = project.write
    write(
        "tägliche läufe/prepare.ipynb",
        text("# Patients"),
        parameters('source: str = ""\nfit: str = ""\nheld: str = ""\nseed: int = 1  # of the draw'),
        "import pandas as pd\ntable = pd.read_csv(source)",
        "rest = table.sample(n=120, random_state=seed)\nrest.to_parquet(held)",
        "table.drop(rest.index).to_parquet(fit)",
    )
    write(
        "tägliche läufe/fit.ipynb",
        parameters('fit: str = ""\nmodel: str = ""\nrounds: int = 10  # trees\nseed: int = 1'),
        "import pandas as pd, xgboost as xgb, runner.model\ntable = pd.read_parquet(fit)",
        "x, y = table.drop(columns='target'), table.target\n"
        "booster = xgb.train({'eta': 0.08, 'max_depth': 3, 'seed': seed}, xgb.DMatrix(x, y), rounds)",
        "runner.model.save(model, booster, x, target='progression')",
    )
    write(
        "tägliche läufe/baseline.ipynb",
        parameters('fit: str = ""\nheld: str = ""'),
        "import pandas as pd, scrapbook\ntruth = pd.read_parquet(held).target",
        "mean = pd.read_parquet(fit).target.mean()\nscrapbook.glue('rmse', float(((truth - mean) ** 2).mean() ** 0.5))",
    )
    write(
        "tägliche läufe/judge.ipynb",
        parameters('held: str = ""\nmodel: str = ""\nchampion: str = ""'),
        "import numpy as np, pandas as pd, runner.model\nfrom runner.scraps import metric\ntable = pd.read_parquet(held)",
        "squared = (runner.model.load(model).predict(table) - table.target.to_numpy()) ** 2",
        "drawn = squared[np.random.default_rng(1).integers(0, len(squared), (500, len(squared)))].mean(axis=1) ** 0.5",
        "low, high = np.quantile(drawn, [0.025, 0.975])\n"
        "metric('rmse', squared.mean() ** 0.5, low=low, high=high, better='lower')\n"
        "metric('had_champion', int(bool(champion)))",
    )
    write(
        "tägliche läufe/enter.ipynb",
        parameters('model: str = ""\nverdict: str = ""'),
        "import json, runner.model\nassert json.load(open(verdict))['outcome'] == 'pass'",
        "runner.model.register(model, card='# Progression')",
    )
    return project


def run(project: Project, *arguments: str) -> Done:
    return project.runner("run", "--json", "--pipeline", str(project.folder / "diabètes.toml"), *arguments)


def test_another_model_is_trained_judged_and_registered_from_anywhere(project: Project, tmp_path: Path) -> None:
    file = str(project.folder / "diabètes.toml")
    done = project.runner("run", "-j", "2", "--json", "--pipeline", file, cwd=tmp_path, env=PAGES)
    assert done.code == 0, done.err
    told = done.json
    assert told["model_version"] == {"name": "progression", "version": 1, "status": "pending"}
    rmse, baseline = told["metrics"]["judge.rmse"], told["metrics"]["baseline.rmse"]
    assert 45 < rmse["low"] < rmse["value"] < rmse["high"] < baseline["value"] + 10
    assert told["metrics"]["judge.had_champion"]["value"] == 0
    assert Path(told["report"]).exists()
    assert not list(tmp_path.iterdir())
    approved = project.runner("approve", "progression/1", "--reason", "ok", "--pipeline", "diabètes.toml")
    assert approved.code == 0, approved.err


def test_the_approved_version_is_the_next_runs_champion_and_what_is_unchanged_is_kept(project: Project) -> None:
    versions = project.runner("models", "--json", "--pipeline", "diabètes.toml").json
    assert [version["status"] for version in versions] == ["approved"]
    done = run(project, "--tag", "nightly", "-m", "zweiter Lauf")
    assert done.code == 0, done.err
    statuses = {step["name"]: step["status"] for step in done.json["steps"]}
    assert statuses == {
        "prepare": "cached",
        "fit": "cached",
        "baseline": "cached",
        "judge": "succeeded",
        "enter": "cached",
    }
    assert done.json["metrics"]["judge.had_champion"]["value"] == 1


@pytest.mark.soak
def test_a_gate_that_says_no_registers_nothing_and_leaves_with_4(project: Project) -> None:
    before = project.runner("models", "--json", "--pipeline", "diabètes.toml").json
    done = run(project, "-p", "fit.rounds=1")
    assert done.code == 4
    assert (done.json["status"], done.json["verdict"], done.json["model_version"]) == ("succeeded", "fail", None)
    assert next(s for s in done.json["steps"] if s["name"] == "enter")["status"] == "skipped"
    assert "judge.rmse" in done.err
    assert project.runner("models", "--json", "--pipeline", "diabètes.toml").json == before


@pytest.mark.soak
def test_some_steps_give_no_verdict_and_register_nothing(project: Project) -> None:
    done = run(project, "fit", "--force")
    assert done.code == 0, done.err
    assert (done.json["verdict"], done.json["model_version"]) == (None, None)
    assert [s["name"] for s in done.json["steps"] if s["status"] == "succeeded"] == ["prepare", "fit"]


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("gate", "verdict", "exit_code"),
    [
        ({"exact": "min = 0.9"}, "pass", 0),
        ({"exact": "min = 0.91"}, "fail", 4),
        ({"exact": "min = 0.9", "wide": "min = 0.85\nconfident = true"}, "inconclusive", 5),
        (dict.fromkeys(("exact", "absent", "nan", "text", "truth", "twice"), "max = 1.0"), "error", 5),
    ],
)
def test_only_a_number_that_is_there_once_can_pass(
    tmp_path: Path, gate: dict[str, str], verdict: str, exit_code: int
) -> None:
    project = Project(tmp_path)
    project.write(
        "nb.ipynb",
        parameters("x: int = 1"),
        "import scrapbook\nfrom runner.scraps import metric\nmetric('exact', 0.9)\nmetric('wide', 0.9, low=0.8, high=0.95)",
        "for name, value in (('nan', float('nan')), ('text', 'nan'), ('truth', True), ('twice', 0.5), ('twice', 0.5)):\n"
        "    scrapbook.glue(name, value)",
    )
    rules = "".join(f'[[gate]]\nmetric = "only.{name}"\n{rule}\n' for name, rule in gate.items())
    project.toml(f'name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n{rules}')
    done = project.runner("run", "--json")
    assert (done.json["verdict"], done.code) == (verdict, exit_code), done.err
    assert done.json["status"] == "succeeded"
    outcomes = {rule["rule"]["metric"]: rule["outcome"] for rule in project.manifest["verdict"]["rules"]}
    assert outcomes["only.exact"] == ("fail" if verdict == "fail" else "pass")
    assert {outcomes[f"only.{name}"] for name in gate if name != "exact"} <= {verdict}


def test_independent_steps_run_side_by_side_with_j_2(tmp_path: Path) -> None:
    """Each waits for the other's file: one after the other, neither would ever end."""
    project = Project(tmp_path)
    for mine, other in (("a", "b"), ("b", "a")):
        project.write(
            f"{mine}.ipynb",
            parameters("meet: str = ''"),
            f"{WAIT}pathlib.Path(meet, '{mine}').touch()\n"
            f"while not pathlib.Path(meet, '{other}').exists():\n    assert time.monotonic() < deadline\n    time.sleep(0.02)",
        )
    project.toml('name = "two"\n[steps.a]\nnotebook = "a.ipynb"\n[steps.b]\nnotebook = "b.ipynb"\n')
    (tmp_path / "meet").mkdir()
    done = project.runner("run", "-j", "2", "--json", "-p", f"meet={tmp_path / 'meet'}")
    assert done.code == 0, done.err
    assert done.json["verdict"] is None


def test_a_failed_step_stops_what_needs_it_and_the_hint_says_what_to_do(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("a.ipynb", parameters("out: str = ''"), "open(out, 'w').write('1')", "{}['region']", "never = 1")
    project.write("b.ipynb", parameters("given: str = ''"), code("open(given)"))
    project.toml(
        'name = "two"\n[steps.a]\nnotebook = "a.ipynb"\noutputs = { out = "a.txt" }\n'
        '[steps.b]\nnotebook = "b.ipynb"\ninputs = { given = "a.out" }\n'
    )
    done = project.runner("run", "--json")
    assert done.code == 3
    assert [step["status"] for step in done.json["steps"]] == ["failed", None]  # the other never began
    assert "KeyError: 'region'" in done.err
    assert "cell [3]" in done.err
    assert "a.ipynb" in done.err
    assert json.loads((project.runs[-1] / "steps" / "a" / "result.json").read_text())["status"] == "failed"
