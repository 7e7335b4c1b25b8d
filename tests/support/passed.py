"""A project whose run makes a table and a model, passes its gate and registers it."""

from __future__ import annotations

from pathlib import Path

from support.projects import Project, parameters, recorded, text

TOML = """
name = "trust"
[parameters]
seed = 1
[steps.make]
notebook = "notebooks/make.ipynb"
inputs = { source = { from = "./in.csv", keep = true } }
outputs = { table = "table.csv" }
[steps.fit]
notebook = "notebooks/fit.ipynb"
inputs = { table = "make.table" }
outputs = { model = "model/" }
[[gate]]
metric = "fit.score"
min = 0.5
[model]
name = "thing"
from = "fit.model"
[steps.enter]
notebook = "notebooks/enter.ipynb"
inputs = { model = "fit.model", verdict = "gate.verdict" }
"""


def passed(place: Path) -> Project:
    """A project in the folder `project` there, with one run that passed, thing/1 pending."""
    project = Project(place / "project")
    project.folder.mkdir()
    (project.folder / "in.csv").write_text("a\n1\n2\n")
    write_notebooks(project)
    project.toml(TOML)
    done = project.runner("run", "--json")
    assert done.code == 0, done.err
    return project


def write_notebooks(project: Project, *, extra: str = "") -> None:
    project.write(
        "notebooks/make.ipynb",
        text("# Make"),
        parameters('source: str = ""\ntable: str = ""\nseed: int = 0'),
        f"import helper{extra}",
        "assert open(table, 'w').write(helper.clean(open(source).read()) * seed)",
    )
    (project.folder / "notebooks" / "helper.py").write_text("def clean(text):\n    return text.strip()\n")
    project.write(
        "notebooks/fit.ipynb",
        parameters('table: str = ""\nmodel: str = ""\nboost: float = 0.0'),
        "import json, pathlib\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)",
        "size = len(open(table).read())\n(place / 'model.json').write_text(json.dumps({'size': size}))\n"
        "(place / 'signature.json').write_text('{}')",
        recorded("score", "0.75 + boost"),
        recorded("score.interval", "{'low': 0.7 + boost, 'high': 0.8 + boost}"),
    )
    project.write(
        "notebooks/enter.ipynb",
        parameters('model: str = ""\nverdict: str = ""'),
        "from runner.model.request import register\nregister(model, card='# Thing')",
    )
