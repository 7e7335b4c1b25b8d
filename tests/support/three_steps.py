"""A project of three steps: one makes a model, one judges it beside the approved one, one registers it."""

from __future__ import annotations

from pathlib import Path

from support.projects import Project, parameters, recorded

TOML = """
name = "crash"
[steps.first]
notebook = "first.ipynb"
inputs = { source = "./in.txt" }
outputs = { model = "model/" }
[steps.second]
notebook = "second.ipynb"
inputs = { model = "first.model", before = "approved:thing" }
outputs = { scored = "scored.txt" }
[[gate]]
metric = "second.score"
min = 0.5
[model]
name = "thing"
from = "first.model"
[steps.last]
notebook = "last.ipynb"
inputs = { model = "first.model", verdict = "gate.verdict" }
"""


def made(folder: Path) -> Project:
    project = Project(folder)
    project.folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.txt").write_text("seed\n")
    project.write(
        "first.ipynb",
        parameters('source: str = ""\nmodel: str = ""'),
        "import json, pathlib\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)",
        # registered by its bytes alone; nothing here loads it
        "(place / 'model.json').write_text(json.dumps({'trees': open(source).read()}))\n"
        "(place / 'signature.json').write_text('{}')",
    )
    project.write(
        "second.ipynb",
        parameters('model: str = ""\nbefore: str = ""\nscored: str = ""'),
        "assert open(scored, 'w').write(open(model + '/model.json').read() * 3)",
        recorded("score", "0.75"),
    )
    project.write(
        "last.ipynb",
        parameters('model: str = ""\nverdict: str = ""'),
        "from runner.model.request import register\nregister(model, card='# Thing')",
    )
    project.toml(TOML)
    return project
